import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from flowloom.config.flow_format.keys import FLOW_KEYS, Foreign, Replaced
from flowloom.config.flow_format.read import read_config

FLOW = Path(__file__).parents[1] / "golden" / "flow"
PATHS = ("chroma_path", "vae_path", "t5_path", "t5_config_path", "t5_tokenizer_path")


def shipped(name):
    return json.loads((FLOW / name).read_text())


# FLOW's own files


@pytest.mark.parametrize(
    ("name", "method", "strength"),
    [
        ("training_config.json", "rotation", None),
        ("training_config_chroma_lora.json", "lora", None),
        ("training_config_cfg.json", "rotation", 5.0),
    ],
)
def test_flows_chroma_files_load_with_only_paths_and_sizes_changed(write, tmp_path, name, method, strength):
    data = shipped(name)
    rows = tmp_path / "rows.jsonl"
    rows.touch()
    tokenizer = tmp_path / "tokenizer.json"
    tokenizer.touch()
    weights = tmp_path / "weights.safetensors"
    weights.touch()
    data["dataloader"] |= {
        "jsonl_metadata_path": str(rows),
        "image_folder_path": str(tmp_path),
        "batch_size": 2,
    }
    data["model"] |= dict.fromkeys(PATHS, str(tmp_path)) | {
        "vae_path": str(weights),
        "chroma_path": str(weights),
    }
    loaded = read_config(write(data), with_files=True)
    assert loaded.config.method_kind == method
    assert loaded.config.training.cfg_scale_strength == strength
    assert loaded.config.training.save_every == data["training"]["save_every"]
    assert loaded.config.dataloader.base_resolution == [256]
    assert len(loaded.config.previews) == 2


@pytest.mark.parametrize(
    "name", ["training_config.json", "training_config_cfg.json", "training_config_chroma_lora.json"]
)
def test_every_key_of_flows_files_is_used_or_reported(name):
    data = shipped(name)
    loaded = read_config(FLOW / name)
    known = loaded.config.model_dump()
    for section in ("training", "inference", "dataloader", "model"):
        for key, value in data[section].items():
            path = f"{section}.{key}"
            if key in known[section]:
                kept = known[section][key]
                assert key.endswith("_path") or (list(kept) if isinstance(kept, tuple) else kept) == value
            elif isinstance(FLOW_KEYS[path], Replaced):
                assert any(note.startswith(f"{path}: ") for note in loaded.notes)


def test_flows_retired_keys_are_reported_once_each(with_aim):
    notes = read_config(FLOW / "training_config_chroma_lora.json").notes
    answered = [note.split(":")[0] for note in notes]
    assert answered == [
        "training.offload_param_count",
        "training.reset_optim_every",
        "training.save_folder",
        "inference.inference_folder",
    ]


def test_guidance_other_than_zero_is_passed_on_and_warned_about():
    loaded = read_config(FLOW / "training_config.json")
    assert [section.guidance for section in loaded.config.previews] == [3.0, 3.0]
    assert sum("inference.guidance 3" in note for note in loaded.notes) == 1


@pytest.mark.parametrize(
    ("name", "culprit", "trainer"),
    [
        ("training_config_lumina.json", "model.lumina_path", "Lumina"),
        ("training_config_reflowing.json", "model.teacher_chroma_path", "reflow"),
    ],
)
def test_flows_other_trainers_are_refused_in_one_line(name, culprit, trainer, problems):
    (only,) = problems(FLOW / name).items()
    assert only[0] == culprit
    assert trainer in only[1]
    assert "not supported" in only[1]
    assert "\n" not in only[1]


@pytest.mark.parametrize("path", [path for path, fate in FLOW_KEYS.items() if isinstance(fate, Foreign)])
def test_any_key_of_another_trainer_refuses_the_file(write, path, problems):
    section, _, name = path.partition(".")
    fate = FLOW_KEYS[path]
    assert isinstance(fate, Foreign)
    assert problems(write({section: {name: 7}})) == {
        path: f"belongs to FLOW's {fate.trainer} trainer, which is not supported."
    }


def test_aims_keys_become_a_logger(write, with_aim):
    data = {
        "training": {"aim_path": "aim://host:1", "aim_experiment_name": "e", "aim_hash": "h", "aim_steps": 9}
    }
    (logger,) = read_config(write(data)).config.loggers
    assert logger.model_dump(exclude={"images"}) == {
        "kind": "aim",
        "repo": "aim://host:1",
        "experiment": "e",
        "run_hash": "h",
        "first_step": 9,
    }


