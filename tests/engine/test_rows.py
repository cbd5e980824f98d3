"""A run trains what a folder says when it begins, and a resumed one the rows that it began with."""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from flowloom.config.flow_format.read import LoadedConfig, load_config
from flowloom.config.run import RunConfig
from flowloom.datasets.build.build import build
from flowloom.datasets.build.options import BuildOptions
from flowloom.datasets.build.update import folder_rows, freshness, update
from flowloom.datasets.load import load_dataset
from flowloom.engine.__main__ import run_engine
from flowloom.engine.build import Components
from flowloom.engine.build import build as build_parts
from flowloom.engine.estimate.plan import make_plan
from flowloom.engine.estimate.preflight import Target, preflight
from flowloom.engine.parallel.ranks import Ranks
from flowloom.engine.rows import keep_rows
from flowloom.errors import DataError
from flowloom.run.directory import RunDir
from flowloom.run.events import read_events
from flowloom.run.resume import change_by_flags

MakeConfig = Callable[..., RunConfig]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The user's cache is one of the test's own."""
    from flowloom.datasets.build import update as fresh

    fresh._cache_dir.cache_clear()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    yield
    fresh._cache_dir.cache_clear()


@pytest.fixture
def folder(tmp_path: Path, synthetic_data: Path) -> Path:
    """22 images with a caption file beside each."""
    made = tmp_path / "fox"
    made.mkdir()
    for path in sorted(synthetic_data.glob("*.png")):
        shutil.copy(path, made)
        (made / f"{path.stem}.txt").write_text(f"a photo, number {path.stem}\n")
    return made


@pytest.fixture
def make_run(tmp_path: Path, make_config: MakeConfig, folder: Path) -> Callable[..., RunDir]:
    """A run on the folder, with every caption whole."""

    def make(name: str, path: Path = folder, **sections: object) -> RunDir:
        run_dir = RunDir.create(name, tmp_path / "runs")
        run_dir.write_run(on(make_config, path, folder, **sections), "a test")
        return run_dir

    return make


def on(make_config: MakeConfig, path: Path, folder: Path, **sections: object) -> RunConfig:
    """A configuration that trains `path`, whose images are in `folder`; no caption is varied."""
    plain = {"uncond_percentage": 0.0, "tag_drop_percentage": 0.0, "shuffle_tags": False}
    return make_config(
        dataloader={"jsonl_metadata_path": str(path), "image_folder_path": str(folder), **plain},
        objective={"lowercase_percentage": 0.0},
        **sections,
    )


def trained_captions(config: RunConfig) -> set[str]:
    """Every caption that one epoch of the engine's loader reads."""
    components: Components = build_parts(config, Ranks())
    try:
        return {sample.caption for batch in components.loader.batches(0) for sample in batch.samples}
    finally:
        components.images.close()


def warnings_of(run_dir: RunDir) -> list[str]:
    return [event["message"] for event in read_events(run_dir.events_jsonl) if event["kind"] == "warning"]


def kept_captions(run_dir: RunDir) -> list[str]:
    (rows,) = run_dir.path.glob("data/*/fox.jsonl")
    return [json.loads(line)["caption_or_tags"] for line in rows.read_text().splitlines()]


def test_a_folder_trains_the_captions_that_its_files_have_now(
    folder: Path, make_config: MakeConfig, make_run: Callable[..., RunDir]
):
    config = on(make_config, folder, folder)
    assert trained_captions(config) == {f"a photo, number {i:02d}" for i in range(22)}
    (folder / "03.txt").write_text("a photo, edited\n")
    expected = {f"a photo, number {i:02d}" for i in range(22) if i != 3} | {"a photo, edited"}
    assert trained_captions(config) == expected
    run_dir = make_run("run", limits={"max_steps": 1})
    run_engine(run_dir)
    assert kept_captions(run_dir)[3] == "a photo, edited"


