"""Following a run: nothing is lost, nothing comes twice, and long runs stay quick to look at."""

from __future__ import annotations

import json
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowloom.server.runs.metrics import Columns
from flowloom.server.runs.tail import EventTail, read_log
from tests.server.conftest import Studio, wait_for

Configs = Callable[..., dict[str, Any]]


def line(seq: int, kind: str = "step", **fields: Any) -> bytes:
    return json.dumps({"seq": seq, "time": 1.0, "kind": kind, **fields}).encode() + b"\n"


def drain(tail: EventTail) -> list[int]:
    seqs = []
    while found := tail.read():
        seqs += [each.seq for each in found]
    return seqs


@given(cuts=st.lists(st.integers(1, 400), max_size=30), last=st.integers(-1, 45))
@settings(max_examples=60, deadline=None)
def test_however_a_file_grows_each_event_is_read_once(tmp_path_factory: Any, cuts: list[int], last: int):
    path = tmp_path_factory.mktemp("tail") / "events.jsonl"
    data = b"".join(line(seq, text="ä" * (seq % 7)) for seq in range(40))
    tail, seen, at = EventTail(path, last), [], 0
    for cut in [*cuts, len(data)]:
        with path.open("ab") as file:
            file.write(data[at : at + cut])
        at += cut
        seen += drain(tail)
    assert seen == list(range(last + 1, 40))


def test_lines_that_the_engine_cut_off_and_wrote_again_are_read_once(tmp_path: Path):
    path = tmp_path / "events.jsonl"
    path.write_bytes(line(0) + line(1) + b'{"seq": 2, "spoilt"\n')
    tail = EventTail(path)
    assert drain(tail) == [0, 1]
    path.write_bytes(line(0) + line(1) + line(2) + line(3))
    assert drain(tail) == [2, 3]
    assert drain(tail) == []


@pytest.mark.parametrize("kind", ["x\ndata: {}", "\ud800", "", None, ["step"], "a b"])
def test_a_line_of_another_program_is_no_event(tmp_path: Path, kind: Any):
    path = tmp_path / "events.jsonl"
    path.write_bytes(line(0) + json.dumps({"seq": 1, "time": 1.0, "kind": kind}).encode() + b"\n" + line(2))
    tail = EventTail(path)
    assert drain(tail) == [0, 2]


@pytest.mark.timing
def test_a_tail_goes_straight_to_where_it_stopped(tmp_path: Path):
    path = tmp_path / "events.jsonl"
    with path.open("wb") as file:
        file.writelines(line(seq, text="x" * 80) for seq in range(300_000))
    for last in (-1, 0, 150_001, 299_990, 299_999, 400_000):
        tail = EventTail(path, last)
        began = time.perf_counter()
        found = tail.read()
        assert time.perf_counter() - began < 0.5
        assert [each.seq for each in found[:2]] == [seq for seq in (last + 1, last + 2) if seq < 300_000]


class Listener:
    """A browser's EventSource: comes back with the last id that it saw."""

    def __init__(self, studio: Studio, run: str):
        self.studio, self.run = studio, run
        self.events: list[dict[str, Any]] = []
        self.last_id: str | None = None

    def listen(self, num: int) -> None:
        """Take in up to `num` events, or fewer where the connection breaks or the run ends."""
        headers = {"last-event-id": self.last_id} if self.last_id else {}
        try:
            with (
                httpx.Client(base_url=self.studio.url, timeout=20) as client,
                client.stream("GET", f"/api/runs/{self.run}/events", headers=headers) as answer,
            ):
                for _, (number, event) in zip(range(num), self._frames(answer), strict=False):
                    self.last_id = number
                    self.events.append(event)
                    if event["kind"] == "finished":
                        return
        except httpx.TransportError:
            return

    def _frames(self, answer: httpx.Response) -> Iterator[tuple[str, dict[str, Any]]]:
        fields: dict[str, str] = {}
        for text in answer.iter_lines():
            name, _, value = text.partition(": ")
            fields[name] = value
            if not text and "data" in fields:
                yield fields["id"], json.loads(fields["data"])
                fields = {}


