"""The lengths and the frame rate of the clips that a run trains on."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from flowloom.config.run import RunConfig
from flowloom.data.metadata import Rows
from flowloom.errors import ConfigError, DataError, Problem
from flowloom.models.family import family_for


class ClipRules(NamedTuple):
    """The clips of a run that trains on video."""

    lengths: tuple[int, ...]
    """Numbers of frames, ascending."""
    fps: float
    frames_per_latent: int
    """Frames of each plane of latents after the first."""

    def planes(self, num_frames: int) -> int:
        """Planes of latents of a clip."""
        return (num_frames - 1) // self.frames_per_latent + 1


ANY_CLIP = ClipRules((1,), 24.0, 1)
"""Every clip, as its first frame."""


def clip_rules(config: RunConfig) -> ClipRules | None:
    """The clips that `config` trains on; None if its model trains on images only.

    Raises:
        ConfigError: the autoencoder does not encode this number of frames, or sides of these sizes.
    """
    family = family_for(config.model)
    defaults = family.defaults.clips
    if defaults is None:
        return None
    lengths = tuple(sorted(set(config.video.num_frames) or {defaults.num_frames}))
    rules = ClipRules(lengths, config.video.fps or defaults.fps, defaults.frames_per_latent)
    step = rules.frames_per_latent
    for length in lengths:
        if (length - 1) % step:
            nearest = (length - 1) // step * step + 1
            hint = f"Set it to {nearest} or {nearest + step}."
            message = f"is {length}; {family.title} encodes {step}n + 1 frames."
            raise ConfigError("the configuration", [Problem("video.num_frames", message, hint=hint)])
    side = family.factor * family.patch
    if any(size % side for size in (config.dataloader.resolution_step, *config.resolutions)):
        message = (
            f"and base_resolution must be multiples of {side} for {family.title}, whose tokens are that wide."
        )
        raise ConfigError("the configuration", [Problem("dataloader.resolution_step", message)])
    return rules


def check_images_only(rows: Rows, model: str) -> None:
    """Raise DataError if some of `rows` are videos: `model` trains on images only."""
    videos = np.flatnonzero(rows.num_frames)
    if len(videos):
        row = rows.row(int(videos[0]))
        raise DataError(
            f"{rows.path}:{row.line}: {row.filename} is a video, and so are {len(videos) - 1:,} other rows; "
            f"{model} trains on images only. Remove these rows, or choose a model that trains on video."
        )
