"""The files for each family are read back by sd-scripts' own argparse, sanitizer and assertions."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from flowloom.run.directory import RunDir
from flowloom.trainers.checkouts import add_checkout
from flowloom.trainers.kohya.arguments import known_arguments
from flowloom.trainers.kohya.config import KohyaConfig
from flowloom.trainers.kohya.families import FACTS
from flowloom.trainers.kohya.files import script_of
from flowloom.trainers.kohya.imports import from_toml
from flowloom.trainers.kohya.trainer import TRAINER
from tests.fakes.sd_scripts import CHECKOUT, HERE, PYTHON, needs_sd_scripts, paint_with_captions, prepare

pytestmark = [pytest.mark.slow, needs_sd_scripts]
WAYS = [
    (family, method)
    for family, facts in FACTS.items()
    for method in ("lora", "full")
    if method == "lora" or facts.full_script
]
EVERYTHING: dict[str, Any] = {
    "training": {
        "unet_lr": 1e-5, "text_encoder_lr": 2e-5, "optimizer_args": ["weight_decay=0.1"], "full_bf16": True,
        "min_snr_gamma": 5.0, "noise_offset": 0.1, "clip_skip": 2, "no_half_vae": True, "max_train_epochs": 3,
    },
    "flow": {
        "timestep_sampling": "sigmoid", "sigmoid_scale": 1.0, "discrete_flow_shift": 3.0,
        "model_prediction_type": "raw", "guidance_scale": 1.5, "apply_t5_attn_mask": True,
    },
    "network": {"network_dropout": 0.1, "network_train_unet_only": True, "network_args": ["conv_dim=4"]},
    "memory": {
        "fp8_base": True, "blocks_to_swap": 2, "cache_text_encoder_outputs": True,
        "cache_text_encoder_outputs_to_disk": True,
    },
    "sampling": {
        "prompts": ["a fox --w 8", "#1 girl"], "negative": "bad --h 3", "scale": 3.5, "guidance": 2.0,
        "sample_at_first": True,
    },
    "hub": {"huggingface_repo_id": "me/fox", "save_state_to_huggingface": True},
}  # fmt: skip


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images with captions, with a mask for each, and with a file of captions for all."""
    folder = tmp_path_factory.mktemp("kohya")
    paint_with_captions(folder / "pictures")
    paint_with_captions(folder / "masks")
    entries = {
        str(path): {"caption": "from the file"} for path in sorted((folder / "pictures").glob("*.png"))
    }
    (folder / "captions.json").write_text(json.dumps(entries))
    return folder


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The one that is named, for the studio too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FLOWLOOM_TRAINERS", str(tmp_path_factory.mktemp("list") / "trainers.json"))
        prepare(patch)
        patch.setenv("HF_TOKEN", "hf_not-a-real-token")
        add_checkout("kohya", CHECKOUT, PYTHON)
        yield CHECKOUT


def with_files(family: str, method: str, folder: Path, **sections: Any) -> dict[str, Any]:
    """A configuration with every file that its family needs."""
    for key in ("pretrained_model_name_or_path", "ae", "clip_l", "clip_g", "t5xxl", "gemma2"):
        (folder / f"{key}.safetensors").touch()
    clips = ("clip_l", "clip_g", "t5xxl") if family == "sd3" else ()
    model = {key: str(folder / f"{key}.safetensors") for key in (*FACTS[family].needed, *clips)}
    datasets = [{"subsets": [{"image_dir": str(folder / "pictures")}]}]
    return {"family": family, "method": method, "model": model, "datasets": datasets} | sections