def test_a_run_goes_without_aim_where_it_is_not_installed(without_aim):
    loaded = read_config(FLOW / "training_config.json")
    assert loaded.config.loggers == []
    assert any("pip install 'flowloom[aim]'" in note for note in loaded.notes)


def test_aims_keys_without_a_path_are_reported(write):
    loaded = read_config(write({"training": {"aim_experiment_name": "e", "aim_hash": None, "aim_steps": 0}}))
    assert loaded.config.loggers == []
    assert loaded.notes == ["training.aim_experiment_name: no effect without training.aim_path."]


def test_wandbs_keys_become_a_logger_and_the_key_a_secret(write):
    data = {"training": {"wandb_key": "k" * 40, "wandb_project": "p", "wandb_run": "r", "wandb_entity": "e"}}
    loaded = read_config(write(data))
    logger: Any = loaded.config.loggers[0]
    assert (logger.kind, logger.project, logger.run, logger.entity, logger.mode) == (
        "wandb",
        "p",
        "r",
        "e",
        "online",
    )
    assert loaded.secrets == {"WANDB_API_KEY": "k" * 40}


def test_wandb_without_a_key_is_kept_offline(write):
    loaded = read_config(write({"training": {"wandb_project": "p"}}))
    logger: Any = loaded.config.loggers[0]
    assert logger.mode == "offline"
    assert any("wandb sync" in note for note in loaded.notes)


def test_secrets_of_the_file_are_in_nothing_that_can_be_written(write):
    data = {"training": {"hf_token": "hf_topsecret", "hf_repo_id": "me/mine", "wandb_key": "wandbsecret"}}
    loaded = read_config(write(data))
    assert loaded.secrets == {"HF_TOKEN": "hf_topsecret", "WANDB_API_KEY": "wandbsecret"}
    assert loaded.config.hub.repo_id == "me/mine"
    for text in (loaded.config.model_dump_json(), str(loaded.notes), repr(loaded)):
        assert "topsecret" not in text
        assert "wandbsecret" not in text
    assert sum("not stored" in note for note in loaded.notes) == 2


def test_a_file_that_repeats_flows_key_in_our_section_keeps_ours(write):
    loaded = read_config(write({"training": {"hf_repo_id": "a/old"}, "hub": {"repo_id": "a/new"}}))
    assert loaded.config.hub.repo_id == "a/new"
    assert any(
        note.startswith("training.hf_repo_id: ignored, because hub.repo_id is set") for note in loaded.notes
    )


# Problems


def test_all_problems_are_listed_with_their_locations(write, problems):
    data = {
        "training": {"lr": -1, "master_seed": "x", "batch_size": 3},
        "dataloder": {},
        "lr_schedule": {"kind": "cosine"},
        "optimizer": {"kind": "adamw", "bits": 8},
        "loggers": [{"kind": "tensorbord"}],
        "memory": {"checkpointed_blocks": -3},
    }
    found = problems(write(data), [("dataloader.batch_size", "many"), ("inference.stepps", "3")])
    assert found == {
        "training.lr": "must be greater than 0, not -1.",
        "training.master_seed": 'must be int, not "x".',
        "training.batch_size": "unknown key; did you mean dataloader.batch_size?",
        "dataloder": "unknown key; did you mean dataloader?",
        "optimizer.bits": "unknown key for adamw; it belongs to adamw_lowbit: set optimizer.kind too.",
        "loggers.0.kind": "must be one of 'aim', 'tensorboard', 'wandb', not 'tensorbord'.",
        "memory.checkpointed_blocks": "must be auto|all or int >= 0, not -3.",
        "--dataloader.batch_size": 'must be int >= 1, not "many".',
        "--inference.stepps": "unknown key; did you mean inference.steps?",
        "lr_schedule.kind": "cosine needs a known end: set limits.max_steps, max_epochs or max_minutes.",
    }


def test_missing_files_are_listed_with_the_rest(write, tmp_path, problems):
    data = {"training": {"lr": 0}, "model": {"vae_path": "no/ae.safetensors", "t5_path": str(tmp_path)}}
    found = problems(write(data, "c.json"), with_files=True)
    assert found.keys() == {
        "training.lr",
        "dataloader.jsonl_metadata_path",
        *(f"model.{name}" for name in PATHS if name != "t5_path"),
    }
    assert found["model.vae_path"] == f"{Path.cwd() / 'no/ae.safetensors'} does not exist."
    assert found["model.chroma_path"] == "is needed: Chroma's network."


