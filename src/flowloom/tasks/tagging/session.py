"""One process of a tagging run: describes images, records each change, then writes it."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from flowloom.datasets.build.items import Unusable
from flowloom.datasets.captions.journal import Journal, pending
from flowloom.datasets.captions.store import CaptionError, CaptionRef, CaptionStore, Change, Written
from flowloom.errors import DataError
from flowloom.run.directory import RunDir
from flowloom.tasks.base import Progress
from flowloom.tasks.restore_captions import CHANGES
from flowloom.tasks.tagging.batches import (
    Batch,
    Existing,
    Prepared,
    existing_captions,
    in_batches,
    names_of,
    prepare_all,
    usable_of,
)
from flowloom.tasks.tagging.config import DescribingConfig
from flowloom.tasks.tagging.image_sets import ImageSet, Target
from flowloom.tasks.tagging.merging import Description, merged
from flowloom.tasks.tagging.processes import Answer, Captioner, Load, captioner_processes

NAMED = 1000
"""Images that the result names, of each kind."""


@dataclass
class Outcome:
    """The counts and names of the result."""

    num_images: int
    num_kept: int = 0
    """Images that had a caption and keep it."""
    num_empty: int = 0
    """Images for which the model returned nothing."""
    unusable: list[Unusable] = field(default_factory=list)
    changed_meanwhile: list[CaptionRef] = field(default_factory=list)
    preview: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def total(cls, num_images: int, unusable: list[Unusable], outcomes: list[Outcome]) -> Outcome:
        """That of all ranks; `unusable` was found in the listing."""
        return cls(
            num_images,
            sum(outcome.num_kept for outcome in outcomes),
            sum(outcome.num_empty for outcome in outcomes),
            [*unusable, *(image for outcome in outcomes for image in outcome.unusable)],
            [ref for outcome in outcomes for ref in outcome.changed_meanwhile],
        )


class Session:
    """The part of a run that one process does."""

    def __init__(
        self,
        config: DescribingConfig,
        progress: Progress,
        images: ImageSet,
        journal: Journal,
        num_images: int,
        known: frozenset[str] | None = None,
    ):
        """
        Args:
            known: places of the journals of all ranks, if this is one of several; None: those of `journal`.
        """
        self.config, self.progress, self.images, self.journal = config, progress, images, journal
        self.store, self.known = images.store, known
        self.outcome = Outcome(num_images)
        for unusable in images.unusable:
            self._skip(unusable)

    def finish_earlier(self) -> None:
        """Write captions that an earlier process recorded and did not write."""
        if self.images.writes_at_once and not self.config.preview:
            self._write_pending()

    def describe(self, targets: list[Target], find: Callable[[], Load]) -> dict[str, Any]:
        """Describe the remaining images; returns `about` of the model, empty if none was needed."""
        remaining = self._remaining(targets)
        if not remaining:
            return {}
        self.progress.phase("loading the model")
        return self._describe_with(find(), remaining, len(targets))

    def write_at_end(self) -> None:
        """Write the captions of a JSONL."""
        if not self.images.writes_at_once and self.journal.offsets:
            self.progress.phase("writing")
            self._write_pending()

    def _write_pending(self) -> None:
        """Write the changes of the journal that are not in the dataset yet."""
        self.store.close()
        changes = self.journal.changes(self.store)
        self._write(pending(self.store, changes, self.outcome.changed_meanwhile))

    def _write(self, changes: Iterable[Change]) -> None:
        self.outcome.changed_meanwhile += write(self.store, changes, "then resume the run").changed_meanwhile

    def _remaining(self, targets: list[Target]) -> list[Target]:
        if self.config.preview:
            number = min(self.config.preview, len(targets))
            return [targets[i * len(targets) // number] for i in range(number)]
        known = (self.known or frozenset()) | self.journal.offsets.keys()
        remaining = [target for target in targets if target.places[0] not in known]
        if self.config.existing != "skip":
            return remaining
        uncaptioned = [target for target in remaining if not self._is_captioned(target)]
        self.outcome.num_kept = len(remaining) - len(uncaptioned)
        return uncaptioned

    def _is_captioned(self, target: Target) -> bool:
        try:
            return all(existing.captions for existing in existing_captions(self.store, target))
        except (DataError, OSError):
            return False  # reported when the image is prepared

    def _describe_with(self, load: Load, remaining: list[Target], num_images: int) -> dict[str, Any]:
        """Describe images in this process or in several others; returns `about` of the model."""
        size, count = self.config.batch_size, self.config.processes
        if count == 1:
            captioner = load()
            prepared = prepare_all(self.images, remaining, captioner.prepare, 2 * size)
            answers = _answers(captioner, in_batches(prepared, size))
            self._take_all(prepared, answers, len(remaining), num_images)
            return captioner.about
        with captioner_processes(load, count) as captioners:
            prepared = prepare_all(self.images, remaining, _as_stored, 2 * size * count)
            answers = captioners.describe_all(
                (batch, [image.image for image in usable_of(batch)], names_of(batch))
                for batch in in_batches(prepared, size)
            )
            self._take_all(prepared, answers, len(remaining), num_images)
            return captioners.about

    def _take_all(
        self,
        prepared: Generator[Prepared | Unusable],
        answers: Iterable[tuple[Batch, Sequence[Answer]]],
        num_remaining: int,
        num_images: int,
    ) -> None:
        """Record the answers to every batch; after a stop request, those of the batches on their way."""
        self.progress.phase("previewing" if self.config.preview else "describing")
        total = num_remaining if self.config.preview else num_images
        done = total - num_remaining
        num_usable = 0
        for batch, of_batch in answers:
            described = self._described(batch, of_batch)
            if described:
                self._take(described)
            num_usable += len(described)
            done += len(batch)
            self.progress.step(done, total)
            if self.progress.is_stopped():
                prepared.close()
        is_all = num_remaining == num_images and self.known is None
        if not num_usable and is_all and not self.progress.is_stop_requested:
            first = self.outcome.unusable[0]
            raise DataError(f"no image can be used. The first: {first.where}: {first.reason}.")

    def _described(self, batch: Batch, answers: Iterable[Answer]) -> list[tuple[Prepared, Description]]:
        """The images that were described; the others are reported."""
        described: list[tuple[Prepared, Description]] = []
        of_usable = iter(answers)
        for image in batch:
            answer = image if isinstance(image, Unusable) else next(of_usable)
            if isinstance(image, Prepared) and isinstance(answer, Description):
                described.append((image, answer))
            elif isinstance(image, Prepared):
                self._skip(Unusable(image.target.name, str(answer)))
            else:
                self._skip(image)
        return described

    def _skip(self, unusable: Unusable) -> None:
        self.outcome.unusable.append(unusable)
        if len(self.outcome.unusable) <= NAMED:
            self.progress.emit("skipped", file=unusable.where, line=0, reason=unusable.reason)

    def _take(self, described: list[tuple[Prepared, Description]]) -> None:
        changes = [change for image, description in described for change in self._changes(image, description)]
        if self.config.preview:
            return
        self.journal.add(changes)
        if self.images.writes_at_once:
            self._write(change for change in changes if change.before != change.after)

    def _changes(self, image: Prepared, description: Description) -> Iterator[Change]:
        is_empty = True
        for existing in image.existing:
            captions = merged(existing.captions, description, self.config)
            is_empty = is_empty and not captions
            if self.config.preview:
                self._show(image, existing, description, captions)
            after = self._after(existing, captions, is_tags=description.tags is not None)
            yield Change(image.target.name, existing.place, existing.data, after)
        self.outcome.num_empty += is_empty

    def _after(self, existing: Existing, captions: tuple[str, ...], *, is_tags: bool) -> bytes | None:
        """The new content of a place."""
        is_kept = existing.captions and self.config.existing == "skip"
        if is_kept or not captions or captions == existing.captions:
            return existing.data
        is_new = self.config.existing == "replace" or not existing.captions
        return self.store.edited(existing.place, existing.data, list(captions), is_tags if is_new else None)

    def _show(
        self, image: Prepared, existing: Existing, description: Description, captions: tuple[str, ...]
    ) -> None:
        shown = {
            "image": image.target.name,
            "place": existing.place,
            "before": list(existing.captions),
            "after": list(captions or existing.captions),
            "is_kept": bool(existing.captions) and self.config.existing == "skip",
            "scores": {name: round(score, 4) for name, score in description.scores.items()},
        }
        self.outcome.preview.append(shown)

    def save(self, about: dict[str, Any]) -> None:
        """Write result.json."""
        outcome = self.outcome
        changed_meanwhile = [self.store.label(ref.place) for ref in outcome.changed_meanwhile]
        if changed_meanwhile:
            self.progress.warn(
                f"{len(changed_meanwhile)} captions were changed by another program during the run and were "
                f"not overwritten. The captions of this run are in its {CHANGES}."
            )
        unusable = [{"image": image.where, "reason": image.reason} for image in outcome.unusable[:NAMED]]
        self.progress.save_result(
            {
                "model": about or _known_model(self.progress.run_dir),
                "num_images": outcome.num_images,
                "num_written": self.journal.num_changed(),
                "num_kept": outcome.num_kept,
                "num_empty": outcome.num_empty,
                "num_unusable": len(outcome.unusable),
                "unusable": unusable,
                "changed_meanwhile": changed_meanwhile[:NAMED],
                "preview": outcome.preview,
            }
        )


def _known_model(run_dir: RunDir) -> dict[str, Any]:
    """The model of an earlier session, for a session that had nothing left to describe."""
    try:
        return json.loads((run_dir.path / "result.json").read_text(encoding="utf-8"))["model"]
    except (OSError, ValueError, KeyError):
        return {}


def _answers(captioner: Captioner, batches: Iterable[Batch]) -> Iterator[tuple[Batch, list[Description]]]:
    """Each batch with the descriptions of its usable images."""
    for batch in batches:
        images = [image.image for image in usable_of(batch)]
        yield batch, captioner.describe(images, names_of(batch)) if images else []


def _as_stored(image: bytes) -> bytes:
    """The input of a model in another process, which prepares it there."""
    return image


def write(store: CaptionStore, changes: Iterable[Change], hint: str) -> Written:
    """Write `changes`.

    Raises:
        DataError: a file cannot be written; the message ends with `hint`.
    """
    try:
        return store.write(changes)
    except CaptionError as error:
        raise DataError(f"{error} {error.hint}".rstrip()) from error
    except OSError as error:
        message = f"{error.filename2 or error.filename}: cannot be written ({error.strerror})."
        raise DataError(f"{message} Fix that, {hint}.") from error
