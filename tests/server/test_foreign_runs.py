"""Files that others add to the runs folder, or remove, harm neither the studio nor other runs."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
from PIL import Image

from flowloom.locks import hold, is_held
from flowloom.run.directory import RunDir
from flowloom.server.app import open_studio
from flowloom.server.datasets.edit_lock import EditUnderWay
from flowloom.server.datasets.locations import NoSuchDataset
from flowloom.server.deps import Studio as Open
from flowloom.server.problems import NotNow
from flowloom.server.routes.datasets import delete_dataset
from flowloom.server.runs.create import ResumeRequest, resume_run
from flowloom.server.runs.process_files import QueueEntry, StopRequest, lock_path
from flowloom.server.runs.supervisor import LaunchSpec
from flowloom.server.settings import Settings
from tests.server.conftest import Studio, wait_for

Configs = Callable[..., dict[str, Any]]

DAMAGED: dict[str, tuple[Any, list[Any]]] = {
    "no-object": ({"config": None}, []),
    "a-list": ({"config": [1]}, []),
    "a-date": ({"config": {}, "created": "yesterday"}, []),
    "a-number": ({"config": {}, "trainer": 3}, []),
    "folders": ({"config": {}, "folders": [1]}, []),
    "parallel": ({"config": {"parallel": "x"}}, []),
    "device": ({"config": {"parallel": {"device": 3}}}, []),
    "phase": ({"config": {}}, [{"seq": 0, "kind": "started"}, {"seq": 1, "kind": "phase"}]),
    "step": ({"config": {}}, [{"seq": 0, "kind": "step", "step": "x", "loss": [1]}]),
    "kind": ({"config": {}}, [{"seq": 0, "kind": [1]}]),
    "mark": ({"config": {}}, [{"seq": 0, "kind": "saved", "step": "x"}]),
}


def put(runs_dir: Path, name: str, content: Any, events: list[Any] | None = None) -> Path:
    """A run's directory as another program may write it."""
    path = runs_dir / name
    (path / "studio").mkdir(parents=True)
    (path / "run.json").write_text(json.dumps(content))
    if events:
        (path / "events.jsonl").write_text("".join(f"{json.dumps(event)}\n" for event in events))
    return path


def add_up(studio: Studio, name: str) -> dict[str, Any]:
    """A small run that needs no device, to its end."""
    (studio.home / "data").mkdir(exist_ok=True)
    (studio.home / "data" / "x").write_text("x")
    config = {"paths": [str(studio.home / "data" / "x")]}
    studio.post("/api/tasks/hash/start", {"name": name, "config": config}, 201)
    return studio.wait(name, "finished")


def test_a_damaged_run_stops_neither_the_studio_nor_its_queue(studio_at: Callable[..., Studio]):
    studio = studio_at()
    for name, (content, events) in DAMAGED.items():
        put(studio.home / "runs", name, content, events)
    studio.start()
    add_up(studio, "whole")
    listed = {run["id"] for run in studio.get("/api/runs")["runs"]}
    assert listed >= {"whole", "phase", "step", "kind", "mark"}, "one line of events hides no run"
    for name in DAMAGED:
        for path in ("", "/metrics", "/samples", "/checkpoints", "/config", "/log"):
            answer = studio.http.get(f"/api/runs/{name}{path}")
            assert answer.status_code in (200, 404, 409), (name, path, answer.text)
    put(studio.home / "runs", "late", {"config": None})
    add_up(studio, "after")


def test_a_run_that_cannot_be_started_says_why_and_holds_up_no_other(studio: Studio):
    old = put(studio.home / "runs", "old", {"trainer": "kohya", "config": {"family": "of-an-older-version"}})
    odd = put(studio.home / "runs", "odd", {"trainer": "kohya", "config": {}})
    (odd / "config.toml").mkdir()
    for position, path in enumerate((old, odd)):
        QueueEntry(id=path.name, position=float(position), devices=()).write(path)
    assert wait_for(lambda: "family" in (studio.run("old")["note"] or ""))
    assert wait_for(lambda: "config.toml" in (studio.run("odd")["note"] or ""))
    add_up(studio, "behind")
    assert {run["id"] for run in studio.get("/api/queue")["runs"]} == {"old", "odd"}


def test_a_folder_that_is_removed_under_its_run_holds_up_no_other(studio: Studio, tiny_config: Configs):
    config = tiny_config(limits={"max_steps": 1_000_000})
    studio.post("/api/flow/train/start", {"name": "gone", "config": config}, 201)
    run = wait_for(lambda: (run := studio.run("gone"))["step"] and run)
    shutil.rmtree(studio.home / "runs" / "gone")
    add_up(studio, "other")
    wait_for(lambda: not psutil.pid_exists(run["pid"]))
    assert not (studio.home / "runs" / "gone").exists()


