"""Rows that cannot be used: reported once per run, and counted against `limits.max_skipped_share`."""

from __future__ import annotations

from collections.abc import Iterable

from flowloom.data.loader import Dataset, Skipped
from flowloom.engine.report import Reporter
from flowloom.engine.state import TrainState


class SkippedRows:
    """The rows that this rank skipped since the ranks last exchanged theirs."""

    def __init__(self, dataset: Dataset, state: TrainState, reporter: Reporter):
        self._dataset, self._state, self._reporter = dataset, state, reporter
        self._pending: list[Skipped] = []

    def __bool__(self) -> bool:
        return bool(self._pending)

    def add(self, rows: Iterable[Skipped]) -> None:
        """Note rows until the next `report`."""
        self._pending += rows

    def report(self) -> None:
        """Emit an event for each new row of all ranks. Called by all ranks at once.

        Raises:
            DataError: too many rows cannot be used; on all ranks.
        """
        known = self._state.position.skipped
        rows = self._state.ranks.gathered(self._pending)
        self._pending = []
        for skipped in rows:
            file = str(self._dataset.sources[skipped.dataset].path)
            key = f"{file}:{skipped.line}"
            if key not in known:
                known[key] = f"{skipped.filename}: {skipped.reason}"
                self._reporter.emit("skipped", file=file, line=skipped.line, reason=known[key])
        if rows:
            self._dataset.check_skipped(known)

    def report_invalid_lines(self) -> None:
        """Emit an event for each line of the JSONL that is not a valid row, at the start of a run."""
        if self._state.position.step == 0:
            for problem in self._dataset.metadata.problems:
                file = str(self._dataset.sources[problem.dataset].path)
                self._reporter.emit("skipped", file=file, line=problem.line, reason=problem.reason)