def test_an_edit_that_keeps_size_and_time_is_seen(folder: Path):
    caption = folder / "07.txt"
    before = folder_rows(folder).path.read_text()
    status = caption.stat()
    caption.write_text("a photo, NUMBER 07\n")
    os.utime(caption, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert caption.stat().st_size == status.st_size
    assert folder_rows(folder).path.read_text() == before.replace("number 07", "NUMBER 07")


def test_the_rows_of_a_folder_are_the_same_bytes_each_time_and_in_the_order_of_names(folder: Path):
    path = folder_rows(folder).path
    first = path.read_bytes()
    path.unlink()
    assert folder_rows(folder).path.read_bytes() == first
    names = [json.loads(line)["filename"] for line in first.splitlines()]
    assert names == [f"{i:02d}.png" for i in range(22)]


def test_an_edit_during_a_refresh_is_in_the_next_one_and_no_reader_sees_half_a_file(folder: Path):
    folder_rows(folder)
    stop, seen = threading.Event(), list[int]()

    def edit() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            partial = folder / ".07.tmp"
            partial.write_text(f"edit {number}\n")
            partial.replace(folder / "07.txt")
            seen.append(number)

    editor = threading.Thread(target=edit)
    editor.start()
    try:
        for _ in range(30):
            rows = [json.loads(line) for line in folder_rows(folder).path.read_text().splitlines()]
            assert len(rows) == 22
    finally:
        stop.set()
        editor.join()
    rows = [json.loads(line) for line in folder_rows(folder).path.read_text().splitlines()]
    assert rows[7]["caption_or_tags"] == f"edit {seen[-1]}"


def test_builds_of_one_folder_at_the_same_time_all_get_its_rows(folder: Path):
    found: list[int] = []
    threads = [
        threading.Thread(target=lambda: found.append(len(folder_rows(folder).path.read_text().splitlines())))
        for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [22] * 6


def test_a_resumed_run_keeps_the_rows_of_a_folder_that_it_began_with_and_says_so(
    folder: Path, make_run: Callable[..., RunDir]
):
    whole = make_run("whole", limits={"max_steps": 8}, training={"save_every": 4})
    run_engine(whole)
    run_dir = make_run("run", limits={"max_steps": 4}, training={"save_every": 4})
    run_engine(run_dir)
    before = kept_captions(run_dir)
    (folder / "05.txt").write_text("edited while it was stopped\n")
    # A new image that sorts first would move every row.
    shutil.copy(folder / "05.png", folder / "00-first.png")
    (folder / "00-first.txt").write_text("new\n")
    change_by_flags(run_dir, [("limits.max_steps", "8")])
    run_engine(run_dir)
    assert kept_captions(run_dir) == before
    losses = [
        {event["step"]: event["loss"] for event in read_events(run.events_jsonl) if event["kind"] == "step"}
        for run in (whole, run_dir)
    ]
    assert losses[0] == losses[1]
    assert [w for w in warnings_of(run_dir) if "2 rows changed since this run began" in w]


def test_a_resumed_run_reports_that_its_jsonl_has_other_captions_or_other_rows(
    tmp_path: Path, folder: Path, make_run: Callable[..., RunDir]
):
    jsonl = tmp_path / "fox.jsonl"
    build(str(folder), jsonl, BuildOptions(), lambda _: None)
    run_dir = make_run("run", jsonl, limits={"max_steps": 1}, training={"save_every": 1})
    run_engine(run_dir)
    assert warnings_of(run_dir) == []
    jsonl.write_text(jsonl.read_text().replace("number 05", "changed"))
    change_by_flags(run_dir, [("limits.max_steps", "2")])
    run_engine(run_dir)
    assert warnings_of(run_dir)[-1].startswith(f"{jsonl}: captions changed since this run began.")
    jsonl.write_text("".join(jsonl.read_text().splitlines(keepends=True)[1:]))
    change_by_flags(run_dir, [("limits.max_steps", "3")])
    run_engine(run_dir)
    assert "rows changed since this run began (22 then, 21 now)" in warnings_of(run_dir)[-1]


def test_a_run_that_is_resumed_on_other_data_says_so(
    tmp_path: Path, folder: Path, make_run: Callable[..., RunDir]
):
    jsonl = tmp_path / "fox.jsonl"
    build(str(folder), jsonl, BuildOptions(), lambda _: None)
    run_dir = make_run("run", jsonl, limits={"max_steps": 1}, training={"save_every": 1})
    run_engine(run_dir)
    (folder / "00.txt").write_text("another caption\n")
    change_by_flags(run_dir, [("limits.max_steps", "2"), ("dataloader.jsonl_metadata_path", str(folder))])
    run_engine(run_dir)
    assert warnings_of(run_dir)[-1].startswith(f"{folder}: this run started with other data.")
    assert len(kept_captions(run_dir)) == 22


def test_a_run_that_never_saved_begins_with_the_newest_captions(
    folder: Path, make_run: Callable[..., RunDir], tmp_path: Path
):
    run_dir = make_run("run")
    keep_rows(run_dir.read_config(), run_dir, Ranks(), lambda _: None)
    (folder / "01.txt").write_text("edited before the first step\n")
    keep_rows(run_dir.read_config(), run_dir, Ranks(), lambda _: None)
    assert kept_captions(run_dir)[1] == "edited before the first step"


def test_images_without_a_caption_are_counted_and_reported(folder: Path, make_run: Callable[..., RunDir]):
    (folder / "02.txt").unlink()
    run_dir = make_run("run", limits={"max_steps": 1})
    run_engine(run_dir)
    assert len(kept_captions(run_dir)) == 21
    (said,) = warnings_of(run_dir)
    assert said.startswith(f"{folder}: 1 image is left out (1: it has no caption")


def test_a_jsonl_is_outdated_as_soon_as_its_folder_has_another_caption_image_or_none(
    tmp_path: Path, folder: Path
):
    jsonl = tmp_path / "fox.jsonl"
    build(str(folder), jsonl, BuildOptions(default_caption="none"), lambda _: None)

    def found() -> tuple[bool, int, bool]:
        fresh = freshness(jsonl)
        assert fresh
        assert fresh.source == folder
        return fresh.is_outdated, fresh.num_changed, fresh.is_edited

    assert found() == (False, 0, False)
    text = (folder / "04.txt").read_text()
    (folder / "04.txt").write_text("another\n")
    assert found() == (True, 1, False)
    (folder / "04.txt").write_text(text)
    assert found() == (False, 0, False)
    (folder / "05.txt").unlink()
    (folder / "06.png").unlink()
    assert found() == (True, 2, False)
    update(jsonl)
    assert found() == (False, 0, False)
    rows = [json.loads(line) for line in jsonl.read_text().splitlines()]
    assert [row["caption_or_tags"] for row in rows if row["filename"] == "05.png"] == ["none"]
    jsonl.write_text(jsonl.read_text().replace("number 01", "by hand"))
    assert found() == (False, 0, True)


def test_the_age_of_a_file_alone_makes_no_jsonl_outdated(tmp_path: Path, folder: Path):
    jsonl = tmp_path / "fox.jsonl"
    build(str(folder), jsonl, BuildOptions(), lambda _: None)
    for path in folder.iterdir():
        path.touch()
        path.chmod(0o600)
    fresh = freshness(jsonl)
    assert fresh
    assert not fresh.is_outdated


def test_the_plan_the_preflight_and_the_run_report_an_outdated_jsonl(
    tmp_path: Path, folder: Path, make_config: MakeConfig, make_run: Callable[..., RunDir]
):
    jsonl = tmp_path / "fox.jsonl"
    build(str(folder), jsonl, BuildOptions(), lambda _: None)
    loaded = LoadedConfig(on(make_config, jsonl, folder), {}, [], Path("config"))
    assert make_plan(loaded).notes == []
    (folder / "04.txt").write_text("another\n")
    message = f"{jsonl} is outdated: 1 row differs from the images and captions in {folder}."
    assert [note for note in make_plan(loaded).notes if note.startswith(message)]
    found = preflight(loaded, Target(tmp_path / "runs")).report().model_dump()
    assert [hint for hint in found["hints"] if hint.startswith(message)]
    run_dir = make_run("run", jsonl, limits={"max_steps": 1})
    run_engine(run_dir)
    assert warnings_of(run_dir)[0].startswith(message)


def test_the_preflight_of_a_folder_counts_what_is_left_out(
    tmp_path: Path, folder: Path, make_config: MakeConfig
):
    (folder / "02.txt").unlink()
    loaded = LoadedConfig(on(make_config, folder, folder), {}, [], Path("config"))
    found = preflight(loaded, Target(tmp_path / "runs")).report().model_dump()
    assert found["data"]["rows"] == 21
    assert sum(n for reason, n in found["data"]["left_out"].items() if "no caption" in reason) == 1


def test_a_folder_names_the_folder_of_its_images_itself(
    folder: Path, make_config: MakeConfig, tmp_path: Path
):
    data = make_config().model_dump(mode="json")
    data["dataloader"] |= {"jsonl_metadata_path": str(folder), "image_folder_path": "."}
    loaded = load_config(data, [], Path("config"), with_files=True)
    assert loaded.config.dataloader.image_folder_path == str(folder)
    more = data | {"datasets": [{"jsonl_metadata_path": str(folder)}]}
    loaded = load_config(more, [], Path("config"), with_files=True)
    assert loaded.config.datasets[0].image_folder_path == str(folder)
    assert {row.filename for row in map(load_dataset(loaded.config).metadata.row, range(22))} == {
        f"{i:02d}.png" for i in range(22)
    }


def test_a_folder_of_videos_for_a_model_of_images_is_refused_as_such(tmp_path: Path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.MP4").write_bytes(b"")
    (tmp_path / "a" / "1.txt").write_text("a clip")
    with pytest.raises(DataError, match=r"has videos and no images with captions.* trains on images only"):
        folder_rows(tmp_path)
    (tmp_path / "a" / "1.MP4").unlink()
    with pytest.raises(DataError, match="no image with a caption was found"):
        folder_rows(tmp_path)
