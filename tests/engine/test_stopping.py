"""A stop at any moment ends a run as `stopped`, with all that was trained; nothing is lost or made twice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from flowloom.engine.__main__ import run_engine
from flowloom.engine.stopping import Abandoned, StopSignals
from flowloom.run.directory import RunDir
from flowloom.run.events import read_events


@pytest.fixture
def signals() -> Iterator[StopSignals]:
    with StopSignals(grace_s=0.3).listening() as listening:
        yield listening


def ask(number: int = signal.SIGTERM) -> None:
    os.kill(os.getpid(), number)


def work(signals: StopSignals, *asked_after_s: float, at_once: bool = False) -> float:
    """Asks after so many seconds each, works until it is abandoned; how long that took."""
    began = time.monotonic()
    with pytest.raises(Abandoned):
        _work(signals, asked_after_s, at_once)
    return time.monotonic() - began


def _work(signals: StopSignals, asked_after_s: tuple[float, ...], at_once: bool = False) -> None:
    with signals.interruptible(at_once=at_once):
        for seconds in asked_after_s:
            time.sleep(seconds)
            ask()
        time.sleep(30)


def test_a_step_that_ends_within_the_grace_period_is_not_cut(signals: StopSignals) -> None:
    with signals.interruptible():
        ask()
        time.sleep(0.05)
    assert signals.is_wished


def test_work_that_takes_longer_is_abandoned(signals: StopSignals) -> None:
    assert 0.2 < work(signals, 0.0) < 10


def test_a_second_signal_abandons_at_once(signals: StopSignals) -> None:
    signals.grace_s = 60
    assert work(signals, 0.0, 0.6) < 10


def test_the_same_signal_delivered_twice_is_one(signals: StopSignals) -> None:
    signals.grace_s = 60
    with signals.interruptible():
        ask(signal.SIGINT)
        ask(signal.SIGINT)
        time.sleep(0.05)


def test_loading_is_abandoned_at_the_first_signal(signals: StopSignals) -> None:
    signals.grace_s = 60
    assert work(signals, 0.0, at_once=True) < 10


def test_a_shielded_call_is_not_interrupted(signals: StopSignals) -> None:
    done: list[str] = []

    def write() -> None:
        with signals.interruptible():
            with signals.shielded():
                ask()
                time.sleep(0.6)
                done.append("whole")
            done.append("never")

    with pytest.raises(Abandoned):
        write()
    assert done == ["whole"]


def test_a_step_whose_weights_have_changed_is_not_cut(signals: StopSignals) -> None:
    done: list[str] = []
    with signals.interruptible():
        ask()
        with signals.committing():
            time.sleep(0.6)
        done.append("told")
    assert done == ["told"]
    with pytest.raises(Abandoned):
        _work(signals, ())


def test_a_hang_up_that_nohup_ignores_stops_nothing() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignals().listening() as listening:
            ask(signal.SIGHUP)
            assert not listening.is_wished
    finally:
        signal.signal(signal.SIGHUP, before)


def events(run_dir: RunDir) -> list[dict[str, Any]]:
    return list(read_events(run_dir.events_jsonl))


def start(run_dir: RunDir) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "flowloom.engine", str(run_dir.path)]
    return subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE)


def wait_for(process: subprocess.Popen[bytes], is_there: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not is_there():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_while_loading_ends_the_run_as_stopped(
    make_run: Callable[..., RunDir], number: signal.Signals
) -> None:
    run_dir = make_run(limits={"max_steps": 3})
    process = start(run_dir)
    wait_for(process, run_dir.pid_json.exists)
    process.send_signal(number)
    _, complaint = process.communicate(timeout=60)
    assert process.returncode == 0, complaint.decode()
    assert [(event["kind"], event.get("step")) for event in events(run_dir)][-1] == ("stopped", 0)
    run_engine(run_dir)
    assert events(run_dir)[-1]["kind"] == "finished"


def test_a_signal_in_a_long_step_saves_the_steps_before_it_and_repeats_none(
    make_run: Callable[..., RunDir], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As while a block is compiled: the step is given up, and the resumed run makes it again."""
    training = {"updates_per_large_batch": 2, "save_every": 100}
    whole = make_run("whole", training=training, limits={"max_steps": 6})
    run_engine(whole)

    cut = make_run("cut", training=training, limits={"max_steps": 6})
    monkeypatch.setattr("flowloom.engine.stopping.GRACE_S", 0.0)

    def in_step_four(event: dict[str, Any]) -> None:
        if event["kind"] == "step" and event["step"] == 3:
            threading.Timer(0.0, ask).start()

    run_engine(cut, in_step_four)
    stopped = events(cut)[-1]
    assert stopped["kind"] == "stopped"
    assert cut.latest_checkpoint() == cut.checkpoint_dir(stopped["step"])
    run_engine(cut)
    losses = [
        [(event["step"], event["loss"]) for event in events(run_dir) if event["kind"] == "step"]
        for run_dir in (whole, cut)
    ]
    assert losses[1] == losses[0]


@pytest.mark.slow
def test_a_signal_to_the_group_while_blocks_are_compiled_ends_as_stopped_with_a_save(
    make_run: Callable[..., RunDir], tmp_path: Path
) -> None:
    """The compiler is stood in for by one that never ends; like Ctrl-C, the signal reaches it as well."""
    compiler = tmp_path / "g++"
    compiler.write_text('#!/bin/sh\ntouch "$0.was-called"\nexec sleep 600\n')
    compiler.chmod(0o755)
    run_dir = make_run(limits={"max_steps": 2})
    run_engine(run_dir)
    config = run_dir.read_config()
    more = {
        "limits": config.limits.model_copy(update={"max_steps": 9}),
        "memory": config.memory.model_copy(update={"compile": True}),
    }
    run_dir.write_run(config.model_copy(update=more), "a test")
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "CXX": str(compiler),
        "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "inductor"),
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "flowloom.engine", str(run_dir.path)], env=environment, start_new_session=True
    )
    wait_for(process, Path(f"{compiler}.was-called").exists)
    os.killpg(process.pid, signal.SIGTERM)
    assert process.wait(60) == 0
    assert [(event["kind"], event.get("step")) for event in events(run_dir)][-1] == ("stopped", 2)
    assert run_dir.latest_checkpoint() == run_dir.checkpoint_dir(2)
