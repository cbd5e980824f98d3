"""A run whose cache is complete needs no encoder files: to be checked, started and resumed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flowloom.cli.main import main
from flowloom.config.flow_format.read import read_config
from flowloom.config.run import RunConfig
from flowloom.engine.estimate.preflight import Target, preflight
from flowloom.engine.fill_cache import fill
from flowloom.run.directory import RunDir
from flowloom.run.events import read_events
from flowloom.trainers.engine import TRAINER

PREVIEW = {"inference_every": 1, "steps": 1, "prompts": ["red"], "image_dim": [64, 64]}


@pytest.fixture
def written(
    make_config: Callable[..., RunConfig], own_encoders: dict[str, str], tmp_path: Path
) -> Callable[..., Path]:
    """`written(section={...})`: the path of a configuration that trains from a cache of this test's own."""

    def write(**sections: Any) -> Path:
        model = {"vae_path": own_encoders["vae_path"], "t5_path": own_encoders["t5_path"]}
        cache = {"latents": "disk", "text": "disk", "dir": str(tmp_path / "cache")}
        content = make_config(limits={"max_steps": 2}, cache=cache).model_dump(mode="json")
        content["model"] |= model | {"t5_config_path": "", "t5_tokenizer_path": ""}
        for name, section in sections.items():
            content[name] = (content[name] or {}) | section
        path = tmp_path / "config.json"
        path.write_text(json.dumps(content))
        return path

    return write


def test_a_complete_cache_trains_without_the_encoder_files(
    written: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """T5's configuration and tokenizer were beside its weights, and are gone with them."""
    path = written()
    assert main(["cache", str(path)]) == 0
    shutil.rmtree(tmp_path / "encoders")
    assert main(["train", str(path), "--dry-run"]) == 0
    assert "cannot be opened; the cache has what training needs" in capsys.readouterr().out
    found = preflight(read_config(path), Target(tmp_path))
    assert found.can_run
    assert found.data
    assert found.memory
    assert found.disk
    assert TRAINER.check(json.loads(path.read_text())) == []
    arguments = ["--runs-dir", str(tmp_path / "runs"), "--name", "run"]
    assert main(["train", str(path), *arguments]) == 0
    run_dir = RunDir.open(tmp_path / "runs" / "run")
    assert main(["resume", str(run_dir.path), "--limits.max_steps", "4"]) == 0
    steps = [event for event in read_events(run_dir.events_jsonl) if event["kind"] == "step"]
    assert [event["step"] for event in steps] == [1, 2, 3, 4]


@pytest.mark.parametrize("key", ["vae_path", "t5_path"])
def test_missing_records_of_an_incomplete_cache_are_reported_before_the_start(
    written: Callable[..., Path], own_encoders: dict[str, str], synthetic_data: Path, tmp_path: Path, key: str
) -> None:
    shutil.copytree(synthetic_data, tmp_path / "data")
    jsonl = tmp_path / "data" / "data.jsonl"
    lines = jsonl.read_text().splitlines(keepends=True)
    jsonl.write_text("".join(lines[:20]))
    data = {"jsonl_metadata_path": str(jsonl), "image_folder_path": str(tmp_path / "data")}
    path = written(dataloader=data)
    fill(read_config(path).config)
    jsonl.write_text("".join(lines))
    gone = Path(own_encoders[key])
    shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
    found = preflight(read_config(path), Target()).plan.problems
    problems = {problem.where: problem.text for problem in found}
    assert set(problems) == {f"model.{key}"}
    lack = "2 of 22 checked latents are missing" if key == "vae_path" else "caption states"
    assert lack in problems[f"model.{key}"]
    shutil.rmtree(tmp_path / "cache")
    (problem,) = preflight(read_config(path), Target()).plan.problems
    assert "the cache, does not exist" in problem.text


@pytest.mark.parametrize(
    ("sections", "needed"),
    [
        ({"inference": PREVIEW}, {"model.vae_path", "model.t5_path"}),
        ({"cache": {"caption_variants": 0}}, {"model.t5_path"}),
        ({"cache": {"latents": "memory"}}, {"model.vae_path"}),
        ({"cache": {"text": "off"}}, {"model.t5_path"}),
        ({"cache": {"caption_variants": 0}, "dataloader": {"shuffle_tags": False}}, set()),
    ],
)
def test_files_that_no_cache_replaces_are_still_required(
    written: Callable[..., Path], tmp_path: Path, sections: dict[str, Any], needed: set[str]
) -> None:
    content = json.loads(written(**sections).read_text())
    shutil.rmtree(tmp_path / "encoders")
    problems = {problem.where: problem.text for problem in TRAINER.check(content)}
    assert {path for path in problems if path in ("model.vae_path", "model.t5_path")} == needed
    assert all("does not exist" in problems[path] for path in needed)
    assert ("Previews need it" in str(problems)) == ("inference" in sections)


def test_a_path_that_is_not_named_is_required_with_a_cache_too(written: Callable[..., Path]) -> None:
    content = json.loads(written(model={"vae_path": "", "t5_path": ""}).read_text())
    problems = {problem.where: problem.text for problem in TRAINER.check(content)}
    assert "is needed" in problems["model.vae_path"]
    assert "is needed" in problems["model.t5_path"]
