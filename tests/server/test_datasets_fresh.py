"""Training reads the captions that the gallery shows; a JSONL without some of them is called outdated."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.fakes.onnx_tagger import write_tagger
from tests.server.conftest import Studio

COUNT = 6


@pytest.fixture(scope="module")
def one_studio(tmp_path_factory: pytest.TempPathFactory, tiny_roots: list[str]) -> Any:
    """A studio of this file."""
    folder = tmp_path_factory.mktemp("fresh")
    studio = Studio(folder / "home", *tiny_roots).start()
    studio.http.timeout = 120  # a preflight starts a process that loads torch
    yield studio
    studio.end()


@pytest.fixture
def fox(one_studio: Studio, request: pytest.FixtureRequest) -> str:
    """The name of a dataset: six images, each with a caption."""
    name = request.node.originalname.replace("test_", "")[:60]
    folder = one_studio.home / "data" / name
    folder.mkdir(parents=True)
    for number in range(COUNT):
        Image.linear_gradient("L").rotate(40 * number).resize((64, 64)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"a fox, number {number}")
    return name


def freshness(studio: Studio, name: str) -> tuple[bool, int]:
    found = studio.get(f"/api/datasets/{name}.jsonl/freshness")
    assert found["source"] == str(studio.home / "data" / name)
    return found["is_outdated"], found["num_changed"]


def captions(studio: Studio, name: str) -> dict[str, str]:
    """By file name, as the gallery shows them."""
    return {one["file"]: one["caption"] for one in studio.get(f"/api/datasets/{name}/images")["images"]}


def write_caption(studio: Studio, name: str, item: str, caption: str) -> None:
    url = f"/api/datasets/{name}/captions/{item}"
    answer = studio.http.put(url, json={"caption": caption}, headers={"If-Match": "*"})
    assert answer.status_code == 200, answer.text


def rows_of(path: Path) -> dict[str, str]:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return {row["filename"]: row["caption_or_tags"] for row in rows}


def trained(studio: Studio, config: dict[str, Any], run: str) -> dict[str, str]:
    """By file name, what a run of the studio read before its first step."""
    studio.post("/api/flow/train/start", {"name": run, "config": config}, 201)
    studio.wait(run, "finished")
    (kept,) = (studio.home / "runs" / run).glob("data/*/*.jsonl")
    return rows_of(kept)


def test_every_kind_of_edit_of_a_folder_is_trained(
    one_studio: Studio, fox: str, tiny_config: Callable[..., dict[str, Any]], tmp_path: Path
):
    studio, folder = one_studio, one_studio.home / "data" / fox
    data = {"jsonl_metadata_path": str(folder), "image_folder_path": str(folder)}
    config = tiny_config(dataloader=data, limits={"max_steps": 1})
    write_caption(studio, fox, "0.png", "edited alone")
    added = {"operation": {"kind": "add", "tags": ["snow"], "where": "end"}}
    studio.post(f"/api/datasets/{fox}/edits", added, 201)
    undone = studio.post(
        f"/api/datasets/{fox}/edits", {"operation": {"kind": "replace_text", "text": "fox", "by": "cat"}}, 201
    )
    studio.post(f"/api/datasets/{fox}/edits/{undone['id']}/undo", {}, 200)
    (folder / "4.txt").write_text("edited by another program")
    (folder / "5.png").unlink()
    Image.new("RGB", (64, 64)).save(folder / "6.png")
    (folder / "6.txt").write_text("added")
    expected = {
        "0.png": "edited alone, snow",
        **{f"{number}.png": f"a fox, number {number}, snow" for number in (1, 2, 3)},
        "4.png": "edited by another program",
        "6.png": "added",
    }
    assert trained(studio, config, "all-edits") == expected == captions(studio, fox)
    report = studio.post("/api/flow/preflight", {"config": config, "samples_per_s": 1.0}, 200)
    assert report["data"]["rows"] == 6
    assert report["hints"] == []


def test_tags_that_a_run_wrote_are_trained(
    one_studio: Studio, fox: str, tiny_config: Callable[..., dict[str, Any]]
):
    studio, folder = one_studio, one_studio.home / "data" / fox
    write_tagger(studio.home / "models" / "tagger")
    config = {
        "data_path": str(folder),
        "model_path": str(studio.home / "models" / "tagger"),
        "existing": "replace",
    }
    studio.post("/api/tasks/tag/start", {"name": "tagged", "config": config}, 201)
    studio.wait("tagged", "finished")
    shown = captions(studio, fox)
    assert all("fox, number" not in caption for caption in shown.values())
    data = {"jsonl_metadata_path": str(folder), "image_folder_path": str(folder)}
    assert trained(studio, tiny_config(dataloader=data, limits={"max_steps": 1}), "after-tags") == shown


def test_a_jsonl_is_outdated_after_each_kind_of_edit_and_up_to_date_after_one_request(
    one_studio: Studio, fox: str
):
    studio, folder = one_studio, one_studio.home / "data" / fox
    studio.post(f"/api/datasets/{fox}/convert", {"loss_weight": 0.5}, 200)
    shown = {one["name"]: one["source"] for one in studio.get("/api/datasets")}
    assert shown[f"{fox}.jsonl"] == str(folder)
    assert shown[fox] is None
    assert freshness(studio, fox) == (False, 0)
    write_caption(studio, fox, "0.png", "edited alone")
    assert freshness(studio, fox) == (True, 1)
    edit = studio.post(
        f"/api/datasets/{fox}/edits", {"operation": {"kind": "add", "tags": ["snow"], "where": "end"}}, 201
    )
    assert freshness(studio, fox) == (True, COUNT)
    studio.post(f"/api/datasets/{fox}/edits/{edit['id']}/undo", {}, 200)
    assert freshness(studio, fox) == (True, 1)
    done = studio.post(f"/api/datasets/{fox}.jsonl/update", {}, 200)["result"]
    assert done["num_rows"] == COUNT
    assert freshness(studio, fox) == (False, 0)
    rows = [json.loads(line) for line in (studio.home / "data" / f"{fox}.jsonl").read_text().splitlines()]
    assert rows[0]["caption_or_tags"] == "edited alone"
    assert {row["loss_weight"] for row in rows} == {0.5}, "the options of the first build"


def test_a_large_jsonl_is_updated_by_a_run(one_studio: Studio, fox: str):
    studio = one_studio
    studio.post(f"/api/datasets/{fox}/convert", {}, 200)
    write_caption(studio, fox, "3.png", "later")
    run = studio.post(f"/api/datasets/{fox}.jsonl/update", {"as_run": True}, 202)["run"]
    studio.wait(run["id"], "finished")
    assert rows_of(studio.home / "data" / f"{fox}.jsonl")["3.png"] == "later"


def test_the_preflight_reports_an_outdated_jsonl(
    one_studio: Studio, fox: str, tiny_config: Callable[..., dict[str, Any]]
):
    studio, folder = one_studio, one_studio.home / "data" / fox
    studio.post(f"/api/datasets/{fox}/convert", {}, 200)
    data = {"jsonl_metadata_path": str(folder) + ".jsonl", "image_folder_path": str(folder)}
    request = {"config": tiny_config(dataloader=data), "samples_per_s": 1.0}
    assert studio.post("/api/flow/preflight", request, 200)["hints"] == []
    write_caption(studio, fox, "2.png", "edited")
    (hint,) = studio.post("/api/flow/preflight", request, 200)["hints"]
    assert hint.startswith(f"{folder}.jsonl is outdated: 1 row differs")


def test_an_edited_jsonl_is_not_replaced_unasked(one_studio: Studio, fox: str):
    studio = one_studio
    studio.post(f"/api/datasets/{fox}/convert", {}, 200)
    write_caption(studio, f"{fox}.jsonl", "1", "edited in the JSONL")
    found = studio.get(f"/api/datasets/{fox}.jsonl/freshness")
    assert (found["is_outdated"], found["is_edited"]) == (False, True)
    assert "edited in the JSONL" in rows_of(studio.home / "data" / f"{fox}.jsonl").values()


def test_a_jsonl_that_was_not_built_from_a_folder_has_nothing_to_compare_with(one_studio: Studio, fox: str):
    studio = one_studio
    row = {"filename": "a.png", "caption_or_tags": "a", "width": 64, "height": 64}
    (studio.home / "data" / f"{fox}-given.jsonl").write_text(json.dumps(row) + "\n")
    for name in (fox, f"{fox}-given.jsonl"):
        assert studio.get(f"/api/datasets/{name}/freshness")["source"] is None
        assert studio.http.post(f"/api/datasets/{name}/update", json={}).status_code == 409


def test_a_recorded_folder_outside_the_roots_is_not_read(one_studio: Studio, fox: str, tmp_path: Path):
    from flowloom.datasets.build.build import build
    from flowloom.datasets.build.options import BuildOptions

    Image.new("RGB", (64, 64)).save(tmp_path / "x.png")
    (tmp_path / "x.txt").write_text("somebody's")
    jsonl = one_studio.home / "data" / f"{fox}.jsonl"
    build(str(tmp_path), jsonl, BuildOptions(), lambda _: None)
    (tmp_path / "x.txt").write_text("changed")
    assert one_studio.get(f"/api/datasets/{fox}.jsonl/freshness")["source"] is None
    assert one_studio.http.post(f"/api/datasets/{fox}.jsonl/update", json={}).status_code == 409