def test_a_listener_that_comes_back_loses_and_doubles_nothing(studio: Studio, tiny_config: Configs):
    config = tiny_config(limits={"max_steps": 60})
    studio.post("/api/flow/train/start", {"name": "run", "config": config}, 201)
    listener, draw = Listener(studio, "run"), random.Random(3)
    while not listener.events or listener.events[-1]["kind"] != "finished":
        listener.listen(draw.randint(1, 15))
        if draw.random() < 0.15:
            studio.end(signal.SIGKILL)
            studio.start()
    assert listener.events == studio.events("run")
    assert len([event for event in listener.events if event["kind"] == "step"]) == 60


@pytest.mark.timing
def test_an_event_reaches_its_listeners_within_200_ms(one_studio: Studio):
    run = one_studio.home / "runs" / "told"
    run.mkdir(parents=True)
    (run / "run.json").write_text(json.dumps({"config": {}}))
    delays: list[float] = []

    def follow() -> None:
        listener = Listener(one_studio, "told")
        with (
            httpx.Client(base_url=one_studio.url, timeout=30) as client,
            client.stream("GET", "/api/runs/told/events") as answer,
        ):
            for _, (_, event) in zip(range(10), listener._frames(answer), strict=False):
                delays.append(time.time() - event["sent"])

    listeners = [threading.Thread(target=follow) for _ in range(4)]
    for listener in listeners:
        listener.start()
    time.sleep(1)
    with (run / "events.jsonl").open("ab", buffering=0) as file:
        for seq in range(10):
            file.write(line(seq, sent=time.time()))
            time.sleep(0.15)
    for listener in listeners:
        listener.join(20)
    assert len(delays) == 40
    assert sorted(delays)[20] < 0.2


def step(seq: int, number: int, loss: float | None) -> bytes:
    return line(seq, step=number, loss=loss, loss_smooth=loss, lr=1e-4)


def test_charts_are_the_means_and_bounds_of_stretches(tmp_path: Path):
    path = tmp_path / "events.jsonl"
    path.write_bytes(b"".join(step(i, i + 1, float(i % 4)) for i in range(400)))
    chart = Columns(path).chart(100)
    assert (chart.num_steps, len(chart.steps), chart.steps[-1], chart.last_seq) == (400, 100, 400, 399)
    loss = chart.series["loss"]
    assert (set(loss.mean), set(loss.low), set(loss.high)) == ({1.5}, {0.0}, {3.0})
    assert chart.series["grad_norm"].mean == [None] * 100


def test_charts_show_a_resumed_run_as_if_it_had_never_stopped(tmp_path: Path):
    path = tmp_path / "events.jsonl"
    columns = Columns(path)
    with path.open("wb", buffering=0) as file:
        file.write(b"".join(step(i, i + 1, 9.0) for i in range(30)) + line(30, "saved", step=20, dir="x"))
        assert columns.chart(50).num_steps == 30
        file.write(line(31, "started", resumed_from=20))
        assert columns.chart(50).num_steps == 20
        file.write(b"".join(step(32 + i, 21 + i, 1.0) for i in range(5)))
    chart = columns.chart(50)
    assert chart.steps == list(range(1, 26))
    assert chart.series["loss"].mean == [9.0] * 20 + [1.0] * 5
    assert [(mark.kind, mark.step) for mark in chart.marks] == [("saved", 20)]


def test_charts_show_nothing_of_an_attempt_that_left_no_checkpoint(tmp_path: Path):
    path = tmp_path / "events.jsonl"
    columns = Columns(path)
    with path.open("wb", buffering=0) as file:
        file.write(b"".join(step(i, i + 1, 9.0) for i in range(30)) + line(30, "sampled", step=20, dir="x"))
        assert columns.chart(50).num_steps == 30
        file.write(line(31, "started", resumed_from=None))
        assert columns.chart(50).num_steps == 0
        file.write(b"".join(step(32 + i, 1 + i, 1.0) for i in range(5)))
    chart = columns.chart(50)
    assert chart.steps == list(range(1, 6))
    assert chart.series["loss"].mean == [1.0] * 5
    assert chart.marks == []


