"""The engine's door: `python -m flowloom.engine RUN_DIR` trains what its run.json says, or resumes it."""

from __future__ import annotations

import json
import sys
import traceback
from contextlib import nullcontext
from pathlib import Path

import torch

from flowloom.engine import checkpoint
from flowloom.engine.build import Parts, build
from flowloom.engine.distributed import Ranks, join_ranks, leave_ranks
from flowloom.engine.hub import HubUploads
from flowloom.engine.report import OnEvent, Reporter
from flowloom.engine.rows import keep_rows
from flowloom.engine.trainer import Trainer, stopping_on_signals
from flowloom.errors import DiskFullError, FlowloomError, OutOfMemoryError, is_disk_full
from flowloom.parts.adapters.formats import adapter_metadata
from flowloom.parts.devices import choose_device
from flowloom.printable import printable_value
from flowloom.spec.events import EventWriter
from flowloom.spec.run import RunConfig
from flowloom.spec.rundir import RunDir, versions
from flowloom.spec.secrets import read_secrets, redact


def run_engine(run_dir: RunDir, on_event: OnEvent = lambda _event: None) -> None:
    """Train what `run_dir` describes, from its newest checkpoint if it has one, until it is over.

    Every end is an event: finished, stopped, or failed with what happened and what to do.

    Raises:
        FlowloomError: the run failed; the event has been written.
    """
    config = run_dir.read_config()
    ranks = join_ranks(choose_device(config.parallel.device).type)
    with run_dir.locked() if ranks.is_first else nullcontext():
        reporter = _reporter(run_dir, config, ranks, on_event)
        try:
            _train(run_dir, config, ranks, reporter)
        except Exception as error:
            failure = _explained(error, run_dir)
            with run_dir.log_txt.open("a") as log:
                log.write(redact("".join(traceback.format_exception(error)), read_secrets().values()))
            reporter.say("failed", error=type(failure).__name__, message=str(failure), cure=_cure(run_dir))
            raise failure from error
        finally:
            reporter.close()
            leave_ranks(ranks)


def _reporter(run_dir: RunDir, config: RunConfig, ranks: Ranks, on_event: OnEvent) -> Reporter:
    if not ranks.is_first:
        return Reporter(None, [], on_event)
    public = printable_value("", config.model_dump(mode="json"))
    loggers = [spec.build(run_dir.path, public) for spec in config.loggers]
    writer = EventWriter(run_dir.events_jsonl, read_secrets().values())
    reporter = Reporter(writer, loggers, on_event)
    if config.hub.repo_id:
        hub = HubUploads(config.hub.repo_id, config.hub.private, run_dir.path, reporter.say)
        reporter.loggers.append(hub)
    return reporter


def _train(run_dir: RunDir, config: RunConfig, ranks: Ranks, reporter: Reporter) -> None:
    reporter.say("phase", name="loading")
    config = keep_rows(config, run_dir, ranks, lambda message: reporter.say("warning", message=message))
    parts = build(config, ranks, lambda state: reporter.say("warning", message=str(state)))
    state = parts.state
    latest = run_dir.latest_checkpoint()
    if latest:
        checkpoint.load(latest, state)
    reporter.say(
        "started",
        versions=versions(),
        device=str(state.precision.device),
        method=config.method_kind,
        trained_params=sum(weight.numel() for weight in state.trained.values()),
        total_params=sum(weight.numel() for weight in state.model.parameters()),
        resumed_from=state.position.step if latest else None,
    )
    reporter.say("phase", name="training")
    trainer = Trainer(run_dir, parts, reporter, _metadata(parts))
    trainer.report_unusable_rows()
    try:
        with stopping_on_signals(trainer):
            trainer.fit()
    finally:
        parts.pictures.close()


def _metadata(parts: Parts) -> dict[str, str]:
    """What every weights file says about how it was made."""
    config = parts.state.config.model_dump_json()
    dataset = parts.loader.dataset.summary()
    if parts.state.adapter:
        return adapter_metadata(parts.state.adapter.metadata, config, dataset, versions())
    return {
        "format": "pt",
        "flowloom.config": config,
        "flowloom.dataset": json.dumps(dataset),
        "flowloom.versions": json.dumps(versions()),
    }


def _explained(error: Exception, run_dir: RunDir) -> Exception:
    """The error as one of ours where it is a known way to fail; any other one as it is."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error):
        return OutOfMemoryError(
            f"Out of memory ({error}). Lower training.train_minibatch (it does not change the result), set "
            "memory.checkpointed_blocks to all, or train a LoRA with lora.base_model_quant_level 8bit."
        )
    if isinstance(error, OSError) and is_disk_full(error):
        return DiskFullError(f"{run_dir.path}: the disk is full. Make room, then resume the run.")
    return error


def _cure(run_dir: RunDir) -> str:
    latest = run_dir.latest_checkpoint()
    if latest is None:
        return "Nothing was saved yet: mend the cause, then start the run again."
    return (
        f"{latest.name} is whole: mend the cause, then 'flowloom resume {run_dir.path}' goes on from there."
    )


def main() -> int:
    """Train the run directory named on the command line; 0 when it ended well, 2 when it failed."""
    if len(sys.argv) != 2:
        sys.stderr.write("usage: python -m flowloom.engine RUN_DIR\n")
        return 2
    try:
        run_engine(RunDir(Path(sys.argv[1])))
    except FlowloomError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
