"""The report on a run before it starts: what `flowloom preflight --json` and `POST .../preflight` answer."""

from __future__ import annotations

import json
from typing import Any

from pydantic import BaseModel, Field

from flowloom.errors import Problem


class Change(BaseModel):
    """A key to set so that the run fits."""

    path: str = Field(description="Dotted key of the configuration.", examples=["memory.fp8_base"])
    value: Any = Field(description="JSON value to set it to.", examples=[True])
    bytes: int | None = Field(
        description="Memory in all with this change and those before it; null for a change that saves disk."
    )

    def __str__(self) -> str:
        then = "" if self.bytes is None else f": then {self.bytes / 1e9:.1f} GB in all"
        return f"set {self.path} to {json.dumps(self.value)}{then}"


class BucketReport(BaseModel):
    """A bucket and its rows."""

    width: int
    height: int
    rows: int
    batches: int
    remainder: int | None = Field(default=None, description="Rows of the last, short batch.")


class DataReport(BaseModel):
    """Rows, buckets and steps."""

    rows: int = Field(description="Samples of an epoch.")
    steps_per_epoch: int
    buckets: list[BucketReport]
    left_out: dict[str, int] = Field(description="Rows that are not trained, by reason.")
    pixels: int | None = Field(default=None, description="Pixels of all rows in their buckets.")
    mean_text_tokens: float | None = None
    distinct_captions: int | None = None
    images: int | None = Field(default=None, description="Kohya: image files.")
    repeated: int | None = Field(default=None, description="Kohya: training images times repeats.")
    regularisation: int | None = Field(default=None, description="Kohya: regularisation images.")
    batches: int | None = Field(default=None, description="Kohya: batches of an epoch.")
    steps: int | None = Field(default=None, description="Kohya: steps of the run.")
    epochs: int | None = Field(default=None, description="Kohya: epochs of the run.")


class SpaceReport(BaseModel):
    """Bytes by part, and the room for them."""

    parts: dict[str, int] = Field(examples=[{"network": 8_900_000_000}])
    total: int
    free: int
    fits: bool


class MeasureReport(BaseModel):
    """A measure of the memory plan, after those before it."""

    path: str = Field(description="Dotted key of the configuration.", examples=["memory.streamed_blocks"])
    value: int | bool | str = Field(description="Its value in the plan.")
    text: str = Field(description="The measure in a few words.", examples=["streams 43"])
    saved: int = Field(description="Bytes on the device.")
    slow_down: float = Field(description="Added share of a step's time, expected.")


class PlanReport(BaseModel):
    """How blocks are run and where weights and activations are stored, so that the run fits."""

    checkpointed_blocks: int = Field(description="Blocks that recompute completely.")
    checkpointed_ffn: int = Field(description="Further blocks that recompute their feed-forward part.")
    streamed_blocks: int
    offload_activations: bool
    measures: list[MeasureReport]
    slow_down: float = Field(description="Share of a step's time that all measures add, expected.")
    host_parts: dict[str, int] = Field(description="Bytes of host memory by part.")
    host_total: int
    host_free: int | None = Field(description="Null: not known.")
    checkpoint_copy: int = Field(
        description="Bytes of host memory for the copy that a checkpoint is written from; not in "
        "`host_total`, because training waits for the checkpoint where there is no room."
    )
    speed: str = Field(description="The speeds that the slow-down is calculated from.")
    is_measured: bool = Field(description="True if they were measured on this machine.")


class FitReport(BaseModel):
    """Settings with which a method fits a card of one size."""

    gib: int
    method: str
    resolution: int
    fits: bool
    total: int = Field(description="Bytes on the device with the plan and the changes.")
    changes: list[Change] = Field(description="Settings other than those of the plan.")
    settings: str = Field(
        description="Changes and measures in a few words.", examples=["8bit base, streams 43"]
    )
    plan: PlanReport


class MemoryReport(SpaceReport):
    """Memory of the device."""

    usable_share: float = Field(description="Share of `free` that is planned with.")
    blocks: int | None = Field(default=None, description="Blocks of the network.")
    recomputed_blocks: int | None = None
    plan: PlanReport | None = Field(default=None, description="Null for trainers without a plan.")
    is_coarse: bool = Field(default=False, description="A rough estimate: see `not_counted`.")
    source: str | None = Field(default=None, description="Where the sizes come from.")
    not_counted: list[str] = []


class DiskReport(SpaceReport):
    """Disk for checkpoints and caches."""

    checkpoint: int = Field(description="Bytes of one checkpoint.")
    kept: int | None = Field(description="Checkpoints that stay; null where the run has no end.")
    kept_text: str | None = Field(default=None, description="The same as a sentence.")
    caches: dict[str, int]
    state: int | None = Field(default=None, description="Kohya: bytes of one saved training state.")


class TimeReport(BaseModel):
    """Speed and duration, in seconds."""

    samples_per_s: float | None = Field(description="Null: not known.", examples=[1.4])
    source: str = Field(description="Where the rate comes from.", examples=["as given"])
    step_s: float | None = None
    epoch_s: float | None = None
    total_s: float | None = None
    steps: int | None = None
    epochs: float | None = None


class PreflightReport(BaseModel):
    """Data, memory, disk and time of a run; a section is null where it cannot be estimated."""

    can_run: bool
    problems: list[Problem] = Field(description="They would end the run.")
    data: DataReport | None
    memory: MemoryReport | None
    disk: DiskReport | None
    time: TimeReport | None
    changes: list[Change] = Field(description="Keys to set, in this order and together, so that it fits.")
    fits: list[FitReport] = Field(default=[], description="Settings for cards of several sizes, on request.")
    hints: list[str] = Field(description="Notes that end no run.")
