"""Images that others were edited from: found by name, kept from tables, checked by lint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest

from flowloom.config.run import RunConfig
from flowloom.data.metadata import read_metadata
from flowloom.datasets.build.build import build
from flowloom.datasets.build.export import ExportOptions, export
from flowloom.datasets.build.options import BuildOptions
from flowloom.datasets.build.upload import Uploader
from flowloom.datasets.lint.check import LintOptions, lint
from flowloom.errors import DataError
from tests.datasets.build.images import image_bytes, write
from tests.datasets.build.test_upload import FolderStore


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Images in two folders, with one control image, two numbered ones, and none."""
    root = tmp_path / "set"
    for i, name in enumerate(
        ("after/sub/a", "after/b", "after/c", "before/sub/a", "before/b_1", "before/b_0")
    ):
        write(root / f"{name}.png", image_bytes(i))
    for name in "sub/a", "b", "c":
        write(root / f"after/{name}.txt", "paint it blue")
    return root


def references(path: Path) -> dict[str, tuple[str, ...]]:
    metadata = read_metadata(path)
    rows = [metadata.row(index) for index in range(len(metadata))]
    assert metadata.num_references.tolist() == [len(row.references) for row in rows]
    return {row.filename: row.references for row in rows}


def test_control_images_of_equal_names_become_references(folder: Path, tmp_path: Path):
    output = tmp_path / "d.jsonl"
    options = BuildOptions(reference_dirs=(folder / "before",))
    report = build(str(folder), output, options, lambda _: None)
    expected = {
        "after/b.png": ("before/b_0.png", "before/b_1.png"),
        "after/sub/a.png": ("before/sub/a.png",),
    }
    assert references(output) == expected
    assert [bad.where for bad in report.unusable] == ["after/c.png"]
    assert "no file of its name in before" in report.unusable[0].reason
    assert report.remarks["not a row: a reference image by its folder"] == 3
    # A table keeps them.
    again = tmp_path / "again.jsonl"
    build(str(output), again, BuildOptions(root=folder), lambda _: None)
    assert references(again) == expected


def test_a_table_of_control_paths_becomes_references(folder: Path, tmp_path: Path):
    rows = [
        {"image_path": "after/b.png", "caption": "x", "control_path_0": "before/b_0.png"}
        | {"control_path_1": "before/b_1.png"},
        {"image_path": "after/c.png", "caption": "x", "control_path": "before/sub/a.png"},
        {"image_path": "after/c.png", "caption": "x", "control_path": "before/missing.png"},
    ]
    table = folder / "table.jsonl"
    table.write_bytes(b"\n".join(map(orjson.dumps, rows)))
    report = build(str(table), tmp_path / "d.jsonl", BuildOptions(), lambda _: None)
    found = references(tmp_path / "d.jsonl")
    assert found == {
        "after/b.png": ("before/b_0.png", "before/b_1.png"),
        "after/c.png": ("before/sub/a.png",),
    }
    assert ["reference before/missing.png" in bad.reason for bad in report.unusable] == [True]


def test_a_folder_elsewhere_is_refused(folder: Path, tmp_path: Path):
    with pytest.raises(DataError, match="set --root to a folder that has both"):
        build(
            str(folder / "after"),
            tmp_path / "d.jsonl",
            BuildOptions(reference_dirs=(folder / "before",)),
            lambda _: None,
        )


def test_references_are_uploaded_with_their_images(folder: Path, tmp_path: Path):
    output = tmp_path / "d.jsonl"
    store: Any = FolderStore(tmp_path / "bucket")
    store.root.mkdir()
    build(str(folder), output, BuildOptions(reference_dirs=(folder / "before",)), lambda _: None)
    report = Uploader(output, "s3://bucket/set", store, folder).upload(
        tmp_path / "up.jsonl", "", lambda _: None
    )
    assert (report.num_rows, report.num_sent, report.unusable) == (2, 5, [])
    assert references(tmp_path / "up.jsonl") == {
        f"s3://bucket/set/{name}": tuple(f"s3://bucket/set/{other}" for other in others)
        for name, others in references(output).items()
    }
    assert (store.root / "before/b_1.png").read_bytes() == (folder / "before/b_1.png").read_bytes()
    (folder / "before/b_0.png").unlink()
    again = Uploader(output, "s3://bucket/set", store, folder).upload(
        tmp_path / "2.jsonl", "", lambda _: None
    )
    assert ["reference before/b_0.png" in bad.reason for bad in again.unusable] == [True]
    exported = export(
        output, "parquet", tmp_path / "rows.parquet", ExportOptions(with_images=False), lambda _: None
    )
    assert exported.remarks["references are lost: this format cannot contain them"] == 2


def test_lint_finds_a_missing_reference(folder: Path, tmp_path: Path):
    output = tmp_path / "d.jsonl"
    build(str(folder), output, BuildOptions(reference_dirs=(folder / "before",)), lambda _: None)
    (folder / "before" / "b_1.png").unlink()
    data = {"jsonl_metadata_path": str(output), "image_folder_path": str(folder)}
    report = lint(LintOptions(RunConfig.model_validate({"dataloader": data}))).report
    missing = [finding for finding in report.findings if finding.kind == "missing_file"]
    assert [(one.filename, one.message.startswith("reference before/b_1.png:")) for one in missing] == [
        ("after/b.png", True)
    ]
