"""The family seam: code outside `models/` and `nn/` does not know a family's names or blocks."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "flowloom"
FAMILIES = re.compile(
    r"chroma|flux|radiance|(?:double|single)_(?:transformer_)?blocks|distilled_guidance_layer", re.IGNORECASE
)
FLOW_KEYS = re.compile(r"\b(?:chroma_path|trained_(?:double|single)_blocks)\b")
ENCODERS = re.compile(r"\bt5\b", re.IGNORECASE)
ALLOWED = {
    "models/": "where families are",
    "nn/": "where their networks are",
    "trainers/": "other programs name families too",
    "demo/": "makes a Chroma",
    "tasks/demo.py": "names the demo's Chroma",
    "config/flow_format/": "FLOW's keys and their descriptions",
    "config/run.py": "FLOW's keys and their descriptions",
    "model_library/offers/": "models to download",
    "model_library/scan.py": "variants in file names",
    "flow_matching/samplers.py": "cites FLUX for the shift",
    "server/routes/": "examples in the API's descriptions",
    "tasks/download.py": "an example in a description",
    "tasks/sample.py": "describes a key",
    "cli/main.py": "the program's description",
    "__init__.py": "the package's description",
}


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda path: str(path.relative_to(SOURCE)))
def test_only_models_and_nn_name_families(path: Path):
    name = path.relative_to(SOURCE).as_posix()
    text = FLOW_KEYS.sub("", path.read_text())
    assert name.startswith(tuple(ALLOWED)) or not FAMILIES.findall(text)


@pytest.mark.parametrize("path", sorted((SOURCE / "engine").rglob("*.py")), ids=lambda path: path.name)
def test_the_engine_names_no_encoder(path: Path):
    assert not ENCODERS.findall(path.read_text())


def test_each_exception_is_needed():
    paths = {path.relative_to(SOURCE).as_posix(): path.read_text() for path in SOURCE.rglob("*.py")}
    for allowed in ALLOWED:
        assert any(FAMILIES.search(text) for name, text in paths.items() if name.startswith(allowed)), allowed
