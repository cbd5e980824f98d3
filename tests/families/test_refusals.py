"""Settings and files of another family are refused before anything is loaded, by the key at fault."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from flowloom.config.flow_format.read import read_config
from flowloom.config.model_files import resolve_paths
from flowloom.config.run import ModelSection
from flowloom.errors import ConfigError
from flowloom.model_library.requirements import unfit_models
from tests.families.krea2 import TinyKrea2
from tests.families.lumina2 import TinyLumina2
from tests.families.qwen_image import TinyQwenImage
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


@pytest.mark.parametrize("other", [TinyKrea2, TinyLumina2, TinyQwenImage])
def test_a_text_encoder_of_another_kind_is_refused(folder: Path, tmp_path: Path, other: Any):
    """As wide as the right one, it would give other texts without an error."""
    with torch.random.fork_rng():
        other().make(tmp_path, tmp_path).text_encoder.save_pretrained(tmp_path / "other")
    section = resolve_paths(ModelSection(path=str(folder)), tmp_path)
    assert not unfit_models(section.model_dump())
    (problem,) = unfit_models(section.model_dump() | {"text_encoder_path": str(tmp_path / "other")})
    assert problem.where == "model.text_encoder_path"
    assert problem.message.endswith(": Qwen3 4B goes here.")
