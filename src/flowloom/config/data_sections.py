"""Sections for data beyond FLOW's one JSONL: several data sets, and how batches are filled."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from flowloom.config.flow_format.sections import Fraction, Masks, Period, Pixels, Resolutions
from flowloom.schema import Section

Positive = Annotated[float, Field(gt=0)]


class DatasetSection(Section):
    """One more data set beside `dataloader`'s; what is null is as `dataloader` says."""

    jsonl_metadata_path: str = ""
    """JSONL file with one sample a line, or a folder of images with captions beside them."""
    image_folder_path: str | None = None
    """Folder that the file names of a JSONL are relative to."""
    repeats: Positive | None = None
    """Times each row comes an epoch; 2.5: twice, and every other row, in turn, a third time."""
    weight: Positive | None = None
    """Share of the samples, against the other sets with a weight; takes the place of `repeats`."""
    loss_weight: Fraction = 1.0
    """Factor on the loss of every row."""
    is_regularisation: bool = False
    """Repeat the rows so often that an epoch has as many of them as of all other sets' rows."""
    base_resolution: Resolutions | None = None
    """Side of the square bucket; each sample draws one of them."""
    resolution_step: Pixels | None = None
    """Grid of bucket sides in pixels."""
    ratio_cutoff: Annotated[float, Field(gt=1)] | None = None
    """Rows wider or taller than this aspect ratio are left out."""
    batch_size: Period | None = None
    """Samples a loaded batch, over all ranks; sets of the same batch size share batches."""
    mask: Masks = "none"
    """What the loss counts: all, what the alpha channel of the image leaves, or what is white in an image of
    the same name in `mask_folder_path`."""
    mask_folder_path: str = ""
    """Folder with one mask for each image."""
    unmasked_weight: Fraction = 0.0
    """What a place outside of the mask counts, against 1 inside."""


class BatchingSection(Section):
    """How batches are filled; the defaults are FLOW's, `dataloader.batch_size` samples."""

    sizes: list[Period] = []
    """A batch size for each of `dataloader.base_resolution`; empty: `dataloader.batch_size` for all."""
    batch_tokens: Period | None = None
    """Fill batches, over all ranks, up to so many tokens instead: 256 pixels are one, and 3.5 characters of
    a caption about one."""
    pack_aspect_ratios: bool = False
    """The last, short batches of several buckets make one update together instead of one each."""
