"""The metrics of a step: the one list for events, trackers, charts and browser."""

from typing_extensions import TypedDict


class MetricFields(TypedDict):
    """The metrics of a step; null if a trainer does not report one."""

    loss: float | None
    loss_smooth: float | None
    lr: float | None
    grad_norm: float | None
    samples_per_s: float | None
    data_wait_s: float | None
    step_s: float | None
    peak_memory_mib: float | None


METRICS = tuple(MetricFields.__annotations__)
"""Their names."""
