"""Events written for a process that writes none: whole, in order, and with what lines do not tell."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from flowloom.run.directory import RunDir
from flowloom.run.events import FIELDS
from flowloom.server.runs.log_events import LogEventWriter
from flowloom.server.runs.process_files import StopRequest
from flowloom.trainers.flow_upstream.trainer import FlowUpstream

WHOLE = (2).to_bytes(8, "little") + b"{}"


class Reporting(FlowUpstream):
    """A trainer whose process says events as `say {...}`, as a shim inside of it may."""

    def parse(self, line: str) -> dict[str, Any] | None:
        """See Task.parse."""
        return json.loads(line.removeprefix("say ")) if line.startswith("say ") else super().parse(line)


@pytest.fixture
def run_dir(tmp_path: Path) -> RunDir:
    """A prepared run."""
    found = RunDir.create("run", tmp_path)
    found.run_json.write_text(json.dumps({"config": {"dataloader": {"batch_size": 4}}}))
    found.log_txt.write_text("what an earlier sitting said\nKeyError: 'old'\n")
    return found


def events_in(run_dir: RunDir) -> list[dict[str, Any]]:
    events = [json.loads(line) for line in run_dir.events_jsonl.read_text().splitlines()]
    for event in events:
        assert event.keys() == FIELDS[event["kind"]] | {"seq", "time", "kind"}
    return events


def log(run_dir: RunDir, text: str) -> None:
    with run_dir.log_txt.open("ab") as file:
        file.write(text.encode())


def writer_of(run_dir: RunDir, *, resumes: bool = False) -> LogEventWriter:
    return LogEventWriter(
        run_dir, Reporting(), ("cuda:0", "cuda:1"), resumes=resumes, versions={"torch": "2"}
    )


def bar(batch: int, batches: int = 6) -> str:
    return f"\rtraining, Rank 0:  10%|#| {batch}/{batches} [00:01<00:01,  2.00it/s]"


def test_counts_of_epochs_are_steps_of_the_run(run_dir: RunDir) -> None:
    writer = writer_of(run_dir)
    for text in (bar(0), bar(3), bar(6) + "\n", bar(0), bar(2)):
        log(run_dir, text)
        writer.update()
        writer._flush()
    log(run_dir, "\n")
    writer.end(0)
    events = events_in(run_dir)
    steps = [(e["step"], e["max_steps"], e["samples_per_s"]) for e in events if e["kind"] == "progress"]
    assert steps == [(0, 6, 8.0), (3, 6, 8.0), (6, 6, 8.0), (6, 12, 8.0), (8, 12, 8.0)]
    assert [e["epoch"] for e in events if e["kind"] == "progress"] == [0, 0, 0, 1, 1]
    started = next(event for event in events if event["kind"] == "started")
    assert (started["device"], started["resumed_from"]) == ("cuda:0, cuda:1", None)
    assert [event["kind"] for event in events[:3]] == ["phase", "started", "phase"]
    assert (events[-1]["kind"], events[-1]["step"]) == ("finished", 8)


def test_a_device_has_the_studios_name_and_versions_are_the_process_own(run_dir: RunDir) -> None:
    writer = writer_of(run_dir)
    log(run_dir, 'say {"kind": "started", "device": "cuda:1"}\n')
    writer.end(0)
    (started,) = (event for event in events_in(run_dir) if event["kind"] == "started")
    assert (started["device"], started["versions"]) == ("cuda:1", {"torch": "2"})
    other = LogEventWriter(run_dir, Reporting(), ("cuda:3",), resumes=False, versions={})
    log(run_dir, 'say {"kind": "started", "device": "cuda"}\n')
    other.end(0)
    assert [event["device"] for event in events_in(run_dir) if event["kind"] == "started"] == [
        "cuda:1",
        "cuda:3",
    ]


def test_steps_have_the_rate_and_the_time_left_of_the_bar(run_dir: RunDir) -> None:
    writer = writer_of(run_dir)
    log(run_dir, bar(2) + '\nsay {"kind": "step", "step": 2, "loss": 0.5, "epoch": 0}\n')
    writer.end(0)
    (step,) = (event for event in events_in(run_dir) if event["kind"] == "step")
    assert (step["samples_per_s"], step["eta_s"], step["epoch"]) == (8.0, 2.0, 0)


def test_lines_that_come_in_pieces_are_read_completely(run_dir: RunDir) -> None:
    writer = writer_of(run_dir)
    line = 'say {"kind": "warning", "message": "größer ✓"}\r\n'.encode()
    for i in range(len(line)):
        with run_dir.log_txt.open("ab") as file:
            file.write(line[i : i + 1])
        writer.update()
    log(run_dir, 'say {"kind": "phase", "name": "without an end of line"}')
    writer.end(-9)
    assert [e["message"] for e in events_in(run_dir) if e["kind"] == "warning"] == ["größer ✓"]
    assert events_in(run_dir)[-1]["name"] == "without an end of line"


@pytest.mark.parametrize(
    "line", ['say {"kind": "phase"}', "say 7", 'say {"kind": "x"}', 'say {"kind": "saved"}']
)
def test_lines_that_are_no_events_are_left_to_the_log(run_dir: RunDir, line: str) -> None:
    writer = writer_of(run_dir)
    log(run_dir, f"{line}\n")
    writer.update()
    log(run_dir, f"{line}")
    writer.end(0)
    assert [event["kind"] for event in events_in(run_dir)] == ["phase", "failed"]


def test_values_missing_from_a_step_are_null_and_each_step_counts_once(run_dir: RunDir) -> None:
    writer = writer_of(run_dir)
    for step in (1, 1, 2):
        log(run_dir, f'say {{"kind": "step", "step": {step}, "loss": 0.5, "lr": 1e-4, "surplus": 1}}\n')
    writer.end(0)
    steps = [event for event in events_in(run_dir) if event["kind"] == "step"]
    assert [event["step"] for event in steps] == [1, 2]
    assert (steps[0]["loss_smooth"], steps[0]["grad_norm"]) == (0.5, None)


def test_a_checkpoint_is_reported_once_by_its_line_or_its_file(run_dir: RunDir) -> None:
    folder = run_dir.path / "checkpoints"
    (folder / "old.safetensors").write_bytes(WHOLE)
    writer = writer_of(run_dir)
    (folder / "said.safetensors").write_bytes(WHOLE)
    log(run_dir, 'say {"kind": "saved", "dir": "checkpoints/said.safetensors", "step": 7}\n')
    writer.update()
    (folder / "silent.safetensors").write_bytes(WHOLE)
    writer.end(0)
    saved = [event["dir"] for event in events_in(run_dir) if event["kind"] == "saved"]
    assert saved == ["checkpoints/said.safetensors", "checkpoints/silent.safetensors"]


def test_a_failure_has_the_message_of_the_last_error_of_this_attempt(run_dir: RunDir) -> None:
    writer = writer_of(run_dir)
    log(
        run_dir,
        "Traceback (most recent call last):\n  ...\ntorch.cuda.OutOfMemoryError: no room\n\x1b[0mbye\n",
    )
    writer.end(1)
    failed = events_in(run_dir)[-1]
    assert (failed["kind"], failed["error"], failed["message"]) == ("failed", "OutOfMemoryError", "no room")


def test_a_failure_without_a_traceback_shows_its_last_lines(run_dir: RunDir) -> None:
    writer = writer_of(run_dir)
    log(run_dir, "cannot open the file\n")
    writer.end(3)
    failed = events_in(run_dir)[-1]
    assert (failed["error"], failed["message"]) == ("ProcessFailed", "cannot open the file")


ENDS = [(True, -9, "stopped"), (True, 1, "stopped"), (False, -9, "phase")]


@pytest.mark.parametrize(("is_requested", "status", "end"), ENDS)
def test_a_requested_stop_is_no_failure(run_dir: RunDir, is_requested: bool, status: int, end: str) -> None:
    writer = writer_of(run_dir)
    if is_requested:
        StopRequest(kind="kill", time=1.0).write(run_dir.path)
    writer.end(status)
    assert events_in(run_dir)[-1]["kind"] == end


def test_a_process_that_ends_well_and_trained_nothing_has_failed(run_dir: RunDir) -> None:
    writer = writer_of(run_dir)
    log(run_dir, "chroma loaded\n")
    writer.end(0)
    failed = events_in(run_dir)[-1]
    assert (failed["kind"], failed["error"]) == ("failed", "NothingTrained")
    assert "chroma loaded" in failed["message"]


def test_a_resumed_run_counts_on_from_its_checkpoint(run_dir: RunDir) -> None:
    writer = writer_of(run_dir)
    log(run_dir, bar(2))
    writer.update()
    (run_dir.path / "checkpoints" / "a.safetensors").write_bytes(WHOLE)
    log(run_dir, bar(4) + "\n")
    writer.end(-9)
    log(run_dir, "\n")
    writer = writer_of(run_dir, resumes=True)
    log(run_dir, bar(3) + "\n")
    writer.end(0)
    events = events_in(run_dir)
    assert [event["seq"] for event in events] == list(range(len(events)))
    assert [event["resumed_from"] for event in events if event["kind"] == "started"] == [None, 4]
    assert events[-1]["step"] == 7


def test_a_step_behind_the_progress_bar_is_reported(run_dir: RunDir) -> None:
    writer = writer_of(run_dir)
    log(run_dir, 'say {"kind": "started", "resumed_from": 20, "device": "cpu"}\n')
    for batch in (1, 2):
        log(run_dir, bar(batch) + "\n")
        log(run_dir, f'say {{"kind": "step", "step": {20 + batch}, "loss": 0.5}}\n' * 2)
        writer.update()
    writer.end(0)
    events = events_in(run_dir)
    assert [event["step"] for event in events if event["kind"] == "step"] == [21, 22]
    (started,) = (event for event in events if event["kind"] == "started")
    assert (started["resumed_from"], started["device"]) == (20, "cpu")
    assert {event["max_steps"] for event in events if event["kind"] == "progress"} == {26}


def test_a_process_that_says_that_it_stopped_has_not_finished(run_dir: RunDir) -> None:
    writer = writer_of(run_dir)
    log(run_dir, bar(3) + '\nsay {"kind": "stopped", "step": 3}\n')
    writer.end(0)
    assert [event["kind"] for event in events_in(run_dir)][-1] == "stopped"


def test_the_checkpoint_that_a_run_resumes_from_is_no_result(run_dir: RunDir) -> None:
    writer = writer_of(run_dir)
    log(run_dir, bar(3))
    for name in ("last-step00000003-state", "step_00000003"):
        (run_dir.path / "checkpoints" / name).mkdir()
    writer.end(0)
    (saved,) = (event for event in events_in(run_dir) if event["kind"] == "saved")
    assert saved["dir"] == "checkpoints/step_00000003"