@pytest.mark.parametrize("damaged", [[0], [11], [10, 11, 12], [3, 29]])
def test_charts_skip_damaged_lines_and_count_them(tmp_path: Path, damaged: list[int]):
    path = tmp_path / "events.jsonl"
    lines = [step(i, i + 1, 1.0) for i in range(30)]
    for place in damaged:
        lines[place] = b"\0" * 40 + b"\n"
    path.write_bytes(b"".join(lines) + step(30, 31, 1.0))
    columns = Columns(path)
    chart = columns.chart(50)
    assert chart.steps == [i + 1 for i in range(31) if i not in damaged]
    assert chart.damaged_lines == len(damaged)
    with path.open("ab") as file:
        file.write(step(31, 32, 1.0))
    assert columns.chart(50).damaged_lines == len(damaged)


def test_a_gap_at_the_beginning_of_a_chunk_hides_nothing_after_it(tmp_path: Path):
    """Of what is read at a time, the first line is the one after the gap."""
    path = tmp_path / "events.jsonl"
    padding = b'{"seq": 0, "kind": "warning", "message": "%b"}\n'
    first = padding % (b"x" * (262_144 - len(padding) + 2))
    assert len(first) == 262_144
    path.write_bytes(first + b"".join(step(i, i, 1.0) for i in range(2, 9)))
    assert Columns(path).chart(50).steps == list(range(2, 9))


@pytest.mark.timing
@pytest.mark.slow
def test_a_million_events_open_in_300_ms_after_the_first_time(tmp_path: Path):
    path = tmp_path / "events.jsonl"
    with path.open("wb") as file:
        file.writelines(step(i, i + 1, (i * 7919 % 1000) / 1000) for i in range(1_000_000))
    columns = Columns(path)
    columns.chart(1000)
    with path.open("ab") as file:
        file.write(step(1_000_000, 1_000_001, 0.5))
    began = time.perf_counter()
    chart = columns.chart(1000)
    assert time.perf_counter() - began < 0.3
    assert chart.steps[-1] == 1_000_001


@pytest.mark.parametrize("limit", [4, 5, 7, 64])
def test_a_log_is_read_in_parts_without_cutting_characters(tmp_path: Path, limit: int):
    path = tmp_path / "log.txt"
    text = "step 1 · größer ✓ 🙂\n" * 20
    path.write_text(text)
    parts, offset = "", 0
    while (part := read_log(path, offset, limit)).text:
        parts += part.text
        offset = part.next_offset
    assert parts == text
    assert text.endswith(read_log(path, -10, 100).text)
    assert read_log(path, 10**9, 100).text == ""


def test_a_log_that_is_no_text_is_shown_nevertheless(tmp_path: Path):
    path = tmp_path / "log.txt"
    path.write_bytes(b"\xff\xfe\x80\x80\x80\x80\x80abc\xf0")
    part = read_log(path, 0, 100)
    assert "abc" in part.text
    assert part.next_offset >= part.size - 1