def as_read(configs: dict[str, dict[str, Any]], folder: Path) -> dict[str, Any]:
    """The arguments that sd-scripts reads from each configuration; the studio reports no problem of them."""
    pairs = {}
    for name, config in configs.items():
        assert TRAINER.check(config) == []
        run_dir = RunDir.create(name, folder)
        TRAINER.prepare(config, run_dir, "a test")
        pairs[name] = f"{run_dir.path}={script_of(KohyaConfig.model_validate(config))}"
    arguments = [str(PYTHON), str(HERE / "read_as_sd_scripts.py"), *pairs.values()]
    done = subprocess.run(arguments, cwd=CHECKOUT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.rpartition("\nREAD ")[2])
    return {name: found[pair] for name, pair in pairs.items()}


def test_every_family_is_read_as_it_was_written(checkout: Path, data_dir: Path, tmp_path: Path) -> None:
    configs = {
        f"{family}-{method}": with_files(family, method, data_dir, sampling={"prompts": ["a fox"]})
        for family, method in WAYS
    }
    for name, read in as_read(configs, tmp_path).items():
        assert not read.get("error"), name
        assert (read["wrong"], read["images"]) == ([], 4), name
        assert read["captions"] == [f"a {colour} picture" for colour in ("blue", "green", "red", "yellow")]
        assert [prompt["prompt"] for prompt in read["prompts"]] == ["a fox"]
        if name == "chroma-lora":
            assert (read["prompts"][0]["scale"], read["prompts"][0]["guidance_scale"]) == (4.0, 0.0)
            assert read["arguments"]["model_prediction_type"] == "raw"


def test_every_key_that_the_studio_lets_through_is_read(
    checkout: Path, data_dir: Path, tmp_path: Path
) -> None:
    configs = {}
    for family, method in WAYS:
        config = with_files(family, method, data_dir, **json.loads(json.dumps(EVERYTHING)))
        for problem in TRAINER.check(config):
            section, _, key = problem.where.partition(".")
            assert "does not accept --" in problem.text, problem
            del config[section][key]
        configs[f"{family}-{method}"] = config
    for name, read in as_read(configs, tmp_path).items():
        assert not read.get("error"), name
        # sd-scripts takes one number for its list here.
        assert set(read["wrong"]) <= {"text_encoder_lr is 2e-05, and takes *"}, name
        first, second = read["prompts"]
        assert (first["prompt"], second["prompt"]) == ("a fox", "#1 girl")
        options = ("negative_prompt", "width", "height", "scale", "guidance_scale", "seed")
        assert [first[key] for key in options] == ["bad - -h 3", 8, 1024, 3.5, 2.0, 42]


def test_imports_know_every_argument_of_this_sd_scripts() -> None:
    names = {name for facts in FACTS.values() for name in (facts.lora_script, facts.full_script) if name}
    found = {key for name in names for key in known_arguments(CHECKOUT, name)}
    text = "\n".join(f"{key} = 3" for key in sorted(found))
    unknown = from_toml(text)
    assert not {key for key in unknown.left_over if key not in unknown.reasons}


def test_captions_from_a_file_and_masks_are_read(checkout: Path, data_dir: Path, tmp_path: Path) -> None:
    subset = {"image_dir": str(data_dir / "pictures")}
    metadata = [{"subsets": [subset | {"metadata_file": str(data_dir / "captions.json")}]}]
    masks = [{"subsets": [subset | {"conditioning_data_dir": str(data_dir / "masks")}]}]
    configs = {
        "sd15-file": with_files("sd15", "full", data_dir, datasets=metadata),
        "sdxl-file": with_files("sdxl", "full", data_dir, datasets=metadata),
        "flux-file": with_files("flux", "lora", data_dir, datasets=metadata),
        "flux-masks": with_files("flux", "lora", data_dir, datasets=masks),
        "sd15-masks": with_files("sd15", "full", data_dir, datasets=masks),
    }
    kinds = {"file": "FineTuningDataset", "masks": "ControlNetDataset"}
    for name, read in as_read(configs, tmp_path).items():
        assert not read.get("error"), name
        assert read["kinds"] == [kinds[name.partition("-")[2]]]
        assert (read["wrong"], read["images"]) == ([], 4), name
        if name.endswith("file"):
            assert read["captions"] == ["from the file"]
