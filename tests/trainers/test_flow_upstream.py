"""FLOW itself: what a checkout takes is known before it starts, and what it says is understood."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from flowloom.errors import ConfigError, RunError
from flowloom.run.directory import RunDir
from flowloom.trainers.checkouts import add_checkout, checkouts_of
from flowloom.trainers.flow_upstream.dataclasses import names_of_trainers
from flowloom.trainers.flow_upstream.trainer import TRAINER
from tests.fakes.flow_checkout import flow_checkout, make_checkout  # noqa: F401 -- a fixture

NEW = "src.trainer.train_chroma"


@pytest.fixture
def config(tmp_path: Path, flow_checkout: Path) -> dict[str, Any]:  # noqa: F811
    """One that the stand-in's newer trainer takes."""
    for name in ("chroma.safetensors", "data.jsonl"):
        (tmp_path / name).touch()
    return {
        "trainer": NEW,
        "training": {"lr": 1e-4, "save_every": 2, "trained_layer_keywords": ["double_blocks.0."]},
        "inference": {"inference_every": 3, "prompts": ["a fox"]},
        "dataloader": {"batch_size": 4, "jsonl_metadata_path": str(tmp_path / "data.jsonl")},
        "model": {"chroma_path": str(tmp_path / "chroma.safetensors")},
    }


def paths(config: dict[str, Any]) -> set[str]:
    return {problem.where for problem in TRAINER.check(config)}


GOLDEN = [
    (
        "training, Rank 0:   8%|▊         | 2/24 [00:11<02:00,  5.50s/it]",
        {"kind": "progress", "batch": 2, "batches": 24, "batches_per_s": pytest.approx(1 / 5.5)},
    ),
    (
        "training, Rank 0:  50%|█████     | 200/400 [1:02:05<58:11,  2.25it/s]",
        {"kind": "progress", "batch": 200, "batches": 400, "batches_per_s": 2.25},
    ),
    (
        "training, Rank 0:   0%|          | 0/9 [00:00<?, ?it/s]",
        {"kind": "progress", "batch": 0, "batches": 9, "batches_per_s": None},
    ),
    (
        "Combined image grid saved to runs/a b/samples/99.jpg",
        {"kind": "sampled", "dir": "runs/a b/samples/99.jpg"},
    ),
    (
        "preparing captions and buckets: 100%|██████████| 512/512 [00:00<00:00, 397976.95it/s]",
        {"kind": "phase", "name": "reading data"},
    ),
    ("minibatch training, Rank 0:  50%|█████     | 1/2 [00:01<00:01,  1.10s/it]", None),
    ("training, Rank 1:   8%|▊         | 2/24 [00:11<02:00,  5.50s/it]", None),
    ("preparing latents, Rank 0: 100%|██████████| 4/4 [00:02<00:00,  1.9it/s]", None),
    ("training double_blocks.0.img_attn.qkv.weight", None),
    ("Falling back to SciPy implementation: No module named 'torch_linear_assignment'", None),
    ("param updated", None),
    ("", None),
]


@pytest.mark.parametrize(("line", "event"), GOLDEN)
def test_lines_of_flow_are_understood(line: str, event: dict[str, Any] | None) -> None:
    assert TRAINER.parse(line) == event


def test_a_good_configuration_has_no_problems(config: dict[str, Any]) -> None:
    assert not TRAINER.check(config)


def test_a_base_that_flow_cannot_read_is_reported(config: dict[str, Any]) -> None:
    Path(config["model"]["chroma_path"]).write_bytes(b"GGUF" + bytes(64))
    (problem,) = TRAINER.check(config)
    assert problem.where == "model.chroma_path"
    assert "chroma.safetensors has GGUF weights, which only Flowloom's own trainer reads" in problem.text


def test_keys_are_those_that_the_trainer_in_the_checkout_takes(config: dict[str, Any]) -> None:
    config["trainer"] = "train_mp_old.py"
    config["training"] |= {"wandb_projekt": "x", "aim_path": "", "max_grad_norm": 1.0}
    assert paths(config) == {
        "training.trained_layer_keywords",
        "training.change_layer_every",
        "training.trained_single_blocks",
        "training.wandb_projekt",
        "training.max_grad_norm",
    }


def test_missing_files_are_named(config: dict[str, Any], tmp_path: Path) -> None:
    config["model"]["chroma_path"] = str(tmp_path / "nothing")
    config["dataloader"]["jsonl_metadata_path"] = ""
    assert paths(config) == {"model.chroma_path", "dataloader.jsonl_metadata_path"}


def test_a_script_that_cannot_start_its_trainer_is_refused_with_the_one_to_choose(
    config: dict[str, Any],
) -> None:
    (problem,) = TRAINER.check(config | {"trainer": "train_mp.py"})
    assert (problem.where, NEW in problem.text) == ("trainer", True)


@pytest.mark.parametrize("name", ["train_nothing.py", "os", "src.trainer", "src.trainer.train_chroma.main"])
def test_only_trainers_of_the_checkout_are_started(config: dict[str, Any], name: str) -> None:
    (problem,) = TRAINER.check(config | {"trainer": name})
    assert problem.where == "trainer"
    assert NEW in problem.text


@pytest.mark.parametrize("name", ["../x.py", "/bin/sh", "a/b.py", "-m", "x y", ""])
def test_a_trainer_is_a_plain_name(config: dict[str, Any], name: str) -> None:
    assert paths(config | {"trainer": name}) == {"trainer"}