def test_a_run_that_has_the_name_of_another_has_its_own_charts(studio: Studio):
    def shown(number: int) -> tuple[Any, Any]:
        answer = studio.get("/api/runs/twice/metrics")
        return answer["steps"], [round(value, 3) for value in answer["series"]["loss"]["mean"]]

    for number in (1, 2):
        steps = [
            {"seq": seq, "time": number, "kind": "step", "step": seq, "loss": number} for seq in range(9)
        ]
        put(
            studio.home / "runs", "twice", {"config": {}}, [*steps, {"seq": 9, "kind": "finished", "step": 8}]
        )
        assert shown(number) == (list(range(9)), [number] * 9)
        wait_for(lambda: studio.http.get("/api/runs/twice").status_code == 200)
        assert studio.http.delete("/api/runs/twice").status_code == 204


def test_a_run_with_the_name_of_an_earlier_one_shows_its_own_images(studio: Studio):
    tags = set[str]()
    for colour in ("red", "blue"):
        run = put(studio.home / "runs", "drawn", {"config": {}})
        (run / "samples" / "step_00000001").mkdir(parents=True)
        Image.new("RGB", (8, 8), colour).save(run / "samples" / "step_00000001" / "00.png")
        (sample,) = studio.get("/api/runs/drawn/samples")["samples"]
        for size in ("", "?size=128"):
            shown = studio.http.get(sample["url"] + size, headers={"if-none-match": ", ".join(tags)})
            assert shown.status_code == 200
            assert "no-cache" in shown.headers["cache-control"]
            tags.add(shown.headers["etag"])
            again = studio.http.get(sample["url"] + size, headers={"if-none-match": shown.headers["etag"]})
            assert (again.status_code, again.content) == (304, b"")
        studio.http.delete("/api/runs/drawn")
    assert len(tags) == 4


def test_a_dataset_that_a_run_needs_is_deleted_only_after_the_run(studio: Studio):
    studio.post("/api/datasets", {"name": "fox"}, 201)
    config = {"datasets": [{"subsets": [{"image_dir": str(studio.home / "data" / "fox" / "den")}]}]}
    run = put(studio.home / "runs", "waits", {"trainer": "kohya", "config": config})
    QueueEntry(id="x", position=1.0, devices=()).write(run)
    wait_for(lambda: studio.get("/api/queue")["runs"])
    refused = studio.http.delete("/api/datasets/fox")
    assert (refused.status_code, refused.json()["detail"]) == (409, "waits needs fox.")
    studio.post("/api/runs/waits/cancel")
    assert studio.http.delete("/api/datasets/fox").status_code == 200


def test_however_often_runs_are_moved_each_goes_where_it_was_put(opened: Open):
    for name in ("first", "a", "b"):
        content = {"trainer": "hash", "config": {"paths": ["x"]}, "source": "a test"}
        opened.queue.submit(RunDir(put(opened.runs.runs_dir, name, content)), [])
        opened.runs.refresh(name)
    for number in range(80):
        moved, before = ("b", "a") if number % 2 == 0 else ("a", "b")
        opened.queue.move(moved, before)
        assert [run.id for run in opened.runs.store.queue()] == ["first", moved, before]


def test_a_dataset_is_not_deleted_during_an_edit(opened: Open):
    fox = opened.datasets.locations.create("fox")
    with ThreadPoolExecutor(1) as others:
        with opened.datasets.edit_lock(fox).take("an edit"):
            deleting = others.submit(delete_dataset, opened.datasets, fox, opened)
            with pytest.raises(EditUnderWay, match="an edit"):
                deleting.result(20)
        assert opened.datasets.get("fox") == fox
        others.submit(delete_dataset, opened.datasets, fox, opened).result(20)
    with pytest.raises(NoSuchDataset):
        opened.datasets.get("fox")


def test_no_run_keeps_a_device_that_it_does_not_use(studio_at: Callable[..., Studio]):
    studio = studio_at("home", "--device", "cuda:1", "--device", "cuda:3").start()
    (studio.home / "data").mkdir()
    (studio.home / "data" / "x").touch()
    body = {"config": {"paths": [str(studio.home / "data" / "x")]}, "devices": ["cuda:1", "cuda:3"]}
    refused = studio.http.post("/api/tasks/hash/start", json=body)
    assert refused.status_code == 422
    (place,) = refused.json()["errors"]
    assert place["where"] == "/devices"
    assert place["hint"] == "Choose one device."
    made = studio.post("/api/tasks/hash/start", body | {"devices": ["cuda:3"]}, 201)
    assert made["devices"] == ["cuda:3"]
    studio.wait(made["id"], "finished")


def test_cards_are_counted_as_the_driver_counts_them(studio_at: Callable[..., Studio], tiny_config: Configs):
    studio = studio_at("home", "--device", "cuda:1", "--device", "cuda:3").start()
    config = tiny_config(limits={"max_steps": 1_000_000})
    studio.post("/api/flow/train/start", {"name": "x", "config": config, "devices": ["cuda:3"]}, 201)
    # The supervisor records the process a moment after the run counts as running.
    pid = wait_for(lambda: studio.run("x")["pid"])
    seen = psutil.Process(pid).environ()
    assert (seen["CUDA_VISIBLE_DEVICES"], seen["CUDA_DEVICE_ORDER"]) == ("3", "PCI_BUS_ID")
    studio.post("/api/runs/x/kill")


