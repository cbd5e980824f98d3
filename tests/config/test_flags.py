from pathlib import Path
from typing import Any

import pytest

from flowloom.config.flags import split_flags
from flowloom.config.flow_format.read import read_config

FLOW = Path(__file__).parents[1] / "golden" / "flow"


def test_flag_beats_file_beats_default(write):
    path = write({"training": {"lr": 1e-5, "warmup_steps": 7}})
    loaded = read_config(path, [("training.lr", "1e-4")])
    training = loaded.config.training
    assert (training.lr, training.warmup_steps, training.train_minibatch) == (1e-4, 7, 1)


@pytest.mark.parametrize(
    ("flag", "text", "read"),
    [
        ("dataloader.base_resolution", "256,512", [256, 512]),
        ("dataloader.base_resolution", "[256, 512]", [256, 512]),
        ("dataloader.base_resolution", "256", [256]),
        ("dataloader.shuffle_tags", "false", False),
        ("training.change_layer_every", "null", None),
        ("training.cfg_scale_strength", "5", 5.0),
        ("training.master_seed", "12", 12),
        ("inference.prompts", "a cat, sitting", ["a cat, sitting"]),
        ("inference.prompts", '["a", "b"]', ["a", "b"]),
        ("inference.image_dim", "256,512", (256, 512)),
        ("inference.first_n_steps_wo_cfg", "-1", -1),
        ("lora.target_layers", "double_blocks.1,final", ["double_blocks.1", "final"]),
        ("lora.base_model_quant_level", "8bit", "8bit"),
        ("memory.checkpointed_blocks", "3", 3),
        ("memory.checkpointed_blocks", "all", "all"),
        ("hub.repo_id", "123", "123"),
        ("optimizer.betas", "0.9,0.95", (0.9, 0.95)),
        ("objective.noise_level.kind", "uniform", "uniform"),
        ("extra_inference_config.0.steps", "9", 9),
    ],
)
def test_a_flag_is_read_by_the_type_of_its_key(write, flag, text, read):
    value: Any = read_config(write({}), [(flag, text)]).config
    for part in flag.split("."):
        value = value[int(part)] if part.isdigit() else getattr(value, part)
    assert value == read
    assert type(value) is type(read)


def test_a_lists_flag_given_twice_collects(write):
    flags = [("inference.prompts", "one, two"), ("inference.prompts", "three")]
    (preview,) = read_config(write({}), flags).config.previews
    assert preview.prompts == ["one, two", "three"]


OPTIMIZER = {"kind": "adamw_lowbit", "bits": 4, "betas": [0.5, 0.6], "max_grad_norm": 1.0}


@pytest.mark.parametrize("flag", ["optimizer.kind", "optimizer"])
def test_another_kind_by_flag_brings_no_field_of_the_old_one(write, flag):
    loaded = read_config(write({"optimizer": OPTIMIZER}), [("optimizer.eps", "1e-6"), (flag, "adamw8bit")])
    optimizer: Any = loaded.config.optimizer
    assert (optimizer.kind, optimizer.betas, optimizer.max_grad_norm) == ("adamw8bit", (0.9, 0.999), None)
    assert optimizer.eps == 1e-6
    assert loaded.notes == [
        "optimizer: changed to adamw8bit; removed bits, betas, max_grad_norm, which belonged to adamw_lowbit."
    ]


def test_the_same_kind_by_flag_keeps_the_files_fields(write):
    loaded = read_config(write({"optimizer": OPTIMIZER}), [("optimizer.kind", "adamw_lowbit")])
    assert loaded.config.optimizer.max_grad_norm == 1.0
    loaded = read_config(write({"optimizer": {"max_grad_norm": 1}}), [("optimizer.kind", "adamw")])
    assert loaded.config.optimizer.max_grad_norm == 1.0


def test_a_noise_level_of_another_kind_is_clean(write):
    data = {"objective": {"noise_level": {"kind": "logit_normal", "mean": 1}, "pairing": "random"}}
    config = read_config(write(data), [("objective.noise_level.kind", "shifted")]).config
    assert config.objective.noise_level.model_dump() == {"kind": "shifted", "shift": 3.0}
    assert config.objective.pairing == "random"


def test_loggers_by_flag_replace_the_files_but_keep_what_they_know(write):
    data = {"loggers": [{"kind": "wandb", "project": "p", "mode": "offline"}, {"kind": "tensorboard"}]}
    loggers = read_config(write(data), [("loggers", "aim,wandb")]).config.loggers
    assert [logger.kind for logger in loggers] == ["aim", "wandb"]
    assert loggers[1].model_dump()["project"] == "p"
    assert read_config(write(data), [("loggers", "")]).config.loggers == []
    (first, _) = read_config(write(data), [("loggers.0.kind", "aim")]).config.loggers
    assert first.model_dump(include={"kind", "repo"}) == {"kind": "aim", "repo": None}


def test_loggers_by_flag_replace_those_of_flows_keys(with_aim):
    config = read_config(FLOW / "training_config.json", [("loggers", "tensorboard")]).config
    assert [logger.kind for logger in config.loggers] == ["tensorboard"]


def test_flows_keys_work_as_flags(write):
    loaded = read_config(
        write({"training": {"hf_token": "hf_of_file"}}), [("training.hf_token", "hf_of_flag")]
    )
    assert loaded.secrets["HF_TOKEN"] == "hf_of_flag"
    assert any("list of processes" in note for note in loaded.notes)
    flags = [("extra_inference_config.0.inference_folder", "x")]
    assert (
        read_config(write({"extra_inference_config": [{}]}), flags)
        .notes[0]
        .startswith("inference.inference_folder")
    )


@pytest.mark.parametrize(
    ("arguments", "rest", "overrides"),
    [
        (["c.json", "--training.lr", "1e-4"], ["c.json"], [("training.lr", "1e-4")]),
        (["--training.lr=1e-4", "c.json"], ["c.json"], [("training.lr", "1e-4")]),
        (["--model.use_x0", "c.json"], ["c.json"], [("model.use_x0", "true")]),
        (["--model.use_x0", "false", "c.json"], ["c.json"], [("model.use_x0", "false")]),
        (["--inference.first_n_steps_wo_cfg", "-1"], [], [("inference.first_n_steps_wo_cfg", "-1")]),
        (["--name", "n", "--dry-run", "c.json"], ["--name", "n", "--dry-run", "c.json"], []),
        (["--inference.prompts=a=b"], [], [("inference.prompts", "a=b")]),
        (["--memory.compile", "--dry-run"], ["--dry-run"], [("memory.compile", "true")]),
    ],
)
def test_flags_are_distinguished_from_the_verbs_own_options(arguments, rest, overrides):
    assert split_flags(arguments, ["--name", "--dry-run"]) == (rest, overrides)


def test_a_flag_into_a_place_that_is_not_there_is_refused(write, problems):
    data = {"extra_inference_config": [{}], "training": 3}
    flags = [("extra_inference_config.2.steps", "3"), ("training.lr", "1")]
    found = problems(write(data), flags)
    assert found["--extra_inference_config.2.steps"] == "extra_inference_config.2 does not exist."
    assert found["--training.lr"] == "training does not exist."
