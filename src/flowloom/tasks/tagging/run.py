"""The run that tagging and captioning share: what is noted first, then written, and how it goes on."""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from flowloom.datasets.build.items import Unusable, reason_of
from flowloom.errors import ConfigError, DataError, Problem, RunError, SourceError, StoreDenied, Unavailable
from flowloom.run.directory import RunDir
from flowloom.tasks.base import Progress
from flowloom.tasks.restore_captions import CHANGES, RestoreConfig
from flowloom.tasks.tagging.changes import CaptionSet, Change, Found, Journal, Target
from flowloom.tasks.tagging.config import DescribingConfig
from flowloom.tasks.tagging.merging import Description, merged
from flowloom.tasks.tagging.rows import Rows
from flowloom.tasks.tagging.sidecars import Sidecars

NAMED = 1000
"""Pictures that the result names, of each sort."""


class Describer(Protocol):
    """A model that says something of pictures."""

    about: dict[str, Any]
    """Which model it is, for the result."""

    def prepare(self, picture: bytes) -> Any:
        """The picture as the model takes it; called by several threads.

        Raises:
            ImageError: it is no picture, damaged, or too large.
        """
        ...

    def describe(self, pictures: Sequence[Any], names: Sequence[str]) -> list[Description]:
        """What the model says of each."""
        ...


@dataclass(frozen=True)
class Prepared:
    """A picture that can be described."""

    target: Target
    found: list[Found]
    picture: Any


@dataclass
class _Outcome:
    """What the result says."""

    num_pictures: int
    num_kept: int = 0
    """Had a caption, and were left as they are."""
    num_empty: int = 0
    """The model said nothing."""
    unusable: list[Unusable] = field(default_factory=list)
    changed_since: list[str] = field(default_factory=list)
    preview: list[dict[str, Any]] = field(default_factory=list)


def open_captions(config: DescribingConfig) -> CaptionSet:
    """The folder or JSONL at `data_path`.

    Raises:
        DataError: it is not there.
    """
    path = Path(config.data_path)
    if path.is_file():
        return Rows(path, Path(config.image_folder_path) if config.image_folder_path else None)
    return Sidecars(path, config.caption_suffix)


def describe(config: DescribingConfig, progress: Progress, load: Callable[[], Describer]) -> None:
    """Describe the pictures that `config` names by the model that `load` loads; result.json tells of it.

    Changes are noted in the run directory first and written to the data set then: whatever is noted is not
    done again, and whatever is noted but not written is written by the next sitting.

    Raises:
        FlowloomError: there is no usable picture, or no usable model.
    """
    progress.phase("listing")
    with (
        closing(open_captions(config)) as captions,
        closing(Journal(progress.run_dir.path / CHANGES)) as journal,
    ):
        targets = captions.targets()
        if not targets:
            bad = captions.unusable
            first = f" {bad[0].place}: {bad[0].reason}." if bad else ""
            raise DataError(f"{config.data_path}: there is no picture to describe.{first}")
        sitting = Sitting(config, progress, captions, journal, len(targets))
        sitting.save(sitting.work(targets, load))


