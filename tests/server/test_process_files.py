"""The studio's records of a run."""

from __future__ import annotations

from pathlib import Path

from flowloom.server.runs.process_files import ProcessRecord, QueueEntry, StopRequest
from flowloom.server.runs.queue_state import QueueState
from flowloom.server.runs.registry import RunRegistry
from flowloom.server.runs.store import RunStore


def test_records_of_earlier_versions_are_read(tmp_path: Path) -> None:
    (tmp_path / "studio").mkdir()
    names = {
        "queue.json": '{"id": "x", "position": 1.0, "devices": [], "anywhere": true}',
        "process.json": '{"ticket": "x", "keeper": 7, "keeper_born": "a", "born": "b", "time": 1.0}',
        "wish.json": '{"kind": "kill", "time": 1.0}',
    }
    for name, text in names.items():
        (tmp_path / "studio" / name).write_text(text)
    entry, process = QueueEntry.read(tmp_path), ProcessRecord.read(tmp_path)
    assert entry
    assert entry.any_device
    assert process
    assert (process.supervisor_pid, process.supervisor_started, process.started) == (7, "a", "b")
    assert StopRequest.read(tmp_path) == StopRequest(kind="kill", time=1.0)
    StopRequest.remove(tmp_path)
    assert StopRequest.read(tmp_path) is None


def test_the_queue_state_of_earlier_versions_is_read(tmp_path: Path) -> None:
    (tmp_path / "standing.json").write_text('{"on_fail": "pause", "pause": {"since": 1.0, "run": "fox"}}')
    registry = RunRegistry(tmp_path, RunStore(tmp_path / "studio.sqlite"))
    state = QueueState(tmp_path / "queue_state.json", registry)
    assert (state.on_fail, state.pause and state.pause.run) == ("pause", "fox")
    state.set("continue", None)
    assert QueueState(tmp_path / "queue_state.json", registry).on_fail == "continue"
    registry.store.close()