def test_a_checkout_that_was_not_named_is_never_run(config: dict[str, Any], tmp_path: Path) -> None:
    other = make_checkout(tmp_path / "other")
    assert paths(config | {"checkout": str(other)}) == {"checkout"}
    add_checkout("flow-upstream", other)
    assert not paths(config | {"checkout": str(other)})
    assert [one.path.name for one in checkouts_of("flow-upstream")] == ["other", "flow"]


def test_without_any_checkout_a_hint_shows_how_to_name_one(
    config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLOWLOOM_TRAINERS", str(tmp_path / "none.json"))
    (problem,) = TRAINER.check(config)
    assert "flowloom trainers install flow-upstream" in problem.text


def test_a_damaged_list_of_checkouts_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "list.json").write_text('{"flow-upstream": [{"paht": "x"}]}')
    monkeypatch.setenv("FLOWLOOM_TRAINERS", str(tmp_path / "list.json"))
    with pytest.raises(ConfigError, match=r"list\.json"):
        checkouts_of("flow-upstream")
    with pytest.raises(ConfigError, match="does not exist"):
        add_checkout("flow-upstream", tmp_path / "nothing")


def test_tokens_are_refused_since_flow_would_write_them(config: dict[str, Any]) -> None:
    config["training"] |= {"hf_token": "hf_not-a-real-token", "wandb_key": None}
    (problem,) = TRAINER.check(config)
    assert problem.where == "training.hf_token"
    assert "hf_not" not in problem.text


def test_results_go_into_the_run_or_where_the_user_wants_them(config: dict[str, Any], tmp_path: Path) -> None:
    config["training"]["save_folder"] = str(tmp_path / "saved")
    run_dir = RunDir.create("run", tmp_path / "runs")
    TRAINER.prepare(config, run_dir, "a test")
    assert run_dir.read_run()["folders"] == {"checkpoints": {str(tmp_path / "saved"): 0.0}, "samples": {}}
    command = TRAINER.command(run_dir, resume=False)
    written = json.loads((run_dir.path / "flow" / "training_config.json").read_text())
    assert written["training"]["save_folder"] == str(tmp_path / "saved")
    assert written["inference"]["inference_folder"] == str(run_dir.path / "samples")
    assert written["training"]["aim_path"] == str(run_dir.path / "flow" / "aim")
    assert written["training"]["change_layer_every"] == 1
    assert "trained_single_blocks" not in written["training"]
    assert "parallel" not in written
    assert command.cwd == run_dir.path / "flow"


@pytest.mark.parametrize("name", [NEW, "train_mp_old.py"])
def test_both_kinds_of_trainers_start(config: dict[str, Any], tmp_path: Path, name: str) -> None:
    config |= {"trainer": name}
    config["training"] |= {"master_seed": 1}
    if name != NEW:
        config["training"] |= {"change_layer_every": 3, "trained_single_blocks": 1}
        del config["training"]["trained_layer_keywords"]
    assert not TRAINER.check(config)
    run_dir = RunDir.create("run", tmp_path / "runs")
    TRAINER.prepare(config, run_dir, "a test")
    command = TRAINER.command(run_dir, resume=False)
    done = subprocess.run(command.argv, cwd=command.cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Combined image grid saved" in done.stdout
    assert len(list((run_dir.path / "checkpoints").glob("*.pth"))) == 3


def test_an_adapter_of_flow_is_not_taken_for_the_whole_network(
    config: dict[str, Any],
    tmp_path: Path,
    flow_checkout: Path,  # noqa: F811
) -> None:
    module = flow_checkout / "src" / "trainer" / "train_chroma.py"
    lora = "@dataclass\nclass LoraConfig:\n    rank: int\n    alpha: int\n\n\ndef dump("
    module.write_text(module.read_text().replace("def dump(", lora, 1))
    assert paths(config) == {"lora"}
    run_dir = RunDir.create("run", tmp_path / "runs")
    TRAINER.prepare(config | {"lora": {"rank": 4}}, run_dir, "a test")
    TRAINER.command(run_dir, resume=True)
    saved = run_dir.path / "checkpoints" / "2026_lora.safetensors"
    saved.write_bytes((2).to_bytes(8, "little") + b"{}")
    with pytest.raises(RunError, match="LoRA"):
        TRAINER.command(run_dir, resume=True)


def test_the_trainers_of_a_checkout_are_listed(flow_checkout: Path) -> None:  # noqa: F811
    assert names_of_trainers(flow_checkout) == [
        "train_mp.py", "train_mp_old.py", "src.trainer.train_chroma", "src.trainer.train_old",
    ]  # fmt: skip


def test_a_key_that_the_checkouts_own_trainer_takes_is_not_unknown(flow_checkout: Path) -> None:  # noqa: F811
    trainer = flow_checkout / "src" / "trainer" / "train_chroma.py"
    trainer.write_text(
        trainer.read_text().replace("chroma_path: str\n", "chroma_path: str\n    newest_key: int = 0\n")
    )
    config = {"trainer": "train_mp.py", "model": {"newest_key": 3, "no_such_key": 4}}
    problems = {problem.where: problem.text for problem in TRAINER.check(config)}
    assert "model.newest_key" not in problems
    assert "model.no_such_key" in problems


def test_a_key_of_our_engine_is_not_suggested_for_itself() -> None:
    problems = {problem.where: problem.text for problem in TRAINER.check({"limits": {"max_steps": 3}})}
    assert "the FLOW trainer" in problems["limits"]
    assert "did you mean" not in problems["limits"]
