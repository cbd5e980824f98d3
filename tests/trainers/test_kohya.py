"""Arguments for sd-scripts: right values for each family, and nothing that it would accept silently."""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flowloom.cli.main import main
from flowloom.run.directory import RunDir
from flowloom.trainers.kohya.arguments import known_arguments, path_in, raw_problems
from flowloom.trainers.kohya.files import toml
from flowloom.trainers.kohya.hooks import MARK
from flowloom.trainers.kohya.trainer import TRAINER
from tests.model_library.conftest import CHROMA, write_model


def rendered(config: dict[str, Any], folder: Path) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    run_dir = RunDir.create("run", folder)
    TRAINER.prepare(config, run_dir, "a test")
    config_toml = tomllib.loads((run_dir.path / "config.toml").read_text())["arguments"]
    dataset_toml = tomllib.loads((run_dir.path / "dataset.toml").read_text())
    return config_toml, dataset_toml, (run_dir.path / "prompts.txt").read_text().splitlines()


def test_chroma_gets_what_it_needs(kohya_config: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    sampling = {"prompts": ["a fox\n--ar 16:9"], "negative": "blurry"}
    config, dataset, prompts = rendered(kohya_config(sampling=sampling), tmp_path / "runs")
    right = {
        "model_type": "chroma",
        "apply_t5_attn_mask": True,
        "guidance_scale": 0.0,
        "model_prediction_type": "raw",
        "network_module": "networks.lora_flux",
        "network_train_unet_only": True,
        "sdpa": True,
        "save_state": True,
        "log_with": "tensorboard",
    }
    assert right.items() <= config.items()
    assert not {"attention", "clip_l", "min_snr_gamma"} & config.keys()
    (line,) = prompts
    arguments = line.split()
    assert line.startswith("a fox - -ar 16:9 --n blurry"), "no option of sd-scripts: part of the prompt"
    assert (arguments[arguments.index("--g") + 1], arguments[arguments.index("--l") + 1]) == ("0", "4")
    (subset,) = dataset["datasets"][0]["subsets"]
    assert subset["caption_extension"] == ".txt", "sd-scripts' own default is .caption"
    assert subset["class_tokens"] == 'a "fox"\\ é'


def test_keys_of_flow_matching_stay_out_of_sdxl(
    kohya_config: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    given = kohya_config(family="sdxl", flow={"guidance_scale": 3.0})
    config, _, _ = rendered(given, tmp_path / "runs")
    assert not {"guidance_scale", "timestep_sampling", "apply_t5_attn_mask", "model_type"} & config.keys()
    assert config["no_half_vae"]


@pytest.mark.parametrize("value", ['a"b\\c\n\t\x7f\x01é😀', 1e-4, 0, True, ["a", "b=c"], [], -1.5])
def test_values_come_back_from_toml(value: Any) -> None:
    assert tomllib.loads(f"x = {toml(value)}")["x"] == value


def test_all_problems_are_reported_at_once(
    kohya_config: Callable[..., dict[str, Any]], least_checkout: Path
) -> None:
    config = kohya_config(
        method="full",
        memory={"cache_text_encoder_outputs": True},
        network={"network_module": "os.path"},
        raw_arguments="--no_such_thing 1 --output_dir x stray",
    )
    config["model"]["t5xxl"] = "/no/such/file"
    config["datasets"][0]["bucket_reso_steps"] = 48
    config["datasets"][0]["subsets"][0] |= {"shuffle_caption": True, "image_dir": "/no/such/folder"}
    places = {problem.where for problem in TRAINER.check(config)}
    assert {
        "method",
        "model.t5xxl",
        "datasets.0.bucket_reso_steps",
        "datasets.0.subsets.0",
        "datasets.0.subsets.0.image_dir",
        "network.network_module",
        "raw_arguments",
    } <= places


@pytest.mark.parametrize(
    ("place", "sections"),
    [
        ("training.full_bf16", {"training": {"full_bf16": True, "mixed_precision": "fp16"}}),
        ("memory.fp8_base", {"memory": {"fp8_base": True}, "training": {"mixed_precision": "no"}}),
        (
            "memory.cache_text_encoder_outputs",
            {"family": "sdxl", "memory": {"cache_text_encoder_outputs_to_disk": True}},
        ),
        ("sampling.prompts.1", {"sampling": {"prompts": ["a fox", " "]}}),
        ("network.network_weights", {"network": {"network_weights": "/no/such/file"}}),
    ],
)
def test_settings_that_would_end_sd_scripts_are_reported_before(
    kohya_config: Callable[..., dict[str, Any]], place: str, sections: dict[str, Any]
) -> None:
    assert place in {problem.where for problem in TRAINER.check(kohya_config(**sections))}


def test_kinds_of_folders_are_not_mixed(kohya_config: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    (tmp_path / "captions.json").write_text("{}")
    config = kohya_config()
    (plain,) = config["datasets"][0]["subsets"]
    config["datasets"][0]["subsets"].append(plain | {"metadata_file": str(tmp_path / "captions.json")})
    places = {problem.where for problem in TRAINER.check(config)}
    assert {"datasets.0.subsets", "datasets.0.subsets.1.class_tokens"} <= places
    assert "datasets.0.subsets.0.class_tokens" not in places


def test_whole_sd15s_are_trained_by_the_script_that_takes_their_captions(
    kohya_config: Callable[..., dict[str, Any]], least_checkout: Path, tmp_path: Path
) -> None:
    config = kohya_config(family="sd15", method="full")
    del config["datasets"][0]["subsets"][0]["class_tokens"]
    for name, more in (("train_db.py", {}), ("fine_tune.py", {"metadata_file": "captions.json"})):
        config["datasets"][0]["subsets"][0] |= more
        run_dir = RunDir.create(name, tmp_path / "runs")
        TRAINER.prepare(config, run_dir, "a test")
        assert name in TRAINER.command(run_dir, resume=False).argv
    (subset,) = tomllib.loads((run_dir.path / "dataset.toml").read_text())["datasets"][0]["subsets"]
    assert not {"is_reg", "class_tokens", "caption_extension"} & subset.keys()


@pytest.mark.parametrize(
    ("word", "path"),
    [
        ("preset=sets/mine.toml", "sets/mine.toml"),
        ("preset=mine.toml", "mine.toml"),
        ("preset=full-lin", ""),
        ("conv_dim=8", ""),
        (r"network_reg_dims=double_blocks\.\d+=4", ""),
        ("warm_file=x", "x"),
        ("anything=../up", "../up"),
        ("anything=~/up", "~/up"),
        ("a word", ""),
    ],
)
def test_paths_in_network_args_are_distinguished_from_values(word: str, path: str) -> None:
    assert path_in(word) == path


def test_a_preset_of_lycoris_is_the_file_that_the_studio_checked(
    kohya_config: Callable[..., dict[str, Any]],
    tmp_path: Path,
    least_checkout: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    given = kohya_config(network={"network_args": ["algo=lokr", "preset=mine.toml", "preset=full"]})
    given["training"] = {"optimizer_args": ["weight_decay=0.1", "x='/etc/passwd'"]}
    problems = {problem.where: problem.text for problem in TRAINER.check(given)}
    assert problems["network.network_args.1"] == "mine.toml does not exist."
    assert "no optimizer accepts one" in problems["training.optimizer_args.1"]
    unnamed = {"network.network_args.0", "network.network_args.2", "training.optimizer_args.0"}
    assert not unnamed & problems.keys()
    config, _, _ = rendered(given, tmp_path / "runs")
    assert config["network_args"] == ["algo=lokr", f"preset={tmp_path / 'mine.toml'}", "preset=full"]


def test_masks_are_switched_on(kohya_config: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    given = kohya_config()
    del given["datasets"][0]["subsets"][0]["class_tokens"]
    given["datasets"][0]["subsets"][0]["conditioning_data_dir"] = str(tmp_path)
    config, dataset, _ = rendered(given, tmp_path / "runs")
    assert config["masked_loss"] is True
    assert "is_reg" not in dataset["datasets"][0]["subsets"][0]


def test_prompts_are_no_remarks_and_their_own_options_win(
    kohya_config: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    prompts = ["#1 girl", "a fox --w 768 --d 7 --n dark, small", "a dog --cn /etc/passwd --w wide"]
    sampling = {"prompts": prompts, "negative": "bad --w 8"}
    _, _, (first, second, third) = rendered(kohya_config(sampling=sampling), tmp_path / "runs")
    assert first.startswith(" #1 girl --n bad - -w 8 --w 1024")
    assert second == "a fox --n dark, small --w 768 --h 1024 --s 28 --d 7 --l 4 --g 0"
    assert third.startswith("a dog - -cn /etc/passwd - -w wide --n "), "no file is read by a prompt"


def test_a_random_seed_and_no_attention_kernel_are_left_to_sd_scripts(
    kohya_config: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    training = {"seed": None, "attention": "none", "max_token_length": 75, "lr_warmup_steps": 0.05}
    given = kohya_config(training=training, sampling={"prompts": ["a fox"], "seed": None})
    config, _, (line,) = rendered(given, tmp_path / "runs")
    assert not {"seed", "sdpa", "xformers", "max_token_length"} & config.keys()
    assert config["lr_warmup_steps"] == 0.05
    assert "--d" not in line


def test_a_resolution_of_two_sides_reaches_sd_scripts(
    kohya_config: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    given = kohya_config()
    for stated, written in (("512,768", [512, 768]), ([768, 768], 768), (640, 640)):
        given["datasets"][0]["resolution"] = stated
        _, dataset, _ = rendered(given, tmp_path / f"runs-{written}")
        assert dataset["datasets"][0]["resolution"] == written


def test_an_image_folder_must_be_named(kohya_config: Callable[..., dict[str, Any]]) -> None:
    given = kohya_config()
    given["datasets"][0]["subsets"][0]["image_dir"] = ""
    assert "datasets.0.subsets.0.image_dir" in {problem.where for problem in TRAINER.check(given)}


def test_the_scripts_own_arguments_are_known(least_checkout: Path) -> None:
    known = known_arguments(least_checkout, "train_network.py")
    assert known["blocks_to_swap"]
    assert not known["lowram"]
    assert "console_log_simple" in known, "of a function that is imported by its name"
    assert not list(raw_problems("--lowram --blocks_to_swap 3", known))
    assert not list(raw_problems("--blocks_to_swap=3", known))
    texts = [problem.text for problem in raw_problems("--block_to_swap 3", known)]
    assert any("--blocks_to_swap" in message for message in texts)
    for bad in ("--lowram 3", "--resume x", "'", "--blocks_to_swap /etc/passwd", "word"):
        assert list(raw_problems(bad, known)), bad


def test_a_checkout_without_a_needed_argument_is_reported(
    kohya_config: Callable[..., dict[str, Any]], least_checkout: Path
) -> None:
    problems = {problem.where: problem for problem in TRAINER.check(kohya_config(family="sd15"))}
    assert "does not accept --save_state" in problems["saving.save_state"].message


def test_a_base_that_sd_scripts_cannot_read_is_reported(
    kohya_config: Callable[..., dict[str, Any]], least_checkout: Path, tmp_path: Path
) -> None:
    base = write_model(tmp_path / "small.safetensors", {**CHROMA, "scaled_fp8": (2,)}, dtype="F8_E4M3")
    config = kohya_config(family="chroma")
    config["model"]["pretrained_model_name_or_path"] = str(base)
    problems = {problem.where: problem.text for problem in TRAINER.check(config)}
    assert "small.safetensors has scaled float8" in problems["model.pretrained_model_name_or_path"]


def test_without_sd_scripts_it_says_how_to_get_it(
    kohya_config: Callable[..., dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLOWLOOM_TRAINERS", str(tmp_path / "none.json"))
    (problem,) = TRAINER.check(kohya_config())
    assert "flowloom trainers install kohya" in problem.text


BAR = "steps:  12%|#2        | 240/2000 [04:10<30:34,  1.04s/it, avr_loss=0.412]"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (
            BAR,
            {
                "kind": "progress",
                "batch": 240,
                "batches": 2000,
                "batches_per_s": pytest.approx(1 / 1.04),
            },
        ),
        ("saving checkpoint: /runs/a/last.safetensors", None),
        ("caching latents...", {"kind": "phase", "name": "caching"}),
        (f'{MARK}{{"kind": "step", "step": 3, "loss": 0.5}}', {"kind": "step", "step": 3, "loss": 0.5}),
        (
            "steps:   0%|          | 0/10 [00:00<?, ?it/s]",
            {"kind": "progress", "batch": 0, "batches": 10, "batches_per_s": None},
        ),
        (
            "failed to upload to HuggingFace / x : 401 Client Error",
            {"kind": "warning", "message": "Not uploaded to the hub: 401 Client Error"},
        ),
        (f"{MARK}{{", None),
        ("epoch 3/10", None),
    ],
)
def test_lines_mean_events(line: str, expected: dict[str, Any] | None) -> None:
    assert TRAINER.parse(line) == expected


def test_a_checkout_is_named_by_its_path(
    least_checkout: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLOWLOOM_TRAINERS", str(tmp_path / "others.json"))
    status = main(["trainers", "install", "kohya", "--path", str(least_checkout), "--python", sys.executable])
    output = capsys.readouterr()
    assert str(least_checkout) in output.out
    assert status == (2 if "missing" in output.out else 0)
    main(["trainers"])
    assert str(least_checkout) in capsys.readouterr().out
    assert main(["trainers", "install", "kohya", "--path", str(tmp_path / "nowhere")]) == 2
    assert main(["trainers", "install", "flow-upstream"]) == 2
