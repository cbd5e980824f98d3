"""Datasets by HTTP: their list, their content, and captions that two people edit."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from PIL import Image

from flowloom.server.media.thumbnails import sweep
from flowloom.server.problems import MEDIA_TYPE
from tests.server.conftest import Studio, wait_for

TINY_GIF = b"GIF89a" + (3).to_bytes(2, "little") + (2).to_bytes(2, "little") + b"\0\0\0;"


@pytest.fixture
def fox(one_studio: Studio, request: pytest.FixtureRequest) -> Path:
    """A new dataset of four images, three of them with captions."""
    name = f"fox {request.node.name}"[:60].strip()
    folder = one_studio.home / "data" / name
    (folder / "den").mkdir(parents=True)
    captions = {"1.png": "fox, snow, red fur", "2.png": "A fox looks back.", "den/3.webp": "Fox, cubs, two"}
    for number, item in enumerate([*captions, "den/4.jpg"]):
        Image.new("RGB", (40 + 10 * number, 30), "red").save(folder / item)
        if item in captions:
            (folder / item).with_suffix(".txt").write_text(captions[item])
    return folder


def images(studio: Studio, name: str, **filters: Any) -> list[str]:
    return [one["item"] for one in studio.get(f"/api/datasets/{name}/images", **filters)["images"]]


def test_folders_jsonls_and_links_are_datasets(studio_at: Callable[..., Studio], tmp_path: Path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    (tmp_path / "secret").mkdir()
    studio = studio_at("home", "--root", f"pictures={folder}").start()
    data = studio.home / "data"
    assert studio.post("/api/datasets", {"name": "狐 fox"}, 201)["kind"] == "folder"
    (data / "rows.jsonl").write_text("{}\n")
    (data / "out").symlink_to(tmp_path / "secret")
    (data / ".hidden").mkdir()
    link = studio.post("/api/datasets", {"name": "linked", "path": str(folder)}, 201)
    assert link["is_link"]
    bucket = {"name": "far", "url": "s3://bucket/fox", "storage": {"endpoint": "http://127.0.0.1:9"}}
    assert studio.post("/api/datasets", bucket, 201)["kind"] == "bucket"
    found = {one["name"]: one["kind"] for one in studio.get("/api/datasets")}
    assert found == {"狐 fox": "folder", "rows.jsonl": "jsonl", "linked": "folder", "far": "bucket"}
    assert studio.http.get("/api/datasets/out").status_code == 404
    for path in (tmp_path / "secret", "/etc", data / "out"):
        answer = studio.http.post("/api/datasets", json={"name": "x", "path": str(path)})
        assert answer.status_code == 403, answer.text


@pytest.mark.parametrize(
    "name",
    ["", " ", "..", ".", ".hidden", "a/b", "../a", "a\\b", "a\0b", "x" * 151, "a\n", "x.jsonl", "\ud800"],
)
def test_no_name_leads_out_or_hides(one_studio: Studio, name: str):
    body = json.dumps({"name": name})
    answer = one_studio.http.post("/api/datasets", content=body, headers={"content-type": "application/json"})
    assert answer.status_code in (400, 422), answer.text
    assert answer.headers["content-type"] == MEDIA_TYPE


def test_deleted_datasets_come_back_from_the_trash(one_studio: Studio, fox: Path):
    trashed = one_studio.http.delete(f"/api/datasets/{fox.name}").json()
    assert not fox.exists()
    assert one_studio.http.get(f"/api/datasets/{fox.name}").status_code == 404
    assert trashed["id"] in {one["id"] for one in one_studio.get("/api/trash")}
    one_studio.post("/api/datasets", {"name": fox.name}, 201)
    assert one_studio.http.post(f"/api/trash/{trashed['id']}/restore").status_code == 409
    fox.rmdir()
    one_studio.post(f"/api/trash/{trashed['id']}/restore", status=200)
    assert (fox / "den" / "3.txt").read_text() == "Fox, cubs, two"
    again = one_studio.http.delete(f"/api/datasets/{fox.name}").json()
    assert one_studio.http.delete(f"/api/trash/{again['id']}").status_code == 204
    assert one_studio.http.post(f"/api/trash/{again['id']}/restore").status_code == 404


def test_deleting_a_linked_dataset_keeps_its_files(studio_at: Callable[..., Studio], tmp_path: Path):
    (tmp_path / "pictures").mkdir()
    studio = studio_at("home", "--root", f"pictures={tmp_path / 'pictures'}").start()
    studio.post("/api/datasets", {"name": "linked", "path": str(tmp_path / "pictures")}, 201)
    trashed = studio.http.delete("/api/datasets/linked").json()
    assert (tmp_path / "pictures").is_dir()
    assert studio.get("/api/datasets") == []
    assert studio.post(f"/api/trash/{trashed['id']}/restore", status=200)["is_link"]


def test_a_page_shows_images_with_captions_and_sizes(one_studio: Studio, fox: Path):
    page = one_studio.get(f"/api/datasets/{fox.name}/images", skip=2, limit=1)
    assert page["total"] == 4
    (cubs,) = page["images"]
    assert (cubs["item"], cubs["caption"], cubs["is_tags"]) == ("den/3.webp", "Fox, cubs, two", True)
    assert (cubs["width"], cubs["height"]) == (60, 30)
    summary = one_studio.get(f"/api/datasets/{fox.name}/summary")
    assert (summary["images"], summary["captioned"], summary["problems"]) == (4, 3, 0)


@pytest.mark.parametrize(
    ("filters", "found"),
    [
        ({"tags": "FOX"}, ["1.png", "den/3.webp"]),
        ({"tags": ["fox", "snow"]}, ["1.png"]),
        ({"without_tags": "snow"}, ["2.png", "den/3.webp", "den/4.jpg"]),
        ({"text": "looks BACK"}, ["2.png"]),
        ({"text": "den/"}, ["den/3.webp", "den/4.jpg"]),
        ({"has_caption": False}, ["den/4.jpg"]),
        ({"has_caption": True, "is_tags": False}, ["2.png"]),
        ({"folder": "den"}, ["den/3.webp", "den/4.jpg"]),
        ({"min_side": 31}, []),
        ({"max_side": 50}, ["1.png", "2.png"]),
        ({"sort": "largest", "limit": 2}, ["den/4.jpg", "den/3.webp"]),
    ],
)
def test_images_are_found_by_every_filter(
    one_studio: Studio, fox: Path, filters: dict[str, Any], found: list[str]
):
    assert images(one_studio, fox.name, **filters) == found


def test_changes_by_others_are_seen(one_studio: Studio, fox: Path):
    assert images(one_studio, fox.name, has_caption=False) == ["den/4.jpg"]
    (fox / "den" / "4.txt").write_text("a tagger was here")
    (fox / "1.png").unlink()
    os.truncate(fox / "2.png", 20)
    wait_for(lambda: images(one_studio, fox.name, has_caption=False) == [], 5)
    assert images(one_studio, fox.name) == ["2.png", "den/3.webp", "den/4.jpg"]
    wait_for(lambda: images(one_studio, fox.name, has_problem=True) == ["2.png"], 5)


def test_two_images_of_one_stem_do_not_share_a_caption(one_studio: Studio, fox: Path):
    Image.new("RGB", (8, 8)).save(fox / "1.jpg")
    wait_for(lambda: len(images(one_studio, fox.name, has_problem=True)) == 2, 5)
    caption = {"caption": "the other fox"}
    answer = one_studio.http.put(
        f"/api/datasets/{fox.name}/captions/1.jpg", json=caption, headers={"if-match": "none"}
    )
    assert answer.status_code == 200, answer.text
    assert (fox / "1.jpg.txt").read_text() == "the other fox\n"
    assert (fox / "1.txt").read_text() == "fox, snow, red fur"


def test_a_second_editor_does_not_overwrite_the_first_silently(one_studio: Studio, fox: Path):
    url = f"/api/datasets/{fox.name}/captions/1.png"
    read = one_studio.http.get(url)
    tag = read.headers["etag"]
    assert one_studio.http.put(url, json={"caption": "x"}).status_code == 428
    first = one_studio.http.put(url, json={"caption": "first"}, headers={"if-match": tag})
    assert first.status_code == 200
    second = one_studio.http.put(url, json={"caption": "second"}, headers={"if-match": tag})
    assert second.status_code == 412
    assert "first" in second.json()["hint"]
    assert (fox / "1.txt").read_text() == "first\n"
    third = {"if-match": first.headers["etag"]}
    assert one_studio.http.put(url, json={"caption": ""}, headers=third).json()["version"] == "none"
    assert not (fox / "1.txt").exists()
    assert images(one_studio, fox.name, has_caption=False) == ["1.png", "den/4.jpg"]


def test_a_caption_in_json_keeps_the_fields_beside_it(one_studio: Studio, fox: Path):
    (fox / "den" / "4.json").write_text(json.dumps({"caption": "cubs", "loss_weight": 0.5}))
    url = f"/api/datasets/{fox.name}/captions/den/4.jpg"
    wait_for(lambda: one_studio.get(url)["caption"] == "cubs", 5)
    one_studio.http.put(url, json={"caption": "two cubs"}, headers={"if-match": "*"})
    assert json.loads((fox / "den" / "4.json").read_text()) == {"caption": "two cubs", "loss_weight": 0.5}


def test_rows_of_a_jsonl_are_shown_and_edited(one_studio: Studio, fox: Path):
    rows = [
        {
            "filename": "1.png",
            "caption_or_tags": "fox, snow",
            "width": 40,
            "height": 30,
            "is_tag_based": True,
        },
        {"filename": "2.png", "caption_or_tags": ["one", "two"], "width": 50, "height": 30, "note": "kept ü"},
    ]
    jsonl = fox / "rows.jsonl"
    jsonl.write_text("".join(json.dumps(row) + "\n" for row in rows) + "broken\n")
    name = f"{fox.name} rows"
    one_studio.post("/api/datasets", {"name": name, "path": str(jsonl)}, 201)
    page = one_studio.get(f"/api/datasets/{name}/images")
    assert [one["file"] for one in page["images"]] == ["1.png", "2.png", ""]
    assert page["images"][1]["caption"] == "one\ntwo"
    assert "not JSON" in page["images"][2]["problem"]
    assert one_studio.http.get(page["images"][0]["url"]).headers["content-type"] == "image/png"
    url = f"/api/datasets/{name}/captions/2"
    tag = one_studio.http.get(url).headers["etag"]
    assert one_studio.http.put(url, json={"caption": "one\n2"}, headers={"if-match": tag}).status_code == 200
    assert one_studio.http.put(url, json={"caption": "x"}, headers={"if-match": tag}).status_code == 412
    lines = jsonl.read_text().splitlines()
    assert json.loads(lines[0]) == rows[0]
    assert json.loads(lines[1]) == rows[1] | {"caption_or_tags": ["one", "2"]}
    assert lines[2] == "broken"
    assert images(one_studio, name, text="2") == ["2"]
    assert (
        one_studio.http.put(url[:-1] + "3", json={"caption": "x"}, headers={"if-match": "*"}).status_code
        == 409
    )


def test_a_thumbnail_is_made_once_and_follows_its_image(one_studio: Studio, fox: Path):
    Image.new("RGB", (900, 300), "blue").save(fox / "wide.png")
    wait_for(lambda: "wide.png" in images(one_studio, fox.name), 5)
    url = f"/api/datasets/{fox.name}/images/wide.png"
    first = one_studio.http.get(url, params={"size": 256})
    assert first.headers["content-type"] == "image/webp"
    with Image.open(one_studio_file(first.content, fox)) as small:
        assert small.size == (256, 85)
    again = one_studio.http.get(url, params={"size": 256}, headers={"if-none-match": first.headers["etag"]})
    assert again.status_code == 304
    (fox / "wide.png").rename(fox / "moved.png")
    wait_for(lambda: "moved.png" in images(one_studio, fox.name), 5)
    moved = one_studio.http.get(url.replace("wide", "moved"), params={"size": 256})
    assert moved.headers["etag"] == first.headers["etag"]
    Image.new("RGB", (300, 900), "green").save(fox / "moved.png")
    changed = one_studio.http.get(url.replace("wide", "moved"), params={"size": 256})
    assert changed.headers["etag"] != first.headers["etag"]


def one_studio_file(content: bytes, folder: Path) -> Path:
    path = folder.parent / "seen.tmp"
    path.write_bytes(content)
    return path


def test_an_image_of_any_name_is_shown_and_recognized(one_studio: Studio, fox: Path):
    for name, params in product(["狐.png", 'a "fox".png', "füchse.png"], [{}, {"size": 128}]):
        Image.new("RGB", (8, 8)).save(fox / name)
        url = f"/api/datasets/{fox.name}/images/{quote(name)}"
        answer = one_studio.http.get(url, params=params)
        assert answer.status_code == 200, answer.text
        known = {"if-none-match": answer.headers["etag"]}
        assert one_studio.http.get(url, params=params, headers=known).status_code == 304


def test_a_file_that_is_no_image_has_no_thumbnail_and_affects_no_other(one_studio: Studio, fox: Path):
    (fox / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"x" * 100)
    (fox / "drawn.svg").write_text("<svg onload='alert(1)'/>")
    wait_for(lambda: "bad.png" in images(one_studio, fox.name), 5)
    url = f"/api/datasets/{fox.name}/images"
    assert one_studio.http.get(f"{url}/bad.png", params={"size": 128}).status_code == 415
    assert one_studio.http.get(f"{url}/1.png", params={"size": 128}).status_code == 200
    headers = one_studio.http.get(f"{url}/drawn.svg").headers
    assert headers["content-type"] == "application/octet-stream"
    assert "attachment" in headers["content-disposition"]


@pytest.mark.parametrize(
    "item", ["../1.png", "..%2f..%2fserver.log", "%2fetc%2fpasswd", "out.png", "nothing.png", "a%00b"]
)
def test_no_item_leads_out_of_its_dataset(one_studio: Studio, fox: Path, item: str):
    (fox / "out.png").symlink_to("/etc/hostname")
    for kind in ("pictures", "captions"):
        answer = one_studio.http.get(f"/api/datasets/{fox.name}/{kind}/{item}")
        assert answer.status_code in (403, 404), answer.text
        assert answer.headers["content-type"] == MEDIA_TYPE
    body, any_version = {"caption": "x"}, {"if-match": "*"}
    answer = one_studio.http.put(f"/api/datasets/{fox.name}/captions/{item}", json=body, headers=any_version)
    assert answer.status_code in (403, 404), answer.text


def test_tags_are_counted_where_captions_are_tags(one_studio: Studio, fox: Path):
    tags = one_studio.get(f"/api/datasets/{fox.name}/tags")
    assert tags["captions"] == 2
    assert {one["tag"]: one["count"] for one in tags["tags"]}["snow"] == 1
    beside = one_studio.get(f"/api/datasets/{fox.name}/tags", tags="cubs", contains="tw")
    assert [one["tag"] for one in beside["tags"]] == ["two"]


def test_a_damaged_index_is_rebuilt(one_studio: Studio, fox: Path):
    assert len(images(one_studio, fox.name)) == 4
    for path in (one_studio.home / ".flowloom" / "datasets").glob("*/index.sqlite*"):
        path.write_bytes(b"no database" * 1000)
    wait_for(lambda: one_studio.http.get(f"/api/datasets/{fox.name}/images").status_code == 200, 5)
    wait_for(lambda: len(images(one_studio, fox.name)) == 4, 5)


def test_the_first_page_of_twenty_thousand_images_comes_at_once(one_studio: Studio):
    folder = one_studio.home / "data" / "many"
    folder.mkdir()
    for number in range(20_000):
        (folder / f"{number:05}.gif").write_bytes(TINY_GIF)
        if number % 2:
            (folder / f"{number:05}.txt").write_text(f"fox, number {number}")
    url = "/api/datasets/many/images"
    wait_for(lambda: not one_studio.get(url)["scan"]["is_running"])
    page = one_studio.get(url, skip=19_990, limit=100)
    assert page["total"] == 20_000
    assert [one["item"] for one in page["images"]][-1] == "19999.gif"
    assert one_studio.get(url, has_caption=False)["total"] == 10_000
    assert images(one_studio, "many", tags="number 777") == ["00777.gif"]
    began = time.perf_counter()
    for _ in range(5):
        one_studio.get(url, limit=100)
    seconds = time.perf_counter() - began
    print(f"\na page of 20,000: {seconds / 5 * 1000:.0f} ms")
    assert one_studio.get("/api/system")["studio_memory_mib"] < 150


def test_the_longest_unseen_thumbnails_go_first(tmp_path: Path):
    (tmp_path / "ab").mkdir()
    for age in range(5):
        path = tmp_path / "ab" / f"{age}.webp"
        path.write_bytes(bytes(100))
        os.utime(path, (1_000_000 - age, 1_000_000 - age))
    sweep(tmp_path, 250)
    assert sorted(path.name for path in tmp_path.rglob("*.webp")) == ["0.webp", "1.webp"]


def test_a_decompression_bomb_has_no_thumbnail(one_studio: Studio, fox: Path):
    head = b"GIF89a" + (60_000).to_bytes(2, "little") * 2 + b"\0\0\0,\0\0\0\0"
    (fox / "huge.gif").write_bytes(head + (60_000).to_bytes(2, "little") * 2 + b"\0\x02\0;")
    wait_for(lambda: "huge.gif" in images(one_studio, fox.name), 5)
    answer = one_studio.http.get(f"/api/datasets/{fox.name}/images/huge.gif", params={"size": 128})
    assert answer.status_code == 415
    assert "megapixels" in answer.json()["detail"]
