"""Folders as other programs leave them: every image with its caption, and what is passed over is counted."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flowloom.errors import DataError
from tests.datasets.build.images import built, image_bytes, write


def filled(folder: Path, files: dict[str, object]) -> Path:
    """A folder with images (None), texts and JSON (objects)."""
    for number, (name, content) in enumerate(files.items()):
        if content is None:
            suffix = Path(name).suffix.lower()
            write(folder / name, image_bytes(number, suffix=suffix))
        else:
            write(folder / name, content if isinstance(content, str | bytes) else json.dumps(content))
    return folder


FOLDERS: dict[str, tuple[dict[str, object], dict[str, str]]] = {
    "booru with edited texts": (
        {"1.png": None, "1.txt": "edited, tags", "1.png.json": {"tag_string": "a b"}},
        {"1.png": "edited, tags"},
    ),
    "gallery-dl of danbooru": (
        {"d_1.jpg": None, "d_1.jpg.json": {"tag_string": "1girl red_hair", "description": ""}},
        {"d_1.jpg": "1girl, red_hair"},
    ),
    "gallery-dl of e621": (
        {
            "1.png": None,
            "1.png.json": {"description": "by me", "tags": {"general": ["fox"], "species": ["dog"]}},
        },
        {"1.png": "fox, dog"},
    ),
    "ai-toolkit": (
        {"1.jpg": None, "1.txt": "[trigger] fox", "_latent_cache/1.safetensors": "x", ".aitk_size.json": {}},
        {"1.jpg": "[trigger] fox"},
    ),
    "OneTrainer": (
        {"1.png": None, "1-masklabel.png": None, "1-condlabel.png": None, "1.txt": "fox"},
        {"1.png": "fox"},
    ),
    "texts for whole names": ({"1.jpg": None, "1.jpg.txt": "own", "1.txt": "other"}, {"1.jpg": "own"}),
    "upper case": ({"A.JPG": None, "A.TXT": "x", "B.PNG": None, "b.txt": "y"}, {"A.JPG": "x", "B.PNG": "y"}),
    "synology and notebooks": (
        {
            "1.png": None,
            "1.txt": "x",
            "@eaDir/1.png/SYNOPHOTO_THUMB.jpg": None,
            ".ipynb_checkpoints/1-checkpoint.png": None,
            "Thumbs.db": "x",
            "._1.png": "x",
        },
        {"1.png": "x"},
    ),
    "imagefolder in a split": (
        {"train/1.png": None, "train/metadata.jsonl": {"file_name": "1.png", "text": "x"}},
        {"1.png": "x"},
    ),
    "a csv of any name": ({"1.png": None, "captions.csv": "filename,caption\n1.png,x\n"}, {"1.png": "x"}),
    "kohya's metadata": (
        {"1.png": None, "meta_lat.json": {"1": {"caption": "fox", "tags": "a, b"}}},
        {"1.png": "fox"},
    ),
    "musubi's list": (
        {"1.png": None, "set.jsonl": {"image_path": "/srv/sets/fox/1.png", "caption": "x"}},
        {"1.png": "x"},
    ),
    "by year": ({"2023/05/1.png": None, "2023/05/1.txt": "x"}, {"2023/05/1.png": "x"}),
    "a file beside": ({"1.gif": None, "1.txt": "x", "2.mp3": "v", "2.txt": "y"}, {"1.gif": "x"}),
    "caches of sd-scripts": (
        {
            "img/2_fox/1.png": None,
            "img/2_fox/1.txt": "x",
            "img/2_fox/1_flux.npz": "x",
            "mask/2_fox/1.png": None,
        },
        {"img/2_fox/1.png": "x"},
    ),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_every_image_has_its_caption(tmp_path: Path, name: str) -> None:
    files, expected = FOLDERS[name]
    rows, report = built(filled(tmp_path / "in", files), tmp_path / "d.jsonl")
    assert {row["filename"]: row["caption_or_tags"] for row in rows} == expected
    assert not report.unusable


def test_img2dataset_s_parquet_hides_no_captions(tmp_path: Path) -> None:
    folder = filled(tmp_path / "in", {"00000/0.jpg": None, "00000/0.txt": "x", "00000_stats.json": {}})
    pq.write_table(pa.table({"url": ["http://x.test/y.jpg"], "caption": ["c"]}), folder / "00000.parquet")
    rows, report = built(folder, tmp_path / "d.jsonl")
    assert [row["caption_or_tags"] for row in rows] == ["x"]
    assert any("names images elsewhere" in text for text in report.remarks)


def test_one_tag_a_line_is_reported(tmp_path: Path) -> None:
    folder = filled(tmp_path / "in", {"1.png": None, "1.png.txt": "character:fox\nsnow\nred fur\n"})
    rows, report = built(folder, tmp_path / "d.jsonl")
    assert [row["caption_or_tags"] for row in rows] == ["character:fox snow red fur"]
    assert any("one tag each" in text for text in report.remarks)


def test_several_tables_are_named_and_none_is_taken(tmp_path: Path) -> None:
    line = {"file_name": "1.png", "text": "x"}
    files = {
        "train/1.png": None,
        "train/metadata.jsonl": line,
        "test/1.png": None,
        "test/metadata.jsonl": line,
    }
    with pytest.raises(DataError, match=r"test/metadata\.jsonl, train/metadata\.jsonl. Build from one"):
        built(filled(tmp_path / "in", files), tmp_path / "d.jsonl")


def test_links_out_of_the_folder_are_reported_with_a_hint(tmp_path: Path) -> None:
    filled(tmp_path / "store", {"1.png": None, "1.txt": "x"})
    (tmp_path / "in").mkdir()
    for name in ("1.png", "1.txt"):
        (tmp_path / "in" / name).symlink_to(tmp_path / "store" / name)
    with pytest.raises(DataError, match="pass a folder above both as --root"):
        built(tmp_path / "in", tmp_path / "d.jsonl")
    rows, _ = built(tmp_path / "in", tmp_path / "d.jsonl", root=tmp_path)
    assert [(row["filename"], row["caption_or_tags"]) for row in rows] == [("in/1.png", "x")]
