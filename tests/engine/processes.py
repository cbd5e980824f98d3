"""Engine processes for tests, forked from a process that has imported everything: 0.1 s in place of 5."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from flowloom.run.directory import RunDir

_forks = multiprocessing.get_context("forkserver")
_forks.set_forkserver_preload(["tests.engine.preload"])


class ForkedProcess:
    """`call()` in a separate process, with standard output and error in a file; an API like Popen's."""

    def __init__(
        self, call: Callable[..., int], *arguments: object, environ: Mapping[str, str] | None = None
    ):
        handle, name = tempfile.mkstemp(prefix="flowloom-test-")
        os.close(handle)
        self._output = Path(name)
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **(environ or {})}
        self._process = _forks.Process(target=_run, args=(call, arguments, environment, name), daemon=True)
        self._process.start()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def poll(self) -> int | None:
        """The exit status; negative: the signal that ended it; None: it runs."""
        return self._process.exitcode

    def wait(self, timeout: float = 300) -> int:
        self._process.join(timeout)
        status = self._process.exitcode
        if status is None:
            self._process.kill()
            raise TimeoutError(f"a process did not end within {timeout} s:\n{self.output()}")
        return status

    def send_signal(self, number: signal.Signals) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def output(self) -> str:
        """Its standard output and error so far."""
        return self._output.read_text(errors="replace")


def _run(
    call: Callable[..., int], arguments: tuple[object, ...], environ: dict[str, str], output: str
) -> None:
    os.environ.clear()
    os.environ.update(environ)
    descriptor = os.open(output, os.O_WRONLY | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115 -- for good
    sys.stderr = open(2, "w", closefd=False, buffering=1)  # noqa: SIM115
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    sys.exit(call(*arguments))


def _engine(run_dir: str) -> int:
    from flowloom.engine.__main__ import run_engine
    from flowloom.run.process import main

    sys.argv = ["flowloom.engine", run_dir]
    return main("flowloom.engine", run_engine)


def start_engine(run_dir: RunDir, environ: Mapping[str, str] | None = None) -> ForkedProcess:
    """`python -m flowloom.engine RUN_DIR`."""
    return ForkedProcess(_engine, str(run_dir.path), environ=environ)


def _engines(*run_dirs: str) -> int:
    from flowloom.engine.__main__ import run_on
    from flowloom.engine.parallel.ranks import join_ranks, leave_ranks
    from flowloom.engine.stopping import StopSignals

    with StopSignals().listening() as signals:
        ranks = join_ranks("cpu")
        for path in run_dirs:
            run_on(ranks, RunDir(Path(path)), RunDir(Path(path)).read_config(), signals)
        leave_ranks(ranks)
    return 0


def run_ranks(run_dir: RunDir, num_ranks: int, environ: Mapping[str, str] | None = None) -> int:
    """The engine on so many ranks, as torchrun starts them; the first exit status that is not 0."""
    return run_on_ranks(_engine, [str(run_dir.path)], num_ranks, environ)


def run_all_on_ranks(run_dirs: Sequence[RunDir], num_ranks: int) -> int:
    """`run_ranks` for one run after the other, in the same processes."""
    return run_on_ranks(_engines, [str(run_dir.path) for run_dir in run_dirs], num_ranks)


def free_port() -> int:
    """A port of this machine that is not in use."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def rank_environment(rank: int, num_ranks: int, port: int) -> dict[str, str]:
    """The variables that torchrun sets for a rank of one machine."""
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(num_ranks)}
    return {**place, "RANK": str(rank), "LOCAL_RANK": str(rank)}


def run_on_ranks(
    call: Callable[..., int],
    arguments: Sequence[str],
    num_ranks: int,
    environ: Mapping[str, str] | None = None,
) -> int:
    """`call(*arguments)` on so many ranks; the first exit status that is not 0."""
    port = free_port()
    ranks = [
        ForkedProcess(
            call, *arguments, environ={**(environ or {}), **rank_environment(rank, num_ranks, port)}
        )
        for rank in range(num_ranks)
    ]
    # Like torchrun: when a rank fails, the others are ended.
    while (status := next(filter(None, (rank.poll() for rank in ranks)), 0)) == 0:
        if all(rank.poll() == 0 for rank in ranks):
            return 0
        time.sleep(0.02)
    for rank in ranks:
        rank.send_signal(signal.SIGTERM)
    for rank in ranks:
        rank.wait(60)
    print("".join(rank.output() for rank in ranks))
    return status
