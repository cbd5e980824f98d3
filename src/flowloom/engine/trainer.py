"""The loop."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from itertools import chain, islice
from pathlib import Path
from typing import TypeVar, cast

from flowloom.data.loader import LoadedBatch, Skipped
from flowloom.engine import checkpoint
from flowloom.engine.build import Components
from flowloom.engine.collate import prepare, updates_of
from flowloom.engine.gradients import GradientWatch
from flowloom.engine.objective import LatentBatch
from flowloom.engine.preview import generate_previews, sections_due
from flowloom.engine.profiling import step_profiler
from flowloom.engine.report import Reporter, Stopwatch, Update
from flowloom.engine.retention import Leaving, leaving_after_save, leaving_before_save, leaving_when_full
from flowloom.engine.step import train_step
from flowloom.engine.stopping import StopSignals
from flowloom.engine.validation import validation_loss
from flowloom.errors import DataError, DiskFullError, SourceError
from flowloom.run.directory import RunDir, step_of

T = TypeVar("T")
SECONDS_BETWEEN_LOOKS = 1.0
"""At the run directory: whether it is still there."""


class Trainer:
    """Trains until a limit is reached or somebody asks it to stop."""

    def __init__(
        self,
        run_dir: RunDir,
        components: Components,
        reporter: Reporter,
        metadata: dict[str, str],
        signals: StopSignals,
    ):
        self.run_dir = run_dir
        self.components = components
        self.state = components.state
        self.config = components.state.config
        self.reporter = reporter
        self.metadata = metadata
        self.signals = signals
        """To this rank."""
        self.state.shield = signals.committing
        self.must_stop = False
        """By all ranks."""
        self._skipped_here: list[Skipped] = []
        """By this rank since the ranks last agreed."""
        # What was resumed from is on disk as it is.
        self._saved_step = self.state.position.step or -1
        self._started = time.monotonic() - self.state.position.seconds
        self._looked_at = 0.0
        self._gradients = GradientWatch(self.state)

    def fit(self) -> None:
        """Make updates from where the state stands until the run is over, then save."""
        self._say_if_over()
        trace_path = self.run_dir.path / "trace.json" if self.config.training.do_profiling else None
        try:
            with step_profiler(trace_path) as count_step:
                self._train(count_step)
            self._say_of_gradients(is_last=True)
            self.components.encoders.begin_epoch()
        except SourceError:
            # Of several ranks the others may be anywhere, unless they agreed.
            if self.state.ranks.size == 1:
                self._save_before_failing()
            raise
        self.save()
        step = self.state.position.step
        self.reporter.emit("stopped" if self.must_stop else "finished", step=step)

    def _train(self, count_step: Callable[[], None]) -> None:
        watch = Stopwatch()
        packs = _packs(self._loaded_batches())
        while (pack := self._together(lambda: next(packs, None))) is not None:
            waited = watch.lap()
            self._skipped_here += chain.from_iterable(loaded.skipped for loaded in pack)
            for update in self._updates(pack):
                self.reporter.step(self.state, update, waited + watch.lap(), waited, self._eta())
                waited = 0.0
                count_step()
                self._after_step(pack, update.num_samples)
                watch.lap()
                if self._is_over():
                    return
            # A batch of which nothing could be used may be the last.
            if self._is_over():
                return

    def _updates(self, pack: list[LoadedBatch]) -> Iterator[Update]:
        """One update or several of a batch; of a pack of batches, one.

        Where no sample of an update counts on any rank, the update is left out on all of them: momentum and
        weight decay would move the weights for nothing.
        """
        position = self.state.position
        weights, counts = self._totals(pack)
        if not any(weights):
            self._next_batch(len(pack))
            return
        with self._interruptible():
            batches = self._together(
                lambda: [
                    (prepare(self.state, loaded, self.components.encoders), loaded.update_sizes)
                    for loaded in pack
                ]
            )
        updates = zip(*(updates_of(batch, sizes, position.update) for batch, sizes in batches), strict=True)
        for number, parts in enumerate(updates, start=position.update):
            before = position.step
            try:
                update = (
                    self._update(parts, number / len(weights), counts[number]) if weights[number] else None
                )
            finally:
                # An update that was abandoned is still the next one: a resumed run makes it.
                if position.step > before or not weights[number]:
                    position.update += 1
                    if position.update == len(weights):
                        self._next_batch(len(pack))
            if update:
                yield update

    def _together(self, work: Callable[[], T]) -> T:
        """What `work` gives; where a store fails any rank in it, all ranks save a checkpoint and end.

        Raises:
            SourceError: a store failed this rank, or another one.
        """
        try:
            result, failure = work(), None
        except SourceError as error:
            result, failure = None, error
        (num_failed,) = self.state.ranks.total(failure is not None)
        if num_failed:
            self._save_before_failing()
            raise failure or SourceError("A store failed another rank of this run, which says why.")
        return cast("T", result)

    def _save_before_failing(self) -> None:
        """Save what was trained, where the weights are whole and no checkpoint has them yet."""
        if self.state.is_whole and self.state.position.step:
            self.save()

    def _update(self, parts: tuple[LatentBatch, ...], done_of_batch: float, num_samples: int) -> Update:
        position = self.state.position
        position.progress = self._progress(done_of_batch)
        # Before each update, not each batch: a run that resumes within a batch turns when others do.
        self.state.rotate_if_due()
        with self._interruptible():
            metrics = train_step(self.state, *parts)
        return Update(metrics, position.step, position.epoch, position.batch, num_samples)

    def _interruptible(self) -> AbstractContextManager[None]:
        """Around long work; one of several ranks would leave the others alone."""
        return self.signals.interruptible() if self.state.ranks.size == 1 else nullcontext()

    def _totals(self, pack: list[LoadedBatch]) -> tuple[list[float], list[int]]:
        """Of each update the sum of its samples' loss weights, and their number, over all ranks.

        What any rank had to leave out is reported.
        """
        count = len(pack[0].update_sizes)
        weights, counts = [0.0] * count, [0] * count
        for loaded in pack:
            samples = iter(loaded.samples)
            for number, size in enumerate(loaded.update_sizes):
                weights[number] += sum(sample.loss_weight for sample in islice(samples, size))
                counts[number] += size
        *totals, is_skipped = self.state.ranks.total(*weights, *counts, bool(self._skipped_here))
        if is_skipped:
            self._count_skipped()
        return totals[:count], [int(total) for total in totals[count:]]

    def _next_batch(self, count: int) -> None:
        position = self.state.position
        position.update = 0
        position.batch += count
        if position.batch >= self.components.loader.num_batches(position.epoch):
            position.epoch, position.batch = position.epoch + 1, 0

    def _loaded_batches(self) -> Iterator[LoadedBatch]:
        """Batches from the state's position on, epoch after epoch."""
        position = self.state.position
        if position.step == 0 and position.epoch == 0 and position.batch == 0:
            position.batch = max(
                0, min(self.config.dataloader.offset, self.components.loader.num_batches(0) - 1)
            )
        if self._is_over():
            return
        epoch, step_before = -1, -1
        for loaded in self.components.loader.endless(position.epoch, position.batch, self._gives_up):
            if loaded.epoch != epoch:
                if position.step == step_before:
                    raise self._nothing_counts(epoch)
                epoch, step_before = loaded.epoch, -1 if loaded.index else position.step
                self.components.encoders.begin_epoch()
            if loaded.epoch > position.epoch:
                # No row had its turn in the epochs between.
                position.epoch, position.batch = loaded.epoch, 0
                if self._is_over():
                    return
            yield loaded

    def _nothing_counts(self, epoch: int) -> DataError:
        path = self.components.loader.dataset.path
        return DataError(
            f"{path}: epoch {epoch + 1} made no step, because every usable row has loss_weight 0. Set "
            "loss_weight above 0 for the rows, or the datasets, that you want to train."
        )

    def _gives_up(self) -> bool:
        """Whether to stop while a batch is waited for; one of several ranks would leave the others alone."""
        self._look_at_run_dir()
        if self.state.ranks.size == 1 and not self.must_stop:
            self.must_stop = self.signals.is_wished or self.run_dir.take_control("stop")
        return self.must_stop

    def _look_at_run_dir(self) -> None:
        """Raises RunError where the run directory is gone: nobody would see what is trained."""
        now = time.monotonic()
        if self.state.ranks.is_first and now - self._looked_at > SECONDS_BETWEEN_LOOKS:
            self._looked_at = now
            self.run_dir.require_in_place()

    def _after_step(self, pack: list[LoadedBatch], num_samples: int) -> None:
        step, training = self.state.position.step, self.config.training
        self.state.position.samples += num_samples
        self._say_of_gradients()
        checkpoint_asked, sample_asked = self._agree()
        if step % (self.config.validation.every or training.save_every) == 0:
            with self._interruptible():
                self.validate()
        sections = sections_due(self.config, step, sample_asked)
        if sections and self.state.ranks.is_first:
            caption = next((sample.caption for loaded in pack for sample in loaded.samples), None)
            with self._interruptible():
                folder = generate_previews(
                    self.run_dir, self.state, self.components.sample_generator, sections, caption
                )
            self.reporter.emit("sampled", step=step, dir=str(folder.relative_to(self.run_dir.path)))
        if step % training.save_every == 0 or checkpoint_asked:
            self.save()

    def _say_of_gradients(self, *, is_last: bool = False) -> None:
        finding = self._gradients.after_step(is_last=is_last)
        if finding:
            self.reporter.emit("warning", message=finding.message, hint=finding.hint)

    def _agree(self) -> tuple[bool, bool]:
        """Whether any rank wishes for a checkpoint, a preview; one clock and one end for all."""
        self._look_at_run_dir()
        ranks, position = self.state.ranks, self.state.position
        stop, save, sample = (
            ranks.is_first and self.run_dir.take_control(name) for name in ("stop", "checkpoint", "sample")
        )
        seconds = time.monotonic() - self._started
        *wished, seconds = ranks.total(stop or self.signals.is_wished, save, sample, seconds)
        position.seconds = seconds / ranks.size
        self.must_stop, checkpoint_asked, sample_asked = map(bool, wished)
        return checkpoint_asked, sample_asked

    def save(self) -> None:
        """Write a checkpoint of the current step, unless there is one, and retire old ones."""
        position = self.state.position
        self.reporter.flush(position)
        if position.step == self._saved_step:
            return
        if self.state.ranks.is_first:
            self.run_dir.require_in_place()
            self._remove(leaving_before_save(self.run_dir, self.config))
            folder = self._saved()
            self.reporter.emit("saved", step=position.step, dir=str(folder.relative_to(self.run_dir.path)))
            self._remove(leaving_after_save(self.run_dir, self.config))
        self._saved_step = position.step
        self.state.ranks.wait()

    def _saved(self) -> Path:
        """The new checkpoint; older ones make room for it as far as they may."""
        while True:
            try:
                return checkpoint.save(self.run_dir, self.state, self.metadata)
            except DiskFullError as error:
                leaving = leaving_when_full(self.run_dir, self.config, str(error))
                if leaving is None or not error.can_be_freed:
                    raise
                self._remove([leaving])

    def _remove(self, leaving: Iterable[Leaving]) -> None:
        for folder, reason in leaving:
            checkpoint.discard(folder)
            place = str(folder.relative_to(self.run_dir.path))
            self.reporter.emit("removed", step=step_of(folder), dir=place, reason=reason)

    def validate(self) -> None:
        """Measure the loss on the held-out rows, of the weights and of their average."""
        if self.components.validation is None or not self.state.ranks.is_first:
            return
        self._say_validated("raw")
        if self.state.ema:
            with self.state.ema.swapped_in(self.state.weights):
                self._say_validated("ema")
        if self.state.ranks.size == 1:
            self._count_skipped()

    def _say_validated(self, weights: str) -> None:
        components = self.components
        assert components.validation is not None
        losses = validation_loss(
            self.state, components.validation, components.encoders, self._skipped_here.extend
        )
        if not losses:
            return
        mean = sum(losses.values()) / len(losses)
        step = self.state.position.step
        self.reporter.emit("validated", step=step, weights=weights, loss=mean, by_quantile=losses)

    def report_unusable_rows(self) -> None:
        """Say once a run which lines of the JSONL cannot be trained."""
        dataset = self.components.loader.dataset
        if self.state.position.step == 0:
            for problem in dataset.metadata.problems:
                file = str(dataset.sources[problem.dataset].path)
                self.reporter.emit("skipped", file=file, line=problem.line, reason=problem.reason)

    def _count_skipped(self) -> None:
        """Say what rows could not be used, by any rank; too many end the run, on all ranks at once."""
        dataset, known = self.components.loader.dataset, self.state.position.skipped
        everywhere = self.state.ranks.gathered(self._skipped_here)
        self._skipped_here = []
        for skipped in everywhere:
            file = str(dataset.sources[skipped.dataset].path)
            place = f"{file}:{skipped.line}"
            if place not in known:
                known[place] = f"{skipped.filename}: {skipped.reason}"
                self.reporter.emit("skipped", file=file, line=skipped.line, reason=known[place])
        if everywhere:
            dataset.check_skipped(known)

    def _is_over(self) -> bool:
        return self.must_stop or bool(self._reached())

    def _reached(self) -> list[str]:
        """The limits that the run has reached."""
        limits, position = self.config.limits, self.state.position
        done = (
            ("limits.max_steps", limits.max_steps, position.step),
            ("limits.max_epochs", limits.max_epochs, position.epoch),
            ("limits.max_minutes", limits.max_minutes and limits.max_minutes * 60, position.seconds),
        )
        return [path for path, limit, so_far in done if limit is not None and so_far >= limit]

    def _say_if_over(self) -> None:
        """Say why a run that is resumed makes no step."""
        reached = " and ".join(self._reached())
        if reached:
            message = f"No steps are left: at step {self.state.position.step} the run has reached {reached}."
            self.reporter.emit("warning", message=message, hint=f"Raise {reached} to train on.")

    def _progress(self, done_of_batch: float = 0.0) -> float:
        """The share of the run that is done, by the nearest limit, or 0 where there is none.

        Args:
            done_of_batch: share of the current batch that is done.
        """
        limits, position = self.config.limits, self.state.position
        shares = [0.0]
        if limits.max_steps:
            shares.append(position.step / limits.max_steps)
        if limits.max_epochs:
            batches = max(self.components.loader.num_batches(position.epoch), 1)
            done = position.epoch + (position.batch + done_of_batch) / batches
            shares.append(done / limits.max_epochs)
        if limits.max_minutes:
            shares.append(position.seconds / (limits.max_minutes * 60))
        return min(max(shares), 1.0)

    def _eta(self) -> float | None:
        """Seconds until the first limit is reached, at the mean speed so far; None without a limit."""
        seconds, share = time.monotonic() - self._started, self._progress()
        return seconds * (1 - share) / share if share else None


def _packs(batches: Iterator[LoadedBatch]) -> Iterator[list[LoadedBatch]]:
    """Batches that are trained in one update, together; what was begun and given up is left out."""
    pack: list[LoadedBatch] = []
    for loaded in batches:
        pack.append(loaded)
        if not loaded.goes_on:
            yield pack
            pack = []
