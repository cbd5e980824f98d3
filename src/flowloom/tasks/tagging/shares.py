"""Shares of the images for the ranks of torchrun, on one or several machines with a shared run directory.

Each rank describes its share and has its own journal. The first rank merges the journals, before the work and
after it, and alone writes events, a JSONL and the result.
"""

from __future__ import annotations

import hashlib
import os
from contextlib import closing
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from flowloom.datasets.captions.journal import Journal
from flowloom.errors import RunError, one_line
from flowloom.tasks.restore_captions import CHANGES
from flowloom.tasks.tagging.image_sets import Target
from flowloom.tasks.tagging.processes import use_one_gpu

if TYPE_CHECKING:
    from flowloom.engine.parallel.ranks import Ranks

T = TypeVar("T")
PATIENCE = timedelta(days=30)
"""A rank waits this long for a slower one; it ends at once if another rank dies."""


@dataclass(frozen=True)
class Shares:
    """This process among those that describe the images of a run."""

    rank: int = 0
    size: int = 1
    ranks: Ranks | None = field(default=None, repr=False)

    def own(self, targets: list[Target]) -> list[Target]:
        """The share of this rank: a function of the names alone, so that each image is in one share."""
        return [target for target in targets if _digest(target.name) % self.size == self.rank]

    def wait(self) -> None:
        """Return once every rank is here.

        Raises:
            RunError: a rank ended.
        """
        self.gathered(None)

    def gathered(self, value: T) -> list[T]:
        """The values of all ranks.

        Raises:
            RunError: a rank ended.
        """
        if self.ranks is None:
            return [value]
        try:
            return self.ranks.gathered([value])
        except RuntimeError as error:
            raise RunError(
                f"Another rank ended: {one_line(str(error))[:200]}. Start the run again: it describes the "
                "images that are left."
            ) from error

    def leave(self) -> None:
        """Leave the process group, at the end of the work."""
        if self.ranks:
            from flowloom.engine.parallel.ranks import leave_ranks

            leave_ranks(self.ranks)


def _digest(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest())


def join_shares() -> Shares:
    """The shares by torchrun's environment; one share without it.

    Raises:
        RankError: not all ranks joined in time.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Shares()
    from flowloom.engine.parallel.ranks import join_ranks

    use_one_gpu(int(os.environ.get("LOCAL_RANK", "0")))
    ranks = join_ranks("cpu", PATIENCE)
    return Shares(ranks.rank, ranks.size, ranks)


def journal_path(run: Path, rank: int) -> Path:
    """The journal of a rank, until it is merged."""
    return run / f"captions.rank{rank}.jsonl"


def merge_journals(run: Path) -> None:
    """Append the journals of ranks, also those of a killed run, to the run's journal, and delete them."""
    parts = sorted(run.glob("captions.rank*.jsonl"))
    if not parts:
        return
    with closing(Journal(run / CHANGES)) as journal:
        for part in parts:
            with closing(Journal(part)) as of_rank:
                known = journal.offsets  # a kill may have left a part that is merged already
                journal.add([change for change in of_rank.changes() if change.place not in known])
            part.unlink()
