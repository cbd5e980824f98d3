"""A dataset's page after an edit: images that are still damaged, and the edits."""

from __future__ import annotations

from typing import Any

import pytest
from PIL import Image

from tests.server.conftest import Studio, wait_for


def test_a_damaged_image_stays_a_problem_when_its_caption_is_edited(one_studio: Studio):
    folder = one_studio.home / "data" / "damaged"
    folder.mkdir(parents=True)
    for name, data in {"bad.png": b"no image", "empty.png": b""}.items():
        (folder / name).write_bytes(data)
    Image.new("RGB", (8, 8)).save(folder / "good.png")
    url = "/api/datasets/damaged"

    def problems() -> tuple[int, set[str], int]:
        listed = one_studio.get(f"{url}/images", has_problem=True)
        return (
            one_studio.get(f"{url}/summary")["problems"],
            {image["file"] for image in listed["images"] if image["problem"]},
            listed["total"],
        )

    wait_for(lambda: problems()[0] == 2)
    edit = one_studio.post(f"{url}/edits", {"operation": {"kind": "set", "text": "a fox"}}, 201)
    assert edit["num_changed"] == 3
    assert problems() == (2, {"bad.png", "empty.png"}, 2)
    one_studio.http.put(f"{url}/captions/bad.png", json={"caption": "alone"}, headers={"If-Match": "*"})
    assert problems() == (2, {"bad.png", "empty.png"}, 2)
    Image.new("RGB", (8, 8)).save(folder / "bad.png")
    wait_for(lambda: problems() == (1, {"empty.png"}, 1))


@pytest.mark.parametrize(
    ("operation", "title"),
    [
        ({"kind": "add", "tags": ["fox", "snow"], "where": "start"}, "Added “fox”, “snow” at the start"),
        ({"kind": "add", "tags": list("abcdefg")}, "Added “a”, “b”, “c”, “d”, “e” and 2 more at the end"),
        ({"kind": "remove", "tags": ["snow"]}, "Removed “snow”"),
        ({"kind": "replace", "tag": "grey fur", "by": "fur"}, "Replaced the tag “grey fur” with “fur”"),
        (
            {"kind": "reorder", "first": ["fox"], "rest": "sorted"},
            "Moved “fox” to the front and sorted the rest",
        ),
        ({"kind": "reorder"}, "Reordered the tags"),
        ({"kind": "replace_text", "text": "fox", "by": "cat"}, "Replaced “fox” with “cat”"),
        ({"kind": "replace_text", "text": "fox"}, "Removed the text “fox”"),
        ({"kind": "set", "text": "x" * 61}, f"Set the caption to “{'x' * 60} …”"),
        ({"kind": "set", "text": ""}, "Cleared the captions"),
    ],
)
def test_the_list_of_edits_has_readable_descriptions(
    one_studio: Studio, operation: dict[str, Any], title: str
):
    folder = one_studio.home / "data" / "worded"
    folder.mkdir(exist_ok=True, parents=True)
    Image.new("RGB", (8, 8)).save(folder / "1.png")
    url = "/api/datasets/worded/edits"
    edit = one_studio.post(url, {"operation": operation}, 201)
    assert edit["title"] == title
    assert one_studio.get(url)[0] == edit
    undone = one_studio.post(f"{url}/{edit['id']}/undo", {}, 200)
    assert undone["title"] == f"Undone: {title}"
    assert one_studio.get(url)[0] == undone, "the latest first"
