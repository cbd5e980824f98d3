"""A damaged or foreign run folder affects that run only: it is listed with the reason, and can be deleted."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from flowloom.config.secrets import may_need_secrets
from flowloom.server.app import open_studio
from flowloom.server.deps import Studio as Open
from flowloom.server.problems import NotNow
from flowloom.server.runs.process_files import QueueEntry
from flowloom.server.runs.view import RunView
from flowloom.server.settings import Settings
from flowloom.trainers import ALL
from tests.server.conftest import Studio, wait_for

RUN: dict[str, Any] = {"trainer": "flow", "config": {}, "created": 1000.0}
STEP = {"seq": 0, "time": 1.0, "kind": "step", "step": 7, "loss": 0.5}


def text(name: str, content: str | bytes) -> Callable[[Path], None]:
    """Write a file of the run."""

    def damage(run: Path) -> None:
        (run / name).write_bytes(content if isinstance(content, bytes) else content.encode())

    return damage


def run_json(**fields: Any) -> Callable[[Path], None]:
    return text("run.json", json.dumps(RUN | fields))


def event(**fields: Any) -> Callable[[Path], None]:
    return text("events.jsonl", f"{json.dumps(STEP | fields)}\n")


def folder(name: str) -> Callable[[Path], None]:
    """A folder in a file's place."""

    def damage(run: Path) -> None:
        (run / name).unlink(missing_ok=True)
        (run / name).mkdir()

    return damage


def fifo(name: str) -> Callable[[Path], None]:
    def damage(run: Path) -> None:
        (run / name).unlink(missing_ok=True)
        os.mkfifo(run / name)

    return damage


def link(name: str, to: str) -> Callable[[Path], None]:
    def damage(run: Path) -> None:
        if (run / name).is_dir():
            shutil.rmtree(run / name)
        (run / name).unlink(missing_ok=True)
        (run / name).symlink_to(to)

    return damage


def in_place_of_studio(run: Path) -> None:
    shutil.rmtree(run / "studio")
    (run / "studio").write_text("x")


def sparse(run: Path) -> None:
    with (run / "run.json").open("wb") as file:
        file.truncate(2**40)


def a_socket(run: Path) -> None:
    (run / "run.json").unlink()
    with socket.socket(socket.AF_UNIX) as made:
        here = os.open(run, os.O_RDONLY)
        made.bind(f"/proc/self/fd/{here}/run.json")
        os.close(here)


def strange_files(run: Path) -> None:
    (run / "checkpoints" / os.fsdecode(b"\xff.safetensors")).write_bytes(b"x" * 16)
    (run / os.fsdecode(b"\xfe\xff")).mkdir()


DEEP = "[" * 10_000 + "]" * 10_000
READABLE: dict[str, Callable[[Path], None]] = {
    "created-nan": text("run.json", '{"config": {}, "created": NaN}'),
    "created-infinity": text("run.json", '{"config": {}, "created": Infinity}'),
    "created-1e400": text("run.json", '{"config": {}, "created": 1e400}'),
    "created-negative": run_json(created=-5),
    "created-future": run_json(created=1e18),
    "created-text": run_json(created="yesterday"),
    "created-huge": text("run.json", '{"config": {}, "created": ' + "9" * 400 + "}"),
    "surrogate": text("run.json", '{"config": {"x": "\\ud800"}, "trainer": "\\udfff", "created": 1}'),
    "config-nan": text("run.json", '{"config": {"x": NaN}, "created": 1}'),
    "folders": run_json(folders={"checkpoints": {"\ud800": "x", "/nowhere": None}}),
    "max-steps": run_json(config={"limits": {"max_steps": 10**30}}),
    "event-deep": text("events.jsonl", f"{json.dumps(STEP)}\n{DEEP}\n"),
    "event-nan": text(
        "events.jsonl", '{"seq": 0, "time": 1, "kind": "step", "step": NaN, "loss": Infinity}\n'
    ),
    "event-seq": event(seq="x"),
    "event-step": event(step=3.5),
    "event-huge": event(step=10**40, loss=10**400),
    "event-true": event(seq=True),
    "event-list": text("events.jsonl", "[1]\nnull\n3\n"),
    "event-duplicates": text("events.jsonl", f"{json.dumps(STEP)}\n" * 5),
    "event-surrogate": event(kind="failed", error="\ud800", message="\udfff", hint=[1]),
    "event-long": text("events.jsonl", b'{"seq": 0, "kind": "' + b"x" * 3_000_000 + b"\n"),
    "event-binary": text("events.jsonl", os.urandom(100_000)),
    "entry-nan": text("studio/queue.json", '{"id": "x", "position": NaN, "devices": []}'),
    "entry-elsewhere": text("studio/queue.json", '{"id": "x", "position": 1, "devices": ["../../x"]}'),
    "stop-request-list": text("studio/stop_request.json", "[]"),
    "exit-huge": text("studio/exit.json", '{"status": 1e999, "time": 0}'),
    "process-pid": text(
        "studio/process.json", '{"entry": "", "supervisor_pid": -1, "supervisor_started": "", "time": 1}'
    ),
    "strange-files": strange_files,
    "log-fifo": fifo("log.txt"),
    "result-deep": text("result.json", DEEP),
}
"""Its other files decide how it is shown."""
DAMAGED: dict[str, Callable[[Path], None]] = {
    "deep": text("run.json", DEEP),
    "deep-object": text("run.json", '{"config": ' * 5000 + "1" + "}" * 5000),
    "not-json": text("run.json", "{"),
    "empty": text("run.json", ""),
    "list": text("run.json", "[1, 2]"),
    "null": text("run.json", "null"),
    "not-utf-8": text("run.json", b'{"config": {}, "source": "\xff\xfe"}'),
    "no-config": text("run.json", "{}"),
    "config-list": run_json(config=[1]),
    "trainer-number": run_json(trainer=3),
    "run-folder": folder("run.json"),
    "run-fifo": fifo("run.json"),
    "run-socket": a_socket,
    "run-huge": sparse,
    "run-circle": link("run.json", "run.json"),
    "run-device": link("run.json", "/dev/zero"),
    "run-dangling": link("run.json", "nowhere"),
    "events-folder": folder("events.jsonl"),
    "events-fifo": fifo("events.jsonl"),
    "events-circle": link("events.jsonl", "events.jsonl"),
    "studio-file": in_place_of_studio,
    "studio-circle": link("studio", "studio"),
    "entry-folder": folder("studio/queue.json"),
    "entry-fifo": fifo("studio/queue.json"),
    "stop-request-fifo": fifo("studio/stop_request.json"),
    "exit-folder": folder("studio/exit.json"),
    "lock-folder": folder("studio/lock"),
    "lock-fifo": fifo("studio/lock"),
    "pid-folder": folder("pid.json"),
    "pid-fifo": fifo("pid.json"),
}
READS = ("", "/config", "/result", "/log", "/events", "/metrics", "/gpu-usage", "/samples", "/checkpoints")