def test_a_wrong_value_hides_no_contradiction_elsewhere_and_makes_none(write, problems):
    data = {"lr_schedule": {"kind": "wsd"}, "limits": {"max_steps": -5}}
    assert problems(write(data)).keys() == {"limits.max_steps"}
    data = {"method": {"kind": "rotation"}, "training": {"lr": 0}, "dataloader": {"base_resolution": 32}}
    assert problems(write(data)).keys() == {
        "training.lr",
        "training.change_layer_every",
        "training.trained_single_blocks",
        "dataloader.resolution_step",
    }


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("training", "save_every", True),
        ("training", "lr", "NaN"),
        ("training", "lr", float("inf")),
        ("inference", "image_dim", [512]),
        ("inference", "image_dim", [512, 500]),
        ("dataloader", "base_resolution", []),
        ("dataloader", "base_resolution", 100),
        ("dataloader", "ratio_cutoff", 1),
        ("lora", "rank", 8.5),
        ("lora", "target_layers", ["a,b"]),
        ("training", "trained_layer_keywords", ["distilled_guidance_layer"]),
        ("model", "chroma_path", 3),
        ("limits", "background", "white"),
    ],
)
def test_a_value_that_cannot_be_is_refused(write, section, key, value, problems):
    (path,) = problems(write({section: {key: value}}))
    assert path.startswith(f"{section}.{key}")


@pytest.mark.parametrize("section", ["training", "model", "loggers", "extra_inference_config"])
def test_a_section_that_is_no_section_is_refused(write, section, problems):
    (path,) = problems(write({section: 3}))
    assert path == section


def test_broken_json_is_named_by_line_and_column(write, problems):
    (message,) = problems(write('{\n  "training": {\n    "lr": 1e-4,\n  }\n}')).values()
    assert message.startswith("line 4, column 3:")
    assert "Remove the comma before it" in message
    (message,) = problems(write('{"a": 1, "a": 2}')).values()
    assert message == "is set twice in one section."
    assert "is not a JSON object" in next(iter(problems(write("[]")).values()))


def test_a_byte_order_mark_and_trailing_lines_are_fine(tmp_path):
    path = tmp_path / "c.json"
    path.write_bytes(b'\xef\xbb\xbf{"training": {"lr": 1e-3}}\n\n')
    assert read_config(path).config.training.lr == 1e-3


def test_a_missing_file_names_those_in_its_folder(write, problems):
    path = write({})
    assert "config.json" in problems(path.with_name("confg.json"))[""]


def test_flows_numbers_in_other_notations_are_read(write):
    data = {"training": {"cfg_scale_strength": "5", "lr": "1e-4", "warmup_steps": 5.0}, "lora": {"alpha": 8}}
    config = read_config(write(data)).config
    assert config.lora
    assert (config.training.cfg_scale_strength, config.training.lr, config.lora.alpha) == (5.0, 1e-4, 8.0)
    assert config.training.warmup_steps == 5


# Paths


def test_paths_are_looked_for_here_then_beside_the_file_and_come_out_absolute(tmp_path, monkeypatch):
    here, there = tmp_path / "here", tmp_path / "there"
    for folder in (here, there):
        folder.mkdir()
        (folder / "both.safetensors").touch()
    (there / "only.safetensors").touch()
    monkeypatch.chdir(here)
    model = {"chroma_path": "both.safetensors", "vae_path": "only.safetensors", "t5_path": "none"}
    (there / "config.json").write_text(json.dumps({"model": model}))
    config = read_config(there / "config.json").config
    assert config.model.chroma_path == str(here / "both.safetensors")
    assert config.model.vae_path == str(there / "only.safetensors")
    assert config.model.t5_path == str(here / "none")
    assert config.model.t5_config_path == ""


def test_t5s_config_and_tokenizer_are_found_beside_its_weights(write, tmp_path):
    for name in ("config.json", "spiece.model"):
        (tmp_path / name).touch()
    path = write({"model": {"t5_path": str(tmp_path)}}, "c.json")
    model = read_config(path).config.model
    assert model.t5_config_path == str(tmp_path / "config.json")
    assert model.t5_tokenizer_path == str(tmp_path)


# Start-up


def test_reading_a_configuration_imports_nothing_heavy():
    code = (
        "import sys, flowloom.config.run, flowloom.run.directory, flowloom.run.events;"
        "from flowloom.config.flow_format.read import read_config;"
        f"read_config({str(FLOW / 'training_config.json')!r});"
        "print([name for name in ('torch', 'numpy', 'scipy', 'transformers', 'PIL') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_many_wrong_entries_of_a_list_are_all_named(write, problems):
    loggers = [{"kind": "tensorboard", "x": i} for i in range(12)]
    found = problems(write({"loggers": loggers, "lr_schedule": {"kind": "wsd"}}))
    assert found.keys() == {*(f"loggers.{i}.x" for i in range(12)), "lr_schedule.kind"}