class Sitting:
    """One process's part of a run."""

    def __init__(
        self,
        config: DescribingConfig,
        progress: Progress,
        captions: CaptionSet,
        journal: Journal,
        num_pictures: int,
    ):
        self.config, self.progress, self.captions, self.journal = config, progress, captions, journal
        self.outcome = _Outcome(num_pictures)
        for one in captions.unusable:
            self._skip(one)

    def work(self, targets: list[Target], load: Callable[[], Describer]) -> dict[str, Any]:
        """Describe what is not described; which model did."""
        if self.captions.writes_at_once and not self.config.preview:
            self.outcome.changed_since += self.captions.apply(self.journal).changed_since
        todo = self._todo(targets)
        about: dict[str, Any] = {}
        if todo:
            self.progress.phase("loading the model")
            describer = load()
            about = describer.about
            self.progress.phase("previewing" if self.config.preview else "describing")
            self._describe_all(todo, describer, len(targets))
        if not self.captions.writes_at_once and self.journal.num_changed:
            self.progress.phase("writing")
            self.outcome.changed_since += self.captions.apply(self.journal).changed_since
        return about

    def _todo(self, targets: list[Target]) -> list[Target]:
        if self.config.preview:
            number = min(self.config.preview, len(targets))
            return [targets[i * len(targets) // number] for i in range(number)]
        todo = [target for target in targets if target.places[0] not in self.journal]
        if self.config.existing != "skip":
            return todo
        waiting = [target for target in todo if not self._is_captioned(target)]
        self.outcome.num_kept = len(todo) - len(waiting)
        return waiting

    def _is_captioned(self, target: Target) -> bool:
        try:
            return all(found.captions for found in self.captions.found(target))
        except (DataError, OSError):
            return False  # said once its turn comes

    def _describe_all(self, todo: list[Target], describer: Describer, num_pictures: int) -> None:
        total = len(todo) if self.config.preview else num_pictures
        done = total - len(todo)
        pictures = _prepare_all(self.captions, todo, describer, self.config.batch_size)
        num_usable = 0
        while batch := list(islice(pictures, self.config.batch_size)):
            usable = [one for one in batch if isinstance(one, Prepared)]
            for one in batch:
                if isinstance(one, Unusable):
                    self._skip(one)
            if usable:
                said = describer.describe(
                    [one.picture for one in usable], [one.target.name for one in usable]
                )
                self._take(usable, said)
            num_usable += len(usable)
            done += len(batch)
            self.progress.step(done, total)
            if self.progress.is_stopped():
                pictures.close()
        if not num_usable and len(todo) == num_pictures and not self.progress.is_stop_requested:
            first = self.outcome.unusable[0]
            raise DataError(f"no picture can be used. The first: {first.place}: {first.reason}.")

    def _skip(self, one: Unusable) -> None:
        self.outcome.unusable.append(one)
        if len(self.outcome.unusable) <= NAMED:
            self.progress.emit("skipped", file=one.place, line=0, reason=one.reason)

    def _take(self, batch: list[Prepared], said: list[Description]) -> None:
        changes = [
            change
            for one, description in zip(batch, said, strict=True)
            for change in self._changes(one, description)
        ]
        if self.config.preview:
            return
        self.journal.add(changes)
        if self.captions.writes_at_once:
            applied = self.captions.apply({change.place: change for change in changes})
            self.outcome.changed_since += applied.changed_since

    def _changes(self, one: Prepared, said: Description) -> Iterator[Change]:
        is_empty = True
        for found in one.found:
            captions = merged(found.captions, said, self.config)
            is_empty = is_empty and not captions
            is_left = not captions or (found.captions and self.config.existing == "skip")
            is_new = self.config.existing == "replace" or not found.captions
            tags = (said.tags is not None) if is_new else None
            after = found.raw if is_left else self.captions.raw(found, captions, tags)
            if self.config.preview:
                self._show(one, found, said, captions)
            yield Change(found.place, one.target.name, found.raw, after)
        self.outcome.num_empty += is_empty

    def _show(self, one: Prepared, found: Found, said: Description, captions: tuple[str, ...]) -> None:
        shown = {
            "picture": one.target.name,
            "place": found.place,
            "before": list(found.captions),
            "after": list(captions or found.captions),
            "is_kept": bool(found.captions) and self.config.existing == "skip",
            "scores": {name: round(score, 4) for name, score in said.scores.items()},
        }
        self.outcome.preview.append(shown)

    def save(self, about: dict[str, Any]) -> None:
        """Write result.json."""
        outcome = self.outcome
        if outcome.changed_since:
            self.progress.warn(
                f"{len(outcome.changed_since)} captions were changed by somebody else meanwhile and stay as "
                f"they are; what was meant for them is in {CHANGES} of this run."
            )
        unusable = [{"picture": one.place, "reason": one.reason} for one in outcome.unusable[:NAMED]]
        self.progress.save_result(
            {
                "model": about or _known_model(self.progress.run_dir),
                "num_pictures": outcome.num_pictures,
                "num_written": self.journal.num_changed,
                "num_kept": outcome.num_kept,
                "num_empty": outcome.num_empty,
                "num_unusable": len(outcome.unusable),
                "unusable": unusable,
                "changed_since": outcome.changed_since[:NAMED],
                "preview": outcome.preview,
            }
        )


def _known_model(run_dir: RunDir) -> dict[str, Any]:
    """Which model an earlier sitting used, where this one had nothing left to do."""
    try:
        return json.loads((run_dir.path / "result.json").read_text(encoding="utf-8"))["model"]
    except (OSError, ValueError, KeyError):
        return {}


def _prepare_all(
    captions: CaptionSet, targets: list[Target], describer: Describer, batch_size: int
) -> Generator[Prepared | Unusable]:
    """Each picture as the model takes it, in order, prepared by threads a few batches ahead."""

    def prepare(target: Target) -> Prepared | Unusable:
        try:
            found = captions.found(target)
            return Prepared(target, found, describer.prepare(captions.picture(target)))
        except (Unavailable, StoreDenied):
            raise  # the store as a whole: no picture is to blame
        except (DataError, SourceError) as error:
            return Unusable(target.name, str(error))
        except OSError as error:
            return Unusable(target.name, reason_of(error))

    waiting: deque[Future[Prepared | Unusable]] = deque()
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1), thread_name_prefix="pictures") as pool:
        try:
            for target in targets:
                waiting.append(pool.submit(prepare, target))
                if len(waiting) > 2 * batch_size:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def restore(config: RestoreConfig, progress: Progress) -> None:
    """Put captions back as they were before the run at `run_path`; work of the task `restore-captions`.

    Raises:
        FlowloomError: there is no such run, it wrote to other data, or it still writes.
    """
    run = RunDir.open(config.run_path)
    if run.is_running():
        raise RunError(f"{run.path} still runs, and would write on. Stop it, then undo it.")
    described = run.read_run()["config"]
    data = Path(config.data_path)
    # What a run directory says is not trusted to name the files that are written.
    if data.resolve() != Path(str(described.get("data_path"))).resolve():
        message = f"the run {run.path} wrote to {described.get('data_path')}."
        raise ConfigError(str(run.path), [Problem("data_path", message)])
    suffix = ".caption" if described.get("caption_suffix") == ".caption" else ".txt"
    progress.phase("restoring")
    with (
        closing(Rows(data, None) if data.is_file() else Sidecars(data, suffix)) as captions,
        closing(Journal(run.path / CHANGES)) as journal,
    ):
        applied = captions.apply(journal, is_undone=True)
        progress.step(len(journal), len(journal))
    progress.save_result(
        {"num_restored": applied.num_written, "changed_since": applied.changed_since[:NAMED]}
    )
