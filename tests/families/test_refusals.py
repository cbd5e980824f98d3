"""Settings and files of another family are refused before anything is loaded, by the key at fault."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from flowloom.config.flow_format.read import read_config
from flowloom.errors import ConfigError
from tests.families.zimage import TinyZImage


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("z-image")
    TinyZImage().make(path, path).save_pretrained(path)
    return path


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("objective.mask_mode", "flow_union", "set it to per_sample"),
        ("model.use_x0", True, "Z-Image predicts the velocity"),
    ],
)
def test_keys_of_other_families_are_refused_as_a_file_is_read(
    folder: Path, tmp_path: Path, key: str, value: Any, text: str
):
    data: dict[str, Any] = {
        "model": {"path": str(folder)},
        "dataloader": {"jsonl_metadata_path": str(folder), "image_folder_path": str(folder)},
    }
    path = tmp_path / "run.json"
    path.write_text(json.dumps(data))
    assert read_config(path, with_files=True).config.model.family == "auto"
    section, _, name = key.partition(".")
    path.write_text(json.dumps(data | {section: data.get(section, {}) | {name: value}}))
    with pytest.raises(ConfigError) as caught:
        read_config(path, with_files=True)
    assert [problem.where for problem in caught.value.problems] == [key]
    assert text in caught.value.problems[0].message