def test_runs_without_a_name_that_start_in_one_second_are_all_made(studio: Studio):
    (studio.home / "data").mkdir()
    (studio.home / "data" / "x").touch()
    body = {"config": {"paths": [str(studio.home / "data" / "x")]}}
    with ThreadPoolExecutor(4) as pool:
        names = list(pool.map(lambda _: studio.post("/api/tasks/hash/start", body, 201)["id"], range(6)))
    assert len(set(names)) == 6
    for name in names:
        studio.wait(name, "finished")


def test_of_two_runs_with_the_same_name_only_one_starts(studio: Studio):
    (studio.home / "data").mkdir()
    (studio.home / "data" / "x").touch()
    config = {"paths": [str(studio.home / "data" / "x")]}

    def ask(number: int) -> int:
        return studio.http.post(
            "/api/tasks/hash/start", json={"name": f"n{number // 4}", "config": config}
        ).status_code

    with ThreadPoolExecutor(4) as pool:
        statuses = list(pool.map(ask, range(80)))
    assert sorted(statuses) == [201] * 20 + [409] * 60
    for number in range(20):
        studio.wait(f"n{number}", "finished")


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Open]:
    """The objects of a server, without the server."""
    studio = open_studio(Settings(tmp_path / "home", devices=("cpu",)), lambda: False)
    yield studio
    studio.runs.store.close()


def stopped_run(opened: Open) -> RunDir:
    events = [{"seq": 0, "kind": "started", "resumed_from": None}, {"seq": 1, "kind": "stopped", "step": 1}]
    content = {"trainer": "hash", "config": {"paths": ["x"]}, "source": "a test"}
    return RunDir(put(opened.runs.runs_dir, "fox", content, events))


def test_a_run_that_was_queued_meanwhile_is_neither_changed_nor_deleted(opened: Open):
    run_dir = stopped_run(opened)
    before = run_dir.run_json.read_bytes()
    restart = ResumeRequest(devices=[], first=False, changes={"paths": ["y"]})
    with ThreadPoolExecutor(2) as pool:
        with opened.queue.mutex:
            waiting = [
                pool.submit(resume_run, opened, run_dir, restart),
                pool.submit(opened.queue.delete, "fox"),
            ]
            threading.Event().wait(0.2)
            opened.queue.submit(run_dir, [])
        for one in waiting:
            with pytest.raises(NotNow):
                one.result(20)
    assert run_dir.run_json.read_bytes() == before
    assert opened.runs.refresh("fox").state == "queued"


@pytest.mark.parametrize("fails", [False, True])
def test_a_resume_with_changes_writes_run_json_once(
    opened: Open, make_config: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, fails: bool
):
    config = make_config(limits={"max_steps": 3}).model_dump(mode="json")
    more = {
        "created": 7.0,
        "folders": {"checkpoints": {"/x": 1.0}},
        "changed": [{"time": 1.0, "changes": {}}],
    }
    content = {"trainer": "flow", "config": config, "source": "a test", **more}
    run_dir = RunDir(put(opened.runs.runs_dir, "fox", content, [{"seq": 0, "kind": "stopped", "step": 1}]))
    before, written, replace = run_dir.read_run(), [], Path.replace

    def recorded(path: Path, target: Path) -> Path:
        if target == run_dir.run_json:
            written.append(json.loads(path.read_text()))
            if fails:
                raise OSError(errno.ENOSPC, "No space left on device")
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", recorded)
    monkeypatch.setattr("flowloom.server.runs.create.problems_of", lambda *_: [])
    request = ResumeRequest(devices=[], first=False, changes={"limits": {"max_steps": 5}})
    if fails:
        with pytest.raises(OSError, match="No space"):
            resume_run(opened, run_dir, request)
        assert run_dir.read_run() == before
        assert opened.runs.refresh("fox").state == "stopped"
        return
    assert resume_run(opened, run_dir, request).state == "queued"
    assert written == [run_dir.read_run()]
    change = {"limits.max_steps": {"from": 3, "to": 5}}
    assert [each["changes"] for each in written[0].pop("changed")] == [{}, change]
    assert written[0].pop("config") == config | {"limits": config["limits"] | {"max_steps": 5}}
    assert written[0] == {name: value for name, value in before.items() if name not in ("config", "changed")}


def test_a_stop_requested_while_a_run_took_its_locks_is_not_lost(opened: Open):
    run_dir = stopped_run(opened)
    StopRequest(kind="kill", time=1.0).write(run_dir.path)
    opened.queue.submit(run_dir, [])
    entry = QueueEntry.read(run_dir.path)
    assert entry
    device = opened.queue.locks_dir / "cpu.lock"
    spec = LaunchSpec(str(run_dir.path), entry.id, ["/bin/true"], None, [str(device)])
    taken = hold(device)
    assert taken is not None
    command = [sys.executable, "-m", "flowloom.server.runs.supervisor", spec.to_argument()]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL) as supervisor:
        wait_for(lambda: is_held(lock_path(run_dir.path)))
        request = StopRequest(kind="stop", time=2.0)
        request.write(run_dir.path)
        os.close(taken)
        assert supervisor.wait(20) == 0
    assert StopRequest.read(run_dir.path) == request
