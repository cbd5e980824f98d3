"""The engine's entry point: `python -m flowloom.engine RUN_DIR` starts or resumes the run in run.json.

Slow imports come after the signal handlers are set, so that a stop during them counts as a stop.
"""

from __future__ import annotations

import gc
import os
import traceback
from collections.abc import Callable, Generator
from contextlib import closing, contextmanager, nullcontext, suppress
from typing import TYPE_CHECKING, Any

from flowloom.config.secrets import redact, usable_secrets
from flowloom.engine.stopping import Abandoned, StopSignals
from flowloom.errors import FlowloomError, RankError, TrainingError
from flowloom.run.directory import RunDir
from flowloom.run.events import EventWriter
from flowloom.run.process import FAILED, run_module

if TYPE_CHECKING:
    from flowloom.config.run import RunConfig
    from flowloom.engine.parallel.ranks import Ranks
    from flowloom.engine.run import Session


def run_engine(run_dir: RunDir, on_event: Callable[[dict[str, Any]], None] = lambda _event: None) -> None:
    """Train the run in `run_dir`, from its newest checkpoint if there is one, to its end.

    Every end is an event: finished, stopped, or failed with a message and a hint.

    Raises:
        FlowloomError: the run failed; the event has been written.
    """
    # Importing PyTorch and diffusers makes a million objects. Searching them for garbage takes a fifth of the
    # time that a start needs.
    gc.set_threshold(100_000, 50, 100)
    with StopSignals().listening() as signals:
        from flowloom.engine.parallel.ranks import join_ranks, leave_ranks
        from flowloom.models.device import choose_device

        config = run_dir.read_config()
        try:
            ranks = join_ranks(choose_device(config.parallel.device).type)
        except RankError as error:
            _report_missing_ranks(run_dir, error)
            raise
        try:
            run_on(ranks, run_dir, config, signals, on_event)
        finally:
            leave_ranks(ranks)


def run_on(
    ranks: Ranks,
    run_dir: RunDir,
    config: RunConfig,
    signals: StopSignals,
    on_event: Callable[[dict[str, Any]], None] = lambda _event: None,
) -> None:
    """`run_engine` on ranks that have joined; they can train several runs."""
    from flowloom.engine.run import Session

    with _claimed(run_dir) if ranks.is_first else nullcontext():
        _run_session(Session(run_dir, config, ranks, signals, on_event))


def _report_missing_ranks(run_dir: RunDir, error: RankError) -> None:
    """Write the failure as an event, once: by the first rank."""
    if os.environ["RANK"] == "0":
        with (
            _claimed(run_dir),
            closing(EventWriter(run_dir.events_jsonl, usable_secrets().values())) as writer,
        ):
            writer.write("failed", error=type(error).__name__, message=str(error), hint=error.hint)


@contextmanager
def _claimed(run_dir: RunDir) -> Generator[None]:
    """Hold a run that is not in use, neither by a process nor by the job of a cluster."""
    if (run_dir.path / "launch").exists():
        from flowloom.launchers.jobs import require_not_submitted

        require_not_submitted(run_dir)
    with run_dir.locked():
        yield


def _run_session(session: Session) -> None:
    from flowloom.engine.failures import is_lost_rank

    try:
        try:
            session.train()
        except Abandoned:
            session.end_as_stopped()
        except Exception as error:
            # A signal to the process group also ends processes that the engine started, such as compilers.
            # torchrun does the same to the other ranks when one ends: that is a failure.
            is_stop = session.signals.is_wished and not is_lost_rank(error)
            if not is_stop or isinstance(error, FlowloomError):
                raise
            _log(session.run_dir, error)
            session.end_as_stopped()
    except Exception as error:
        raise _failed(session, error) from error
    finally:
        session.reporter.close()


def _failed(session: Session, error: Exception) -> FlowloomError:
    """Write the failure as an event, as far as the disk allows, and return the error as one of ours."""
    from flowloom.engine.failures import explained
    from flowloom.engine.trackers import set_exit_status

    failure = explained(error, session.run_dir)
    set_exit_status(FAILED)
    _log(session.run_dir, error)
    name = type(error if type(failure) is TrainingError else failure).__name__
    with suppress(OSError, FlowloomError):
        session.reporter.emit("failed", error=name, message=str(failure), hint=failure.hint)
    return failure


def _log(run_dir: RunDir, error: Exception) -> None:
    text = redact("".join(traceback.format_exception(error)), usable_secrets().values())
    with suppress(OSError, FlowloomError):
        run_dir.require_in_place()  # another run's log is not for this
        with run_dir.log_txt.open("a") as log:
            log.write(text)


if __name__ == "__main__":
    run_module("flowloom.engine", run_engine)
