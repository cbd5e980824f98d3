"""An import over HTTP reads the folders of the studio, and no others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.server.conftest import Studio

BASE = 'network_module = "networks.lora"\n'


def imported(studio: Studio, toml: str, **files: str) -> dict[str, Any]:
    answer = studio.http.post("/api/kohya/import", json={"toml": BASE + toml, **files})
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_a_parent_folder_becomes_the_folders_with_repeats_in_it(one_studio: Studio) -> None:
    parent = one_studio.home / "data" / "parent"
    for name in ("10_owl", "2_a cat", "notes"):
        (parent / name).mkdir(parents=True)
    found = imported(one_studio, f'train_data_dir = "{parent}"\nshuffle_caption = true')
    subsets = found["config"]["datasets"][0]["subsets"]
    assert [(Path(one["image_dir"]).name, one["num_repeats"]) for one in subsets] == [
        ("10_owl", 10),
        ("2_a cat", 2),
    ]
    assert all(one["shuffle_caption"] for one in subsets)
    assert "train_data_dir" not in found["left_over"]


def test_a_folder_outside_of_the_studio_is_not_listed(one_studio: Studio, tmp_path: Path) -> None:
    (tmp_path / "10_secret").mkdir()
    (one_studio.home / "data" / "link").symlink_to(tmp_path)
    for path in (tmp_path, one_studio.home / "data" / "link", "/data\0x", "~nobody-of-this-name/x"):
        found = imported(
            one_studio, f"train_data_dir = {str(path)!r}" if "\0" not in str(path) else 'x = "\\u0000"'
        )
        assert "10_secret" not in str(found)


@pytest.mark.parametrize("prompts", ["a fox --w 64 --n bad", '[{"prompt": "a fox", "width": 64}]'])
def test_a_prompt_file_is_brought_with_its_configuration(one_studio: Studio, prompts: str) -> None:
    found = imported(one_studio, 'sample_prompts = "p.txt"', prompts=prompts)
    (line,) = found["config"]["sampling"]["prompts"]
    assert line.startswith("a fox --w 64")
