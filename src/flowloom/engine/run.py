"""One session of a run: from loading its networks to its last checkpoint."""

from __future__ import annotations

import json

from flowloom.config.remote_models import with_local_models
from flowloom.config.run import RunConfig
from flowloom.config.secrets import usable_secrets
from flowloom.engine import checkpoint
from flowloom.engine.build import Components, build
from flowloom.engine.hub_upload import HubUploads
from flowloom.engine.mirror_upload import MirrorUploads
from flowloom.engine.parallel.agreement import require_same_files
from flowloom.engine.parallel.ranks import Ranks
from flowloom.engine.parallel.strategy import with_strategy
from flowloom.engine.report import OnEvent, Reporter
from flowloom.engine.rows import keep_rows
from flowloom.engine.state import TrainState
from flowloom.engine.stopping import StopSignals
from flowloom.engine.trackers import Tracker
from flowloom.engine.trainer import Trainer
from flowloom.models.adapters.formats import adapter_metadata
from flowloom.printable import printable_value
from flowloom.run.directory import RunDir, step_of, versions
from flowloom.run.events import EventWriter
from flowloom.storage.local_copy import watch_as_phases


class Session:
    """Trains the run of a run directory, from its newest checkpoint if there is one."""

    def __init__(
        self, run_dir: RunDir, config: RunConfig, ranks: Ranks, signals: StopSignals, on_event: OnEvent
    ):
        self.run_dir, self.config, self.ranks, self.signals = run_dir, config, ranks, signals
        self.reporter = _reporter(run_dir, config, ranks, on_event)
        self.mirror = _mirror(run_dir, config, self.reporter, signals)
        self.reporter.shield = signals.shielded
        self.trainer: Trainer | None = None

    def train(self) -> None:
        """Load everything, then train until a limit is reached or a stop is requested.

        Raises:
            Abandoned: a stop interrupted it; call `end_as_stopped` next.
        """
        reporter = self.reporter
        with self.signals.interruptible(at_once=True):
            if self.mirror:
                self.mirror.start()
            reporter.emit("phase", name="loading")
            components = self._load()
        try:
            self.trainer = Trainer(self.run_dir, components, reporter, _metadata(components), self.signals)
            self.trainer.fit()
        finally:
            components.images.close()
            if self.trainer:
                self.trainer.saves.wait()

    def _load(self) -> Components:
        reporter, latest = self.reporter, self.run_dir.latest_checkpoint()

        def warn(message: object) -> None:
            reporter.emit("warning", message=str(message))

        config = with_local_models(self.config, watch_as_phases(reporter.emit, lambda: None))
        config = keep_rows(config, self.run_dir, self.ranks, warn)
        require_same_files(config, self.ranks)
        config = with_strategy(config, self.ranks)
        components = build(config, self.ranks, warn)
        state = components.state
        if latest:
            checkpoint.load(latest, state)
        if self.ranks.is_first:
            self.run_dir.abandon_samples(state.position.step)
        reporter.emit(
            "started",
            versions=versions(),
            device=_devices(state),
            method=self.config.method_kind,
            trained_params=sum(weight.numel() for weight in state.trained.values()),
            total_params=sum(weight.numel() for weight in state.model.parameters()),
            resumed_from=state.position.step if latest else None,
        )
        reporter.emit("phase", name="training")
        return components

    def end_as_stopped(self) -> None:
        """Save the state if the abandoned step left it consistent, and report that the run stopped."""
        # With several ranks the others may be at another step, and a checkpoint needs all of them.
        if self.trainer and self.trainer.state.is_whole and self.ranks.size == 1:
            self.trainer.saves.save()
        latest = self.run_dir.latest_checkpoint()
        self.reporter.emit("stopped", step=step_of(latest) if latest else 0)


def _devices(state: TrainState) -> str:
    """The device and, of several ranks, their number and strategy."""
    device, num_ranks, group = state.precision.device, state.ranks.size, state.config.parallel.shard_ranks
    if num_ranks == 1:
        return str(device)
    if not state.shards:
        return f"{device}, {num_ranks} ranks"
    return f"{device}, sharded over {num_ranks} ranks" + (f" in groups of {group}" if group else "")


def _reporter(run_dir: RunDir, config: RunConfig, ranks: Ranks, on_event: OnEvent) -> Reporter:
    if not ranks.is_first:
        return Reporter(None, on_event)
    public = printable_value("", config.model_dump(mode="json"))
    reporter = Reporter(EventWriter(run_dir.events_jsonl, usable_secrets().values()), on_event)
    for spec in config.loggers:
        reporter.trackers.append(Tracker(spec, spec.kind, run_dir.path, public, reporter.emit))
    if config.hub.repo_id:
        uploads = HubUploads(config.hub.repo_id, config.hub.private, run_dir.path, reporter.emit)
        reporter.followers.append(uploads)
    return reporter


def _mirror(
    run_dir: RunDir, config: RunConfig, reporter: Reporter, signals: StopSignals
) -> MirrorUploads | None:
    if reporter.writer is None or config.mirror.url is None:
        return None
    mirror = MirrorUploads(run_dir, config, reporter.emit, lambda: signals.seconds_since_request)
    reporter.followers.append(mirror)
    return mirror


def _metadata(components: Components) -> dict[str, str]:
    """Metadata of every weights file on its training."""
    config = components.state.config.model_dump_json()
    dataset = components.loader.dataset.summary()
    if components.state.adapter:
        return adapter_metadata(components.state.adapter.metadata, config, dataset, versions())
    return {
        "format": "pt",
        "flowloom.config": config,
        "flowloom.dataset": json.dumps(dataset),
        "flowloom.versions": json.dumps(versions()),
    }