def make(runs_dir: Path, name: str, damage: Callable[[Path], None] | None = None) -> Path:
    run = runs_dir / name
    for part in ("studio", "checkpoints", "samples", "control"):
        (run / part).mkdir(parents=True)
    run_json()(run)
    if damage:
        damage(run)
    return run


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Open]:
    """A studio that is not served."""
    studio = open_studio(Settings(tmp_path / "home", devices=("cpu",)), lambda: False)
    yield studio
    studio.runs.store.close()


def views(studio: Open) -> dict[str, RunView]:
    studio.runs.refresh_all()
    studio.queue.tick()
    return {run.id: run for run in studio.runs.store.page([], None, 500, 0)[1]}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", [*READABLE, *DAMAGED])
def test_a_damaged_run_is_shown_and_deleted_and_harms_no_other(tmp_path: Path, kind: str):
    runs_dir = tmp_path / "home" / "runs"
    make(runs_dir, kind, (READABLE | DAMAGED)[kind])
    waits = make(runs_dir, "waits")
    QueueEntry(id="waits", position=1.0, devices=("cuda:7",)).write(waits)
    studio = open_studio(Settings(tmp_path / "home", devices=("cpu",)), lambda: False)
    try:
        found = views(studio)
        assert found.keys() == {kind, "waits"}
        assert "cuda:7" in (views(studio)["waits"].note or "")
        assert (found[kind].state == "damaged") == (kind in DAMAGED), found[kind]
        if kind in DAMAGED:
            error = found[kind].error
            assert error
            assert error.message
        studio.queue.tick()
        if found[kind].state == "queued":
            studio.queue.cancel(kind)
        studio.queue.delete(kind)
        assert not (runs_dir / kind).exists()
        assert views(studio).keys() == {"waits"}
    finally:
        studio.runs.store.close()


@pytest.mark.timeout(120)
def test_every_kind_of_damage_is_answered_at_once(studio_at: Callable[..., Studio]):
    studio = studio_at()
    for kind, damage in (READABLE | DAMAGED).items():
        make(studio.home / "runs", kind, damage)
    studio.start()
    listed = {run["id"]: run for run in studio.get("/api/runs", limit=500)["runs"]}
    assert listed.keys() == (READABLE | DAMAGED).keys()
    for kind in listed:
        for read in READS:
            with studio.http.stream("GET", f"/api/runs/{kind}{read}") as answer:
                next(answer.iter_raw(), None)
            assert answer.status_code in (200, 409), (kind, read, answer.status_code)
    (studio.home / "data").mkdir(exist_ok=True)
    (studio.home / "data" / "x").write_text("x")
    config = {"paths": [str(studio.home / "data" / "x")]}
    studio.post("/api/tasks/hash/start", {"name": "whole", "config": config}, 201)
    studio.wait("whole", "finished")
    for kind, run in listed.items():
        if run["state"] == "queued":
            studio.post(f"/api/runs/{kind}/cancel")
        assert studio.http.delete(f"/api/runs/{kind}").status_code == 204, kind
    assert [run["id"] for run in studio.get("/api/runs")["runs"]] == ["whole"]


