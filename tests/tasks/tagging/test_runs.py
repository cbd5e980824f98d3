"""Rules for every run that writes captions: modes, previews, resume, undo, bad images."""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from flowloom.errors import ConfigError, DataError, RunError
from flowloom.tasks import ALL
from flowloom.tasks.restore_captions import CHANGES
from tests.fakes.images import encoded
from tests.server.conftest import wait_for
from tests.tasks.tagging.conftest import BLUE, GREEN, RED, Runs, events_of, paint

Tag = Callable[..., dict[str, Any]]
BLUE_TAGS = "blue theme, ^_^, long hair, 1girl"


def snapshot(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def bomb(width: int, height: int) -> bytes:
    """A PNG of one pixel that says to be so large."""
    png = bytearray(encoded(Image.new("RGB", (1, 1)), "PNG"))
    png[16:24] = struct.pack(">II", width, height)
    png[29:33] = struct.pack(">I", zlib.crc32(png[12:29]))
    return bytes(png)


@pytest.mark.parametrize(
    ("existing", "there", "written"),
    [
        ("skip", "my caption\n", "my caption\n"),
        ("skip", " \n", f"{BLUE_TAGS}\n"),
        ("replace", "my caption\n", f"{BLUE_TAGS}\n"),
        ("append", "sea, Long_hair,\n", "sea, Long_hair, blue theme, ^_^, 1girl\n"),
        ("prepend", "sea, ^_^", "blue theme, long hair, 1girl, sea, ^_^\n"),
    ],
)
def test_existing_captions_are_treated_as_requested(
    tag: Tag, image_dir: Path, existing: str, there: str, written: str
):
    (image_dir / "blue.txt").write_text(there)
    tag(existing=existing)
    assert (image_dir / "blue.txt").read_text() == written


def test_the_trigger_word_stands_first_and_once(tag: Tag, image_dir: Path):
    (image_dir / "blue.txt").write_text("sea")
    for _again in range(2):
        tag(existing="append", trigger="mystyle")
        assert (image_dir / "blue.txt").read_text() == f"mystyle, sea, {BLUE_TAGS}\n"


def test_files_are_named_as_the_dataset_reads_them(tag: Tag, tmp_path: Path):
    folder = paint(tmp_path / "set", a=BLUE)
    Image.new("RGB", (9, 9), RED).save(folder / "a.webp")
    paint(folder / "deep" / "er", b=GREEN, c=BLUE)
    (folder / "deep" / "er" / "c.png.caption").write_text("mine")
    tag(data_path=str(folder), caption_suffix=".caption", existing="append")
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.caption"))
    assert names == ["a.png.caption", "a.webp.caption", "deep/er/b.caption", "deep/er/c.png.caption"]
    assert (folder / "deep" / "er" / "c.png.caption").read_text() == f"mine, {BLUE_TAGS}\n"


def test_a_preview_shows_some_images_of_the_whole_dataset_and_changes_nothing(tag: Tag, image_dir: Path):
    (image_dir / "red.txt").write_text("mine")
    before = snapshot(image_dir)
    result = tag(preview=2, existing="append")
    assert snapshot(image_dir) == before
    shown = {one["image"]: one for one in result["preview"]}
    assert shown.keys() == {"blue.png", "green.png"}
    assert shown["blue.png"]["after"] == [BLUE_TAGS]
    assert shown["blue.png"]["scores"]["blue_theme"] == pytest.approx(0.9975, abs=1e-4)
    everything = tag(preview=100)["preview"]
    assert [one["is_kept"] for one in everything] == [False, False, True]
    assert everything[2]["before"] == ["mine"]
    assert snapshot(image_dir) == before


def test_images_that_cannot_be_used_are_named_and_counted(runs: Runs, tagger: Path, image_dir: Path):
    (image_dir / "damaged.jpg").write_bytes(b"\xff\xd8\xff\xe0 no picture")
    (image_dir / "bomb.png").write_bytes(bomb(20_000, 10_000))
    (image_dir / "green.txt").write_bytes(b"\xc3\x28 no text")
    run_dir = runs.new(
        "tag", data_path=str(image_dir), model_path=str(tagger), existing="append", batch_size=2
    )
    result = runs.resume(run_dir)
    reasons = {one["image"]: one["reason"] for one in result["unusable"]}
    assert reasons.keys() == {"damaged.jpg", "bomb.png", "green.png"}
    assert "200 megapixels" in reasons["bomb.png"]
    assert "green.txt: not utf-8" in reasons["green.png"]
    assert {event["file"] for event in events_of(run_dir, "skipped")} == reasons.keys()
    assert result["num_unusable"] == 3
    assert result["num_written"] == 2
    assert (image_dir / "green.txt").read_bytes() == b"\xc3\x28 no text"


def test_a_folder_of_nothing_usable_fails(tag: Tag, tmp_path: Path):
    folder = tmp_path / "empty"
    folder.mkdir()
    with pytest.raises(DataError, match="no image to describe"):
        tag(data_path=str(folder))
    (folder / "a.png").write_bytes(b"x" * 99)
    with pytest.raises(DataError, match=r"no image can be used.*a\.png"):
        tag(data_path=str(folder))


def test_missing_data_is_reported_before_the_run(tmp_path: Path):
    (tmp_path / "list.csv").touch()
    for config, path in [
        ({"data_path": str(tmp_path / "nowhere")}, "data_path"),
        ({"data_path": str(tmp_path / "list.csv")}, "data_path"),
        ({"data_path": str(tmp_path), "image_folder_path": str(tmp_path / "x")}, "image_folder_path"),
        ({"data_path": str(tmp_path), "model_path": str(tmp_path / "x")}, "model_path"),
    ]:
        assert [problem.where for problem in ALL["tag"].check(config)] == [path]


@pytest.mark.parametrize("existing", ["append", "replace", "skip"])
def test_a_run_done_again_changes_nothing(runs: Runs, tagger: Path, image_dir: Path, existing: str):
    (image_dir / "red.txt").write_text("mine")
    run_dir = runs.new("tag", data_path=str(image_dir), model_path=str(tagger), existing=existing)
    first, after = runs.resume(run_dir), snapshot(image_dir)
    assert runs.resume(run_dir) == first
    assert snapshot(image_dir) == after


def test_captions_that_were_recorded_and_not_written_are_written_next_time(
    runs: Runs, tagger: Path, image_dir: Path
):
    """As a kill leaves it: between noting a change and writing the file, or in the middle of a note."""
    run_dir = runs.new("tag", data_path=str(image_dir), model_path=str(tagger), existing="append")
    notes = [
        {"place": "blue.txt", "name": "blue.png", "before": None, "after": "noted before the kill\n"},
        {"place": "green.txt", "name": "green.png", "before": None, "after": "ours\n"},
    ]
    torn = '{"place": "red.txt", "name": "red.png", "bef'
    (run_dir.path / CHANGES).write_text("".join(json.dumps(note) + "\n" for note in notes) + torn)
    (image_dir / "green.txt").write_text("somebody else's\n")
    result = runs.resume(run_dir)
    assert (image_dir / "blue.txt").read_text() == "noted before the kill\n"
    assert (image_dir / "green.txt").read_text() == "somebody else's\n"
    assert (image_dir / "red.txt").read_text().startswith("fox (forest story), ")
    assert result["changed_meanwhile"] == ["green.txt"]
    assert len((run_dir.path / CHANGES).read_text().splitlines()) == 3


@pytest.mark.slow
@pytest.mark.parametrize("form", ["folder", "jsonl"])
def test_a_run_killed_and_resumed_does_nothing_twice_and_loses_nothing(
    runs: Runs, tagger: Path, tmp_path: Path, form: str
):
    number = 900  # three kills must leave some for the last run, however fast the machine
    folder = paint(tmp_path / "many", **{f"p{i:03d}": (RED, GREEN, BLUE)[i % 3] for i in range(number)})
    jsonl = tmp_path / "many.jsonl"
    rows = [{"filename": f"p{i:03d}.png", "caption_or_tags": "old"} for i in range(number)]
    jsonl.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for i in range(number):
        (folder / f"p{i:03d}.txt").write_text("old")
    data = {"data_path": str(folder if form == "folder" else jsonl), "image_folder_path": str(folder)}
    run_dir = runs.new("tag", **data, model_path=str(tagger), existing="append", batch_size=1)
    notes = run_dir.path / CHANGES
    seen = 0
    for _kill in range(3):
        process = subprocess.Popen(ALL["tag"].command(run_dir, resume=True).argv, env=os.environ)
        wait_for(lambda seen=seen: notes.exists() and notes.read_bytes().count(b"\n") > seen + 5)
        process.kill()
        process.wait()
        seen = notes.read_bytes().count(b"\n")
        assert seen < number
    subprocess.run(ALL["tag"].command(run_dir, resume=True).argv, check=True)
    places = [json.loads(line)["place"] for line in notes.read_text().splitlines()]
    assert len(places) == len(set(places)) == number
    if form == "folder":
        texts = [(folder / f"p{i:03d}.txt").read_text() for i in range(number)]
    else:
        texts = [json.loads(line)["caption_or_tags"] + "\n" for line in jsonl.read_text().splitlines()]
    common = "^_^, long hair, 1girl\n"
    starts = ["old, fox (forest story), red theme", "old, green theme", "old, blue theme"]
    assert texts == [f"{starts[i % 3]}, {common}" for i in range(number)]
    assert not list(tmp_path.rglob(".*.tmp"))


@pytest.mark.slow
def test_processes_describe_every_image_once_and_a_killed_one_only_interrupts_the_run(
    runs: Runs, tagger: Path, tmp_path: Path
):
    number = 900
    folder = paint(tmp_path / "many", **{f"p{i:03d}": (RED, GREEN, BLUE)[i % 3] for i in range(number)})
    (folder / "p001.png").write_bytes(b"no image")
    config = {"data_path": str(folder), "model_path": str(tagger), "batch_size": 2}
    run_dir = runs.new("tag", **config, processes=2)
    notes = run_dir.path / CHANGES
    process = subprocess.Popen(ALL["tag"].command(run_dir, resume=True).argv, env=os.environ)
    wait_for(lambda: notes.exists() and notes.read_bytes().count(b"\n") > 5)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    workers = [
        pid for pid in map(int, children) if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]
    assert len(workers) == 2
    os.kill(workers[1], signal.SIGKILL)
    assert process.wait(60) == 2
    assert "One of 2 processes was ended" in events_of(run_dir, "failed")[-1]["message"]
    wait_for(lambda: not Path(f"/proc/{workers[0]}").exists())
    seen = notes.read_bytes().count(b"\n")
    assert seen < number - 1
    result = runs.resume(run_dir)
    assert (result["num_written"], result["num_unusable"]) == (number - 1, 1)
    assert result["model"]["processes"] == 2
    places = [json.loads(line)["place"] for line in notes.read_text().splitlines()]
    assert len(places) == len(set(places)) == number - 1
    found = snapshot(folder)
    for caption in folder.glob("*.txt"):
        caption.unlink()
    runs("tag", **config)
    assert snapshot(folder) == found


@pytest.mark.slow
def test_a_requested_stop_happens_between_batches_and_the_run_continues(
    runs: Runs, tagger: Path, tmp_path: Path
):
    folder = paint(tmp_path / "many", **{f"p{i:03d}": BLUE for i in range(150)})
    run_dir = runs.new("tag", data_path=str(folder), model_path=str(tagger), batch_size=1)
    process = subprocess.Popen(ALL["tag"].command(run_dir, resume=False).argv)
    wait_for(lambda: len(list(folder.glob("*.txt"))) > 3)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
    done = len(list(folder.glob("*.txt")))
    assert done < 150
    assert len(events_of(run_dir, "stopped")) == 1
    assert json.loads((run_dir.path / "result.json").read_text())["num_written"] == done
    subprocess.run([sys.executable, "-m", "flowloom.tasks", str(run_dir.path)], check=True)
    assert len(list(folder.glob("*.txt"))) == 150
    assert events_of(run_dir, "progress")[-1]["step"] == 150


def test_undo_restores_the_old_captions_and_nothing_else(runs: Runs, tagger: Path, image_dir: Path):
    (image_dir / "blue.txt").write_bytes("\ufeffmeer, été\r\n".encode())
    (image_dir / "red.txt").write_bytes(b"rose \xe9 latin-1")
    before = snapshot(image_dir)
    run_dir = runs.new("tag", data_path=str(image_dir), model_path=str(tagger), existing="replace")
    assert runs.resume(run_dir)["num_unusable"] == 1, "what is no text is not replaced"
    after = snapshot(image_dir)
    assert after.keys() - before.keys() == {"green.txt"}
    undo = {"data_path": str(image_dir), "run_path": str(run_dir.path)}
    assert runs("restore-captions", **undo) == {"num_restored": 2, "changed_meanwhile": []}
    assert snapshot(image_dir) == before
    runs.resume(run_dir)
    assert snapshot(image_dir) == after, "resumed, it is done again"
    (image_dir / "blue.txt").write_text("mine now")
    assert runs("restore-captions", **undo) == {"num_restored": 1, "changed_meanwhile": ["blue.txt"]}
    assert (image_dir / "blue.txt").read_text() == "mine now"


def test_a_run_that_still_writes_is_not_undone(runs: Runs, tagger: Path, image_dir: Path):
    run_dir = runs.new("tag", data_path=str(image_dir), model_path=str(tagger))
    runs.resume(run_dir)
    noted = (run_dir.path / CHANGES).read_bytes()
    with run_dir.locked(), pytest.raises(RunError, match="is running"):
        runs("restore-captions", data_path=str(image_dir), run_path=str(run_dir.path))
    assert (run_dir.path / CHANGES).read_bytes() == noted


def test_undo_writes_to_no_other_data_than_the_run_did(
    runs: Runs, tagger: Path, image_dir: Path, tmp_path: Path
):
    run_dir = runs.new("tag", data_path=str(image_dir), model_path=str(tagger))
    runs.resume(run_dir)
    with pytest.raises(ConfigError, match="wrote to"):
        runs("restore-captions", data_path=str(tmp_path), run_path=str(run_dir.path))
    crafted = {"place": "../victim.txt", "name": "x", "before": "owned", "after": None}
    (run_dir.path / CHANGES).write_text(json.dumps(crafted) + "\n")
    with pytest.raises(DataError, match="leads out of"):
        runs("restore-captions", data_path=str(image_dir), run_path=str(run_dir.path))
    crafted["place"] = "model.py"
    (run_dir.path / CHANGES).write_text(json.dumps(crafted) + "\n")
    with pytest.raises(DataError, match=r"is not a \.txt file"):
        runs("restore-captions", data_path=str(image_dir), run_path=str(run_dir.path))
    assert not (tmp_path / "victim.txt").exists()
    problems = ALL["restore-captions"].check({"data_path": str(image_dir), "run_path": str(tmp_path)})
    assert [problem.where for problem in problems] == ["run_path"]


@pytest.fixture
def jsonl(image_dir: Path) -> Path:
    """Rows with and without captions, one image twice, one missing, and lines that are no rows."""
    rows = [
        {"filename": "blue.png", "caption_or_tags": "sea", "width": 20, "height": 20, "is_tag_based": False},
        {"filename": "red.png", "width": 20, "height": 20},
        {"filename": "missing.png", "caption_or_tags": ""},
        {
            "filename": "green.png",
            "caption_or_tags": ["one", "two"],
            "is_tag_based": True,
            "loss_weight": 0.5,
        },
        {"filename": "red.png", "caption_or_tags": "", "note": "😀 é"},
    ]
    lines = [json.dumps(row, ensure_ascii=False, separators=(",", ":")) for row in rows]
    lines[2:2] = ["", "not JSON", '{"caption_or_tags": "no name"}']
    path = image_dir / "set.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def rows_of(path: Path) -> list[Any]:
    lines = path.read_text(encoding="utf-8").splitlines()
    return [json.loads(line) if line.startswith('{"f') else line for line in lines]


RED_TAGS = "fox (forest story), red theme, ^_^, long hair, 1girl"


def test_rows_get_their_captions_and_keep_the_rest(tag: Tag, jsonl: Path, image_dir: Path):
    before = rows_of(jsonl)
    result = tag(data_path=str(jsonl), existing="append")
    after = rows_of(jsonl)
    green = "green theme, ^_^, long hair, 1girl"
    assert after[0] == before[0] | {"caption_or_tags": f"sea, {BLUE_TAGS}"}, "prose stays prose"
    assert after[1] == before[1] | {"caption_or_tags": RED_TAGS, "is_tag_based": True}
    assert after[6] == before[6] | {"caption_or_tags": [f"one, {green}", f"two, {green}"]}
    assert after[7] == before[7] | {"caption_or_tags": RED_TAGS, "is_tag_based": True}
    assert after[2:6] == before[2:6]
    assert result["num_images"] == 4
    assert result["num_written"] == 4
    places = [one["image"] for one in result["unusable"]]
    assert places == ["set.jsonl:4", "set.jsonl:5", "missing.png"]
    assert not list(image_dir.glob("*.txt"))


def test_rows_with_captions_are_skipped_or_replaced(tag: Tag, jsonl: Path):
    before = rows_of(jsonl)
    assert tag(data_path=str(jsonl))["num_kept"] == 2
    after = rows_of(jsonl)
    assert (after[0], after[6]) == (before[0], before[6])
    assert after[1]["caption_or_tags"] == RED_TAGS
    tag(data_path=str(jsonl), existing="replace")
    assert rows_of(jsonl)[0] == before[0] | {"caption_or_tags": BLUE_TAGS, "is_tag_based": True}


def test_undo_gives_the_jsonl_back_byte_for_byte(runs: Runs, tagger: Path, jsonl: Path):
    before = jsonl.read_bytes()
    run_dir = runs.new("tag", data_path=str(jsonl), model_path=str(tagger), existing="replace")
    runs.resume(run_dir)
    assert jsonl.read_bytes() != before
    runs("restore-captions", data_path=str(jsonl), run_path=str(run_dir.path))
    assert jsonl.read_bytes() == before


def test_rows_edited_meanwhile_stay_as_they_were_edited(runs: Runs, tagger: Path, jsonl: Path):
    run_dir = runs.new("tag", data_path=str(jsonl), model_path=str(tagger))
    note = {"place": "2", "name": "red.png", "before": {}, "after": {"caption_or_tags": "ours"}}
    (run_dir.path / CHANGES).write_text(json.dumps(note) + "\n")
    mine = '"red.png","caption_or_tags":"mine","width"'
    edited = jsonl.read_text(encoding="utf-8").replace('"red.png","width"', mine)
    jsonl.write_text(edited, encoding="utf-8")
    result = runs.resume(run_dir)
    assert rows_of(jsonl)[1]["caption_or_tags"] == "mine"
    assert result["changed_meanwhile"] == ["set.jsonl:2"]
    assert "not overwritten" in events_of(run_dir, "warning")[0]["message"]


def test_an_unwritable_folder_is_reported_and_left_unchanged(runs: Runs, tagger: Path, image_dir: Path):
    (image_dir / "blue.txt").mkdir()
    run_dir = runs.new("tag", data_path=str(image_dir), model_path=str(tagger))
    result = runs.resume(run_dir)
    assert [one["image"] for one in result["unusable"]] == ["blue.png"]
    assert result["num_written"] == 2
