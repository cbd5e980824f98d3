import subprocess
import sys
import textwrap

import pytest

from flowloom.run.events import FIELDS, EventWriter, read_events, without_repeats


def started(resumed_from):
    return {
        "versions": {},
        "device": "cpu",
        "method": "lora",
        "trained_params": 1,
        "total_params": 2,
        "resumed_from": resumed_from,
    }


def test_events_are_numbered_without_gaps_and_read_back(tmp_path):
    writer = EventWriter(tmp_path / "events.jsonl")
    writer.write("phase", name="loading")
    writer.write("saved", step=5, dir="checkpoints/step_00000005")
    writer.close()
    events = list(read_events(tmp_path / "events.jsonl"))
    assert [(event["seq"], event["kind"]) for event in events] == [(0, "phase"), (1, "saved")]
    assert events[1]["dir"] == "checkpoints/step_00000005"
    assert [event["seq"] for event in read_events(tmp_path / "events.jsonl", from_seq=1)] == [1]


@pytest.mark.parametrize("torn", [b'{"seq": 2, "ti', b"\0" * 50, b"\0\0\0\n", b'{"seq": 2}'])
def test_a_line_cut_off_by_a_crash_is_dropped_and_the_numbers_continue(tmp_path, torn):
    path = tmp_path / "events.jsonl"
    writer = EventWriter(path)
    writer.write("finished", step=1)
    writer.write("finished", step=2)
    writer.close()
    with path.open("ab") as file:
        file.write(torn)
    assert [event["seq"] for event in read_events(path)] == [0, 1]
    writer = EventWriter(path)
    writer.write("finished", step=3)
    assert [(event["seq"], event["step"]) for event in read_events(path)] == [(0, 1), (1, 2), (2, 3)]
    assert len(path.read_bytes().splitlines()) == 3
    writer.close()


def test_a_file_without_a_complete_line_begins_at_zero(tmp_path):
    path = tmp_path / "events.jsonl"
    path.write_bytes(b'{"seq"')
    writer = EventWriter(path)
    assert writer.write("finished", step=3)["seq"] == 0
    writer.close()
    assert [event["step"] for event in read_events(path)] == [3]


def test_a_warning_may_have_a_hint_and_nothing_else(tmp_path):
    writer = EventWriter(tmp_path / "events.jsonl")
    assert writer.write("warning", message="no gradient", hint="choose a trained base")["hint"]
    with pytest.raises(ValueError, match="no event 'warning' with the fields"):
        writer.write("warning", message="no gradient", reason="x")
    writer.close()


def test_another_reader_sees_each_event_at_once(tmp_path):
    writer = EventWriter(tmp_path / "events.jsonl")
    writer.write("warning", message="one")
    assert [event["message"] for event in read_events(tmp_path / "events.jsonl")] == ["one"]
    writer.close()


def test_an_event_with_other_fields_is_refused(tmp_path):
    writer = EventWriter(tmp_path / "events.jsonl")
    with pytest.raises(ValueError, match="no event 'saved' with the fields"):
        writer.write("saved", step=1)
    with pytest.raises(ValueError, match="no event 'save'"):
        writer.write("save", step=1, dir="x")
    writer.close()
    assert (tmp_path / "events.jsonl").read_bytes() == b""


def test_numbers_that_are_not_finite_are_written_as_null(tmp_path):
    writer = EventWriter(tmp_path / "events.jsonl")
    event = writer.write(
        "validated", step=1, weights="ema", loss=float("nan"), by_quantile={0.1: float("inf")}
    )
    writer.close()
    assert event["loss"] is None
    assert event["by_quantile"] == {"0.1": None}
    assert list(read_events(tmp_path / "events.jsonl")) == [event]


def test_a_secret_in_a_message_is_masked(tmp_path):
    writer = EventWriter(tmp_path / "events.jsonl", secrets=["hf_abcdefgh"])
    writer.write("warning", message="401 for Bearer hf_abcdefgh")
    writer.close()
    assert "abcdefgh" not in (tmp_path / "events.jsonl").read_text()


def test_events_that_a_resume_repeated_are_left_out_of_the_history(tmp_path):
    writer = EventWriter(tmp_path / "events.jsonl")
    writer.write("started", **started(None))
    for step in (1, 2, 3):
        writer.write("sampled", step=step, dir="x")
    writer.write("started", **started(2))
    for step in (3, 4):
        writer.write("sampled", step=step, dir="y")
    writer.close()
    history = without_repeats(read_events(tmp_path / "events.jsonl"))
    assert [(event["step"], event["dir"]) for event in history if "step" in event] == [
        (1, "x"),
        (2, "x"),
        (3, "y"),
        (4, "y"),
    ]


def test_a_full_disk_leaves_complete_lines(tmp_path):
    path = tmp_path / "events.jsonl"
    code = f"""
        import resource, signal
        from pathlib import Path
        from flowloom.errors import DiskFullError
        from flowloom.run.events import EventWriter

        writer = EventWriter(Path({str(path)!r}))
        writer.write("warning", message="fits")
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (200, 200))
        try:
            writer.write("warning", message="x" * 500)
        except DiskFullError as error:
            print(error)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True
    )
    assert "the disk is full" in done.stdout
    assert [event["message"] for event in read_events(path)] == ["fits"]
    assert path.read_bytes().endswith(b"\n")


def test_every_kind_of_the_protocol_is_there():
    kinds = "started phase step progress validated sampled saved removed uploaded skipped warning"
    assert set(FIELDS) == {*kinds.split(), "failed", "finished", "stopped"}
    assert FIELDS["skipped"] == {"file", "line", "reason"}


def test_an_attempt_without_a_checkpoint_leaves_nothing_in_the_history(tmp_path):
    writer = EventWriter(tmp_path / "events.jsonl")
    writer.write("started", **started(None))
    for step in (1, 2, 3):
        writer.write("sampled", step=step, dir="abandoned")
    writer.write("warning", message="kept")
    writer.write("started", **started(None))
    writer.write("sampled", step=1, dir="new")
    writer.close()
    history = without_repeats(read_events(tmp_path / "events.jsonl"))
    assert [event["dir"] for event in history if event["kind"] == "sampled"] == ["new"]
    assert "kept" in [event.get("message") for event in history]


@pytest.mark.parametrize(
    "damage", [b"\0" * 70, b'{"seq": 3, "kind":', b"[1]", b'{"kind": "step"}', b"\xff\xfe", b"[" * 100_000]
)
def test_a_damaged_line_in_the_middle_is_skipped_and_counted(tmp_path, damage):
    path = tmp_path / "events.jsonl"
    writer = EventWriter(path)
    for step in range(6):
        writer.write("finished", step=step)
    writer.close()
    lines = path.read_bytes().splitlines()
    lines[3] = damage
    path.write_bytes(b"\n".join(lines) + b"\n")
    found = []
    assert [event["step"] for event in read_events(path, on_damage=found.append)] == [0, 1, 2, 4, 5]
    assert found == [4]
    writer = EventWriter(path)
    assert writer.write("finished", step=6)["seq"] == 6
    writer.close()
    assert len(path.read_bytes().splitlines()) == 7