def test_a_run_that_is_repaired_is_complete_again(opened: Open):
    run = make(opened.settings.runs_dir, "mended", text("run.json", "{"))
    assert views(opened)["mended"].state == "damaged"
    run_json()(run)
    assert views(opened)["mended"].state == "created"


HOLDER = """
import fcntl, json, os, sys, time
file = open(sys.argv[1], "w")
json.dump({"pid": os.getpid()}, file)
file.flush()
fcntl.flock(file, fcntl.LOCK_EX)
print("held", flush=True)
time.sleep(60)
"""


def test_a_damaged_run_whose_process_lives_is_not_deleted(opened: Open):
    run = make(opened.settings.runs_dir, "lives")
    arguments = [sys.executable, "-c", HOLDER, str(run / "pid.json")]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout
            assert process.stdout.readline()
            text("run.json", "{")(run)
            assert views(opened)["lives"].state == "damaged"
            with pytest.raises(NotNow, match=str(process.pid)):
                opened.queue.delete("lives")
            assert run.exists()
        finally:
            process.kill()


CLOSED = {
    "lock": "studio/lock",
    "pid": "pid.json",
    "run": "run.json",
    "events": "events.jsonl",
    "entry": "studio/queue.json",
    "studio": "studio",
    "all": "",
}
"""Paths that root or a container owns, not the studio."""


LIST = """
import json, os, sys
from pathlib import Path
from flowloom.server.app import open_studio
from flowloom.server.settings import Settings
"".encode("utf-8-sig"), "".encode("idna")
os.setgroups([]); os.setgid(65534); os.setuid(65534)
studio = open_studio(Settings(Path(sys.argv[1]), devices=("cpu",)), lambda: False)
studio.queue.tick()
studio.runs.refresh_all()
runs = studio.runs.store.page([], None, 100, 0)[1]
print(json.dumps({run.id: [run.state, run.error.message if run.error else ""] for run in runs}))
studio.queue.delete("lock")
print(json.dumps(sorted(os.listdir(Path(sys.argv[1]) / "runs"))))
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes files that another user may not read")
def test_files_of_another_user_stop_neither_the_studio_nor_its_queue():
    with tempfile.TemporaryDirectory() as place:
        home = Path(place) / "home"
        runs = {name: make(home / "runs", name) for name in (*CLOSED, "whole")}
        for name, closed in CLOSED.items():
            for file in ("studio/lock", "pid.json", "events.jsonl", "studio/queue.json"):
                (runs[name] / file).touch()
            (runs[name] / closed).chmod(0o700 if (runs[name] / closed).is_dir() else 0o600)
        for path in (Path(place), home, home / "runs", runs["lock"], runs["lock"] / "studio"):
            os.chown(path, 65534, 65534)
        arguments = [sys.executable, "-c", LIST, str(home)]
        done = subprocess.run(arguments, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 0, done.stderr
        output, left = map(json.loads, done.stdout.splitlines())
    assert output.pop("whole") == ["created", ""]
    assert output.keys() == CLOSED.keys()
    for name, (state, reason) in output.items():
        assert (name, state, "Permission denied" in reason) == (name, "damaged", True)
    assert "lock" not in left


SECRETS: dict[str, tuple[str, int]] = {
    "mode": ('{"HF_TOKEN": "hf_0123456789"}', 0o644),
    "not-json": ("{", 0o600),
    "list": ("[]", 0o600),
    "deep": (DEEP, 0o600),
    "unknown": ('{"OTHER": "x"}', 0o600),
}


@pytest.mark.parametrize("kind", [*SECRETS, "folder", "fifo"])
def test_a_secrets_file_that_cannot_be_used_stops_only_runs_that_may_need_it(
    opened: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
):
    path = tmp_path / "secrets.json"
    if kind in SECRETS:
        path.write_text(SECRETS[kind][0])
        path.chmod(SECRETS[kind][1])
    else:
        (os.mkdir if kind == "folder" else os.mkfifo)(path)
    monkeypatch.setenv("FLOWLOOM_SECRETS", str(path))
    runs_dir = opened.settings.runs_dir
    needs = make(runs_dir, "needs", run_json(trainer="hash", config={"paths": ["s3://bucket/x"]}))
    local = make(runs_dir, "local", run_json(trainer="hash", config={"paths": [str(tmp_path / "x")]}))
    for position, run in enumerate((needs, local)):
        QueueEntry(id=run.name, position=float(position), devices=()).write(run)
    views(opened)
    assert str(path) in (views(opened)["needs"].note or "")
    assert wait_for(lambda: views(opened)["local"].state not in ("queued", "running"))
    assert views(opened)["needs"].state == "queued"


def test_the_need_for_secrets_follows_from_the_configuration():
    assert not may_need_secrets(ALL["flow"].defaults())
    assert not may_need_secrets(ALL["kohya"].defaults())
    assert may_need_secrets({"dataloader": {"image_folder_path": "s3://bucket/fox"}})
    assert may_need_secrets({"loggers": [{"kind": "wandb"}]})
    assert may_need_secrets({"hub": {"repo_id": "me/fox"}})
    assert may_need_secrets({"items": [{"repo": "lodestones/Chroma1-HD"}]})
