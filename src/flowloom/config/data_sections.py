"""Sections for data beyond FLOW's single JSONL: several datasets, and batching."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from flowloom.config.flow_format.sections import Fraction, Masks, Period, Pixels, Resolutions, Tokens
from flowloom.schema import Section, ui

Positive = Annotated[float, Field(gt=0)]


class DatasetSection(Section):
    """An additional dataset; null values use the setting of `dataloader`."""

    jsonl_metadata_path: str = ""
    """JSONL file with one sample per line, or a folder of images with caption files."""
    image_folder_path: str | None = None
    """Folder that file names in the JSONL are relative to."""
    repeats: Positive | None = None
    """Repeats of each row per epoch; 2.5: twice, and alternating halves of the rows a third time."""
    weight: Positive | None = None
    """Share of the samples relative to other datasets with a weight; replaces `repeats`."""
    loss_weight: Fraction = 1.0
    """Factor applied to the loss of every row."""
    is_regularisation: bool = False
    """Repeat the rows until an epoch has as many of them as of all other rows."""
    base_resolution: Resolutions | None = None
    """Side of the square bucket in pixels; of several, each sample uses a random one."""
    resolution_step: Pixels | None = None
    """Step between bucket sides in pixels."""
    ratio_cutoff: Annotated[float, Field(gt=1)] | None = None
    """Skip rows with a larger aspect ratio, wide or tall."""
    batch_size: Period | None = None
    """Samples per loaded batch, over all ranks; datasets with the same batch size share batches."""
    mask: Masks = "none"
    """Loss mask: none, the alpha channel of the image, or a mask image (white: trained) of the same name in
    `mask_folder_path`."""
    mask_folder_path: str = ""
    """Folder with a mask image for each image."""
    unmasked_weight: Fraction = 0.0
    """Loss weight outside the mask; inside it is 1."""


class VideoSection(Section):
    """Clips, for models that train on video."""

    num_frames: list[Period] = []
    """Frames of the clips, usually 4n + 1; of several numbers, each clip uses the largest that it has. Empty:
    the number that the model was made for."""
    fps: Annotated[float, Field(gt=0, le=1000), ui(unit="frames/s")] | None = None
    """Frame rate that clips are resampled to; null: the one that the model was made for."""


class BatchingSection(Section):
    """Batch sizes beyond FLOW's `dataloader.batch_size`."""

    sizes: list[Period] = []
    """Batch size for each of `dataloader.base_resolution`; empty: `dataloader.batch_size` for all."""
    batch_tokens: Tokens | None = None
    """Fill batches, over all ranks, up to this number of tokens instead. A token is 256 pixels, or about 3.5
    characters of a caption."""
    pack_aspect_ratios: bool = False
    """Combine the last, incomplete batches of several buckets into one update."""
