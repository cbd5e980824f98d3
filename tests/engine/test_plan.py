"""`flowloom train --dry-run`: says what would happen, finds what would not work, does nothing."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from flowloom.cli.main import main
from flowloom.config.flow_format.read import LoadedConfig
from flowloom.engine.estimate.plan import make_plan
from flowloom.models.weights import open_weights, save_weights

FLOW = Path(__file__).parents[1] / "golden" / "flow"


@pytest.fixture
def plan_of(make_config):
    def plan_of(**sections):
        return make_plan(LoadedConfig(make_config(**sections), {}, [], Path("config.json")))

    return plan_of


def rows(plan) -> dict[str, str]:
    return {name: value for _, section in plan.sections for name, value in section}


@pytest.fixture
def flow_file(tmp_path: Path, synthetic_data: Path, tiny_family: Any, monkeypatch):
    """One of FLOW's own files, with only paths and sizes changed."""
    monkeypatch.setitem(sys.modules, "aim", None)

    def flow_file(name: str) -> Path:
        data = json.loads((FLOW / name).read_text())
        data["dataloader"] |= {
            "jsonl_metadata_path": str(synthetic_data / "data.jsonl"),
            "image_folder_path": str(synthetic_data),
            "base_resolution": [64],
            "resolution_step": 16,
            "batch_size": 4,
        }
        data["model"] |= {
            "chroma_path": str(tiny_family.chroma_path),
            "vae_path": str(tiny_family.vae_path),
            "t5_path": str(tiny_family.t5_path),
            "t5_config_path": str(tiny_family.t5_path / "config.json"),
            "t5_tokenizer_path": str(tiny_family.t5_path),
        }
        path = tmp_path / name
        path.write_text(json.dumps(data))
        return path

    return flow_file


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("training_config.json", "rotation of 2 double blocks and 2 single blocks, others every 3 steps"),
        ("training_config_cfg.json", "rotation of 2 double blocks and 2 single blocks, others every 3 steps"),
        ("training_config_chroma_lora.json", "lora of rank 8, alpha 8, on double_blocks, single_blocks"),
    ],
)
def test_flows_files_pass_a_dry_run(flow_file, name, method, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["train", str(flow_file(name)), "--dry-run"]) == 0
    text = capsys.readouterr().out
    assert method in text
    assert "Ready to train." in text
    assert "training.save_folder: checkpoints are saved in the run directory" in text
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_the_plan_counts_rows_batches_and_steps(plan_of):
    plan = plan_of(dataloader={"batch_size": 4, "ratio_cutoff": 1.5}, training={"updates_per_large_batch": 2})
    found = rows(plan)
    # 22 rows, every third of them 2 to 1: 14 squares in batches of 4, 4, 4 and 2.
    assert found["rows"].startswith("14 of ")
    assert found["left out"] == "8 rows wider or taller than 1.5 to 1"
    assert found["batches"] == "4 an epoch, of up to 4"
    assert found["steps"] == "8 an epoch"
    assert found["images"] == "14 of 14 checked files exist"
    assert plan.problems == []


@pytest.mark.parametrize("kind", ["full", "lora", "dora", "lokr"])
def test_the_plan_knows_how_many_parameters_are_trained(plan_of, kind, tiny_family):
    found = rows(plan_of(method={"kind": kind}, lora={"rank": 2, "target_layers": ["txt_in"]}))
    shapes = open_weights(tiny_family.chroma_path).shapes
    width, depth = shapes["txt_in.weight"]
    trained = int(found["trained"].split(", ")[0].replace(",", "")) if kind != "full" else None
    expected = {"lora": 2 * (width + depth), "dora": 2 * (width + depth) + width}
    if kind in expected:
        assert trained == expected[kind]
    assert found["method"].startswith({"full": "full fine-tune"}.get(kind, f"{kind} of rank 2"))


def test_all_problems_of_a_run_are_found_at_once(plan_of, tmp_path, tiny_family):
    weights = open_weights(tiny_family.chroma_path)
    damaged = tmp_path / "chroma.safetensors"
    save_weights(damaged, {name: weights[name] for name in weights if name != "img_in.bias"}, {})
    (tmp_path / "ae.safetensors").write_bytes(b"no weights")
    (tmp_path / "rows.jsonl").write_text('{"filename": "a.png"}\n')
    plan = plan_of(
        model={"chroma_path": str(damaged), "vae_path": str(tmp_path / "ae.safetensors")},
        dataloader={"jsonl_metadata_path": str(tmp_path / "rows.jsonl")},
    )
    found = {problem.where: problem.text for problem in plan.problems}
    assert found.keys() == {"model.chroma_path", "model.vae_path", "dataloader.jsonl_metadata_path"}
    assert "img_in.bias" in found["model.chroma_path"]


def test_missing_images_and_bad_lines_are_named_by_file_and_line(plan_of, tmp_path, synthetic_data):
    lines = (synthetic_data / "data.jsonl").read_text().splitlines()
    lines[3] = lines[3].replace("03.png", "gone.png")
    lines[5] = "{broken"
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(lines))
    plan = plan_of(dataloader={"jsonl_metadata_path": str(path)}, limits={"skipped_percentage": 0.1})
    assert any(note.startswith(f"{path}:4: ") and "no such file" in note for note in plan.notes)
    assert any(note.startswith(f"{path}:6: left out: not JSON") for note in plan.notes)
    assert plan.problems == []
    strict = plan_of(dataloader={"jsonl_metadata_path": str(path)}, limits={"skipped_percentage": 0.045})
    assert [problem.where for problem in strict.problems] != []


def test_a_dry_run_that_finds_problems_ends_with_status_2(flow_file, capsys, tmp_path):
    path = flow_file("training_config.json")
    broken = tmp_path / "t5"
    broken.mkdir()
    (broken / "model.safetensors").write_bytes(b"x")
    assert main(["train", str(path), "--dry-run", "--model.t5_path", str(broken)]) == 2
    text = capsys.readouterr().out
    assert "Cannot train" in text
    assert "model.t5_path: " in text


def test_the_aim_of_a_plan_is_shown(plan_of):
    found = rows(
        plan_of(
            limits={"max_steps": 1200, "max_minutes": 5},
            inference={"prompts": ["a", "b"], "inference_every": 50, "image_dim": [64, 96]},
            checkpoint={"keep_every": 500},
            validation={"share": 0.2},
            loggers=[{"kind": "tensorboard"}],
        )
    )
    assert found["ends after"] == "1,200 steps or 5 minutes"
    assert found["every 50 steps"] == "2 prompts and the batch's caption, 64x96, 20 sampler steps, cfg 1"
    assert found["checkpoints"].endswith(
        "as many stay as the disk has room for and every one at a multiple of 500"
    )
    assert found["trackers"] == "tensorboard"
    assert "held out" in found


@pytest.mark.parametrize(
    ("batch_size", "updates", "is_reported"), [(4, 2, False), (4, 3, True), (1, 1, True)]
)
def test_ranks_without_a_sample_in_an_update_are_a_note(
    plan_of, monkeypatch, batch_size: int, updates: int, is_reported: bool
):
    monkeypatch.setenv("WORLD_SIZE", "2")
    plan = plan_of(dataloader={"batch_size": batch_size}, training={"updates_per_large_batch": updates})
    assert any("leaves some of the 2 ranks without work" in note for note in plan.notes) == is_reported
