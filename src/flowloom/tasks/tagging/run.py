"""The run of a tagger or captioner: captions go to the journal, then to the dataset; a resume continues."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowloom.datasets.captions.journal import Journal, pending
from flowloom.datasets.captions.store import CaptionError, CaptionRef, CaptionStore, Change
from flowloom.errors import ConfigError, DataError, Problem, RunError
from flowloom.run.directory import RunDir
from flowloom.storage.base import StorageSection
from flowloom.tasks.base import Progress
from flowloom.tasks.restore_captions import CHANGES, RestoreConfig
from flowloom.tasks.tagging.config import DescribingConfig, is_bucket
from flowloom.tasks.tagging.image_sets import BucketImages, FolderImages, ImageSet, JsonlImages, Target
from flowloom.tasks.tagging.processes import Load
from flowloom.tasks.tagging.session import NAMED, Outcome, Session, write
from flowloom.tasks.tagging.shares import Shares, join_shares, journal_path, merge_journals


def open_images(data_path: str, image_folder: str, suffix: str, storage: StorageSection) -> ImageSet:
    """The images of a folder, a bucket or a JSONL.

    Raises:
        DataError: there is no such folder or file.
        SourceError: the bucket cannot be opened.
    """
    if is_bucket(data_path):
        return BucketImages(data_path, suffix, storage)
    if Path(data_path).is_file():
        return JsonlImages(Path(data_path), Path(image_folder) if image_folder else None, storage)
    return FolderImages(Path(data_path), suffix)


def require_access(store: CaptionStore) -> None:
    """Check that captions can be written, before work that would be lost.

    Raises:
        DataError: they cannot.
    """
    try:
        store.require_access()
    except CaptionError as error:
        raise DataError(f"{error} {error.hint}".rstrip()) from error


def describe(config: DescribingConfig, progress: Progress, find: Callable[[], Load]) -> None:
    """Describe the images of `config` with the model that `find` finds, and write result.json.

    A change is in the run's journal before it is in the dataset: a resumed run repeats no image of the
    journal, and first writes captions that a killed process did not.

    Raises:
        FlowloomError: there is no usable image, or no usable model.
    """
    shares = join_shares()
    progress.phase("listing")
    images = open_images(config.data_path, config.image_folder_path, config.caption_suffix, config.storage)
    with closing(images.store):
        if not config.preview:
            require_access(images.store)
        targets = images.targets()
        if not targets:
            first = f" {images.unusable[0].where}: {images.unusable[0].reason}." if images.unusable else ""
            raise DataError(f"{config.data_path}: no image to describe.{first}")
        work = Work(config, progress, images, find)
        if shares.size == 1:
            work.alone(targets)
        else:
            work.share(targets, shares)
    shares.leave()


@dataclass(frozen=True)
class Work:
    """The images of a run, and the model that describes them."""

    config: DescribingConfig
    progress: Progress
    images: ImageSet
    find: Callable[[], Load]

    def alone(self, targets: list[Target]) -> None:
        """Describe all images in this process."""
        merge_journals(self.progress.run_dir.path)
        with closing(Journal(self.progress.run_dir.path / CHANGES)) as journal:
            session = Session(self.config, self.progress, self.images, journal, len(targets))
            session.finish_earlier()
            about = session.describe(targets, self.find)
            session.write_at_end()
            session.save(about)

    def share(self, targets: list[Target], shares: Shares) -> None:
        """Describe the share of this rank; the first rank writes the result of all.

        Raises:
            RunError: another rank ended.
        """
        run = self.progress.run_dir.path
        self.progress.takes_requests = False
        if shares.rank == 0:
            merge_journals(run)
            with closing(Journal(run / CHANGES)) as journal:
                Session(self.config, self.progress, self.images, journal, len(targets)).finish_earlier()
        unusable, self.images.unusable = self.images.unusable, []
        shares.wait()
        with closing(Journal(run / CHANGES)) as merged:
            known = frozenset(merged.offsets)
        with closing(Journal(journal_path(run, shares.rank))) as journal:
            own = shares.own(targets)
            session = Session(self.config, self.progress, self.images, journal, len(own), known)
            about = session.describe(own, self.find)
        results = shares.gathered((about, session.outcome))
        if shares.rank == 0:
            self.progress.run_dir.take_control("stop")
            merge_journals(run)
            with closing(Journal(run / CHANGES)) as journal:
                final = Session(self.config, self.progress, self.images, journal, len(targets))
                final.outcome = Outcome.total(len(targets), unusable, [outcome for _, outcome in results])
                final.write_at_end()
                model = next((about for about, _ in results if about), dict[str, Any]())
                final.save(model and model | {"processes": shares.size})


def restore(config: RestoreConfig, progress: Progress) -> None:
    """Restore the captions from before the run at `run_path`; body of the task `restore-captions`.

    Raises:
        FlowloomError: there is no such run, it wrote to other data, or it is running.
    """
    run = RunDir.open(config.run_path)
    if run.is_running():
        raise RunError(f"{run.path} is running and would write more captions. Stop it first.")
    described = run.read_run()["config"]
    # The files to write are not taken from the run directory, which may come from somewhere else.
    if not _is_same_place(config.data_path, str(described.get("data_path"))):
        message = f"the run {run.path} wrote to {described.get('data_path')}."
        raise ConfigError(str(run.path), [Problem("data_path", message)])
    suffix = ".caption" if described.get("caption_suffix") == ".caption" else ".txt"
    progress.phase("restoring")
    merge_journals(run.path)
    store = open_images(config.data_path, "", suffix, config.storage).store
    require_access(store)
    changed: list[CaptionRef] = []
    with closing(store), closing(Journal(run.path / CHANGES)) as journal:
        changes = _watched(journal.changes(store), len(journal.offsets), progress)
        written = write(store, pending(store, changes, changed, is_undo=True), "then resume this run")
    changed_meanwhile = [store.label(ref.place) for ref in (*changed, *written.changed_meanwhile)]
    progress.save_result(
        {"num_restored": written.num_written, "changed_meanwhile": changed_meanwhile[:NAMED]}
    )


def _is_same_place(one: str, other: str) -> bool:
    if is_bucket(one) or is_bucket(other):
        return one.rstrip("/") == other.rstrip("/")
    return Path(one).resolve() == Path(other).resolve()


def _watched(changes: Iterable[Change], total: int, progress: Progress) -> Iterator[Change]:
    """Report progress; after a stop request, pass on no more changes."""
    for number, change in enumerate(changes, start=1):
        if progress.is_stopped():
            return
        yield change
        progress.step(number, total)
