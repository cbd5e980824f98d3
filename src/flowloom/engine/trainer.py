"""The training loop."""

from __future__ import annotations

from collections.abc import Callable

from flowloom.engine.build import Components
from flowloom.engine.controls import Controls
from flowloom.engine.gradients import Finding, GradientWatch
from flowloom.engine.position import reached_limits, share_done
from flowloom.engine.preview import generate_previews, sections_due
from flowloom.engine.profiling import step_profiler
from flowloom.engine.report import Reporter, Stopwatch, Update
from flowloom.engine.saves import Saves
from flowloom.engine.skipped_rows import SkippedRows
from flowloom.engine.speed_watch import SpeedWatch
from flowloom.engine.step import train_step
from flowloom.engine.stopping import StopSignals
from flowloom.engine.updates import UpdateBatch, Updates
from flowloom.engine.validation import validation_loss
from flowloom.errors import SourceError
from flowloom.run.directory import RunDir


class Trainer:
    """Trains until a limit is reached or a stop is requested."""

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
        self.saves = Saves(run_dir, self.state, reporter, metadata)
        self.state.shield = signals.committing
        self.controls = Controls(run_dir, signals, self.state.ranks, self.state.position.seconds)
        self.skipped = SkippedRows(components.loader.dataset, self.state, reporter)
        self.updates = Updates(components, self.controls, self.skipped)
        self._gradients = GradientWatch(self.state)
        self._speed = SpeedWatch(self.state.precision.device)

    def fit(self) -> None:
        """Train from the state's position to the end of the run, then save."""
        self.skipped.report_invalid_lines()
        self._warn_if_over()
        trace_path = self.run_dir.path / "trace.json" if self.config.training.do_profiling else None
        try:
            with step_profiler(trace_path) as count_step:
                self.train(count_step)
            self._warn(self._gradients.after_step(is_last=True))
            self.components.encoders.begin_epoch()
        except SourceError:
            # The ranks can save together only where they failed together.
            if self.state.ranks.size == 1 or self.updates.has_failed_everywhere:
                self._save_before_failing()
            raise
        self.saves.save()
        step = self.state.position.step
        self.reporter.emit("stopped" if self.controls.must_stop else "finished", step=step)

    def train(self, count_step: Callable[[], None]) -> None:
        """The loop: an update; report; validate, preview and save when due; until the run is over."""
        position, every = self.state.position, self.config.training.save_every
        watch = Stopwatch()
        for batch in self.updates:
            if not batch.has_weight:
                self._finish(batch)
            else:
                update = self.step(batch)
                seconds = watch.lap()
                self.reporter.step(self.state, update, seconds, batch.wait_s, self._eta())
                count_step()
                self._warn(self._gradients.after_step())
                self._warn(self._speed.after_step(seconds, batch.wait_s))
                requests, position.seconds = self.controls.poll()
                if position.step % (self.config.validation.every or every) == 0:
                    self.validate()
                self.preview(batch.caption, is_requested=requests.preview)
                if position.step % every == 0 or requests.checkpoint:
                    in_background = self.config.checkpoint.in_background and not self.is_over
                    self.saves.save(in_background=in_background)
                self.saves.check()
            watch.lap()
            if self.is_over:
                return

    def step(self, batch: UpdateBatch) -> Update:
        """Make one update and move the position behind it.

        An update that is abandoned before it changes the weights stays the next one.
        """
        position = self.state.position
        position.progress = self._share_done(batch.number / batch.num_updates)
        # Before each update, not each batch: a run that resumes within a batch rotates at the same step.
        self.state.rotate_if_due()
        step_before = position.step
        try:
            with self.controls.interruptible():
                metrics = train_step(self.state, *batch.batches)
            return Update(metrics, position.step, position.epoch, position.batch, batch.num_samples)
        finally:
            if position.step > step_before:
                position.samples += batch.num_samples
                self._finish(batch)

    def _finish(self, batch: UpdateBatch) -> None:
        batches_of = self.components.loader.num_batches
        self.state.position.finish_update(batch.num_updates, batch.num_batches, batches_of)

    @property
    def is_over(self) -> bool:
        """True if a stop was requested or a limit is reached."""
        return self.controls.must_stop or bool(reached_limits(self.config, self.state.position))

    def _share_done(self, done_of_batch: float = 0.0) -> float:
        batches_of = self.components.loader.num_batches
        return share_done(self.config, self.state.position, batches_of, done_of_batch)

    def _eta(self) -> float | None:
        """Seconds until the first limit is reached, at the mean speed so far; None without a limit."""
        share = self._share_done()
        return self.controls.seconds * (1 - share) / share if share else None

    def validate(self) -> None:
        """Measure the loss on the held-out rows, with the weights and with their average."""
        if self.components.validation is None or not self.state.runs_network:
            return
        with self.controls.interruptible():
            self._emit_validated("raw")
            if self.state.ema:
                with self.state.averaged():
                    self._emit_validated("ema")
            if self.state.ranks.size == 1:
                self.skipped.report()

    def _emit_validated(self, weights: str) -> None:
        loader = self.components.validation
        assert loader is not None
        losses = validation_loss(self.state, loader, self.components.encoders, self.skipped.add)
        if not losses:
            return
        mean = sum(losses.values()) / len(losses)
        step = self.state.position.step
        self.reporter.emit("validated", step=step, weights=weights, loss=mean, by_quantile=losses)

    def preview(self, batch_caption: str | None, *, is_requested: bool) -> None:
        """Generate the previews that are due at this step, or all of them if requested."""
        step = self.state.position.step
        sections = sections_due(self.config, step, is_requested)
        if not sections or not self.state.runs_network:
            return
        generator = self.components.sample_generator
        with self.controls.interruptible():
            folder = generate_previews(self.run_dir, self.state, generator, sections, batch_caption)
        self.reporter.emit("sampled", step=step, dir=str(folder.relative_to(self.run_dir.path)))

    def _save_before_failing(self) -> None:
        """Save what was trained, unless the weights are in the middle of an update."""
        if self.state.is_whole and self.state.position.step:
            self.saves.save()

    def _warn(self, finding: Finding | None) -> None:
        if finding:
            self.reporter.emit("warning", message=finding.message, hint=finding.hint)

    def _warn_if_over(self) -> None:
        """Say why a run that is resumed makes no step."""
        reached = " and ".join(reached_limits(self.config, self.state.position))
        if reached:
            message = f"No steps are left: at step {self.state.position.step} the run has reached {reached}."
            self.reporter.emit("warning", message=message, hint=f"Raise {reached} to train on.")
