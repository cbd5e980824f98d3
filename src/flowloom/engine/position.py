"""The position of a run, and its distance from the end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from flowloom.config.run import RunConfig


@dataclass
class Position:
    """A run's progress. The next update is number `update` of batch `batch` of `epoch`."""

    step: int = 0
    """Optimizer updates made."""
    epoch: int = 0
    batch: int = 0
    update: int = 0
    samples: int = 0
    """Samples trained, on all ranks."""
    seconds: float = 0.0
    """Time spent training, over all sessions."""
    progress: float = 0.0
    """Share of the run that is done before the next update; 0 if the run has no limit."""
    skipped: dict[str, str] = field(default_factory=dict)
    """`file:line` of every row that could not be used, with the reason."""
    loss_smooth: float | None = None

    def finish_update(self, num_updates: int, num_batches: int, batches_of: Callable[[int], int]) -> None:
        """Advance by one update; the last of `num_updates` also advances by its `num_batches` batches.

        Args:
            batches_of: the number of batches of an epoch.
        """
        self.update += 1
        if self.update < num_updates:
            return
        self.update = 0
        self.batch += num_batches
        if self.batch >= batches_of(self.epoch):
            self.epoch, self.batch = self.epoch + 1, 0


def reached_limits(config: RunConfig, position: Position) -> list[str]:
    """The keys of the limits that the run has reached."""
    limits = config.limits
    done = (
        ("limits.max_steps", limits.max_steps, position.step),
        ("limits.max_epochs", limits.max_epochs, position.epoch),
        ("limits.max_minutes", limits.max_minutes and limits.max_minutes * 60, position.seconds),
    )
    return [key for key, limit, so_far in done if limit is not None and so_far >= limit]


def share_done(
    config: RunConfig, position: Position, batches_of: Callable[[int], int], done_of_batch: float = 0.0
) -> float:
    """The share of the run that is done, by the nearest limit; 0 without a limit.

    Args:
        batches_of: the number of batches of an epoch.
        done_of_batch: the share of the current batch that is done.
    """
    limits = config.limits
    shares = [0.0]
    if limits.max_steps:
        shares.append(position.step / limits.max_steps)
    if limits.max_epochs:
        batches = max(batches_of(position.epoch), 1)
        done = position.epoch + (position.batch + done_of_batch) / batches
        shares.append(done / limits.max_epochs)
    if limits.max_minutes:
        shares.append(position.seconds / (limits.max_minutes * 60))
    return min(max(shares), 1.0)