def test_the_results_of_a_run_can_be_viewed_and_downloaded(studio: Studio, tiny_config: Configs):
    preview = {
        "inference_every": 3,
        "steps": 1,
        "prompts": ["red", "blue"],
        "image_dim": [64, 48],
        "cfg": 1.0,
    }
    config = tiny_config(training={"save_every": 3}, inference=preview)
    studio.post("/api/flow/train/start", {"name": "made", "config": config}, 201)
    assert studio.wait("made", "finished")["step"] == 6
    samples = studio.get("/api/runs/made/samples")
    assert samples["total"] == 6
    assert [(one["step"], one["prompt"]) for one in samples["samples"]][:2] == [(6, "red"), (6, "blue")]
    url = samples["samples"][0]["url"]
    full, small = studio.http.get(url), studio.http.get(url, params={"size": 128})
    assert full.headers["content-type"] == "image/png"
    assert small.headers["content-type"] == "image/webp"
    saved = studio.get("/api/runs/made/checkpoints")["checkpoints"]
    assert [one["name"] for one in saved] == ["step_00000006", "step_00000003"]
    (file,) = [file for file in saved[0]["files"] if file["name"].endswith(".safetensors")]
    part = studio.http.get(file["url"], headers={"range": "bytes=0-99"})
    assert (part.status_code, len(part.content)) == (206, 100)
    assert studio.http.delete("/api/runs/made/checkpoints/step_00000003").status_code == 204
    assert studio.run("made")["checkpoint"] == "step_00000006"
    assert studio.get("/api/runs/made/metrics")["steps"] == [1, 2, 3, 4, 5, 6]
    assert "seq" not in studio.get("/api/runs/made/log")["text"]
    copy = studio.post(
        "/api/runs/made/duplicate", {"name": "copy", "changes": {"training": {"lr": 0.5}}}, 201
    )
    assert copy["state"] == "queued"
    changes = studio.get("/api/runs/made/compare/copy")["changes"]
    assert changes == {"training.lr": {"from": 0.001, "to": 0.5}}
    studio.wait("copy", "finished")
    assert studio.http.delete("/api/runs/copy").status_code == 204
    assert studio.http.get("/api/runs/copy").status_code == 404


def test_a_run_saves_and_generates_previews_on_request(studio: Studio, tiny_config: Configs):
    preview = {"inference_every": 10**6, "steps": 1, "prompts": ["red"], "image_dim": [64, 48], "cfg": 1.0}
    config = tiny_config(limits={"max_steps": 10**6}, inference=preview)
    studio.post("/api/flow/train/start", {"name": "asked", "config": config}, 201)
    early = studio.http.post("/api/runs/asked/control", json={"action": "checkpoint"})
    assert early.status_code == 409
    wait_for(lambda: studio.run("asked")["step"])
    studio.post("/api/runs/asked/control", {"action": "checkpoint"})
    studio.post("/api/runs/asked/control", {"action": "sample"})
    wait_for(lambda: {"saved", "sampled"} <= {event["kind"] for event in studio.events("asked")})
    status = studio.get("/api/flow/train/status")
    assert [run["id"] for run in status["running"]] == ["asked"]
    studio.post("/api/flow/train/stop", {})
    studio.wait("asked", "stopped")


def test_a_run_that_is_stopped_while_it_loads_stops(studio: Studio, tiny_config: Configs):
    config = tiny_config(limits={"max_steps": 10**6})
    studio.post("/api/flow/train/start", {"name": "early", "config": config}, 201)
    studio.wait("early", "running")
    studio.post("/api/runs/early/stop")
    assert studio.wait("early", "stopped")["step"] < 30


def test_the_machine_is_reported_once_and_again(one_studio: Studio):
    system = one_studio.get("/api/system")
    assert system["memory_total_mib"] > 0
    assert system["studio_memory_mib"] < 150
    with one_studio.http.stream("GET", "/api/system/events") as answer:
        lines = answer.iter_lines()
        assert next(lines) == "event: system"
        assert json.loads(next(lines).removeprefix("data: "))["num_cpus"] == system["num_cpus"]


def test_a_range_of_steps_has_more_detail_than_the_whole(tmp_path: Path):
    path = tmp_path / "events.jsonl"
    path.write_bytes(b"".join(line(i, step=i + 1, loss=float(i + 1)) for i in range(1000)))
    columns = Columns(path)
    whole, part = columns.chart(10), columns.chart(10, 101, 110)
    assert (whole.num_steps, whole.steps[-1]) == (1000, 1000)
    assert part.steps == list(range(101, 111))
    assert part.series["loss"].mean == [float(step) for step in range(101, 111)]
    assert columns.chart(10, 995).steps == list(range(995, 1001))
    assert columns.chart(10, 2000).steps == []
