"""Adapters of a run, as other programs load them: checkpoints, exports, merges."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from flowloom.cli.main import main
from flowloom.config.run import RunConfig
from flowloom.engine.__main__ import run_engine
from flowloom.engine.build import build
from flowloom.engine.parallel.ranks import Ranks
from flowloom.errors import ConfigError
from flowloom.models.adapters.formats import adapter_content
from flowloom.models.weights import open_weights, save_weights
from flowloom.run.directory import RunDir
from flowloom.tasks import ALL
from flowloom.trainers.engine import TRAINER
from tests.models.adapters.comfyui import loaded_as_comfyui_does

RANK, ALPHA = 2, 6.0


@pytest.fixture
def dora_run(make_run: Callable[..., RunDir]) -> RunDir:
    """A DoRA of a few large steps, with an average."""
    run_dir = make_run(
        lora={"rank": RANK, "alpha": ALPHA},
        method={"kind": "dora"},
        limits={"max_steps": 3},
        training={"lr": 0.05},
        ema={"decay": 0.9},
    )
    run_engine(run_dir)
    return run_dir


def trained_weights(tensors: dict[str, Tensor], base: dict[str, Tensor]) -> dict[str, Tensor]:
    """By DoRA's formula, of the tensors as a run keeps them."""
    weights = dict(base)
    for name in [name.removesuffix(".dora_scale") for name in tensors if name.endswith(".dora_scale")]:
        delta = tensors[f"{name}.lora_B.weight"] @ tensors[f"{name}.lora_A.weight"]
        total = base[f"{name}.weight"].float() + ALPHA / RANK * delta
        weights[f"{name}.weight"] = (tensors[f"{name}.dora_scale"] / total.norm(dim=1))[:, None] * total
    return weights


def read(path: Path) -> dict[str, Tensor]:
    return {name: tensor.float() for name, tensor in open_weights(path).items()}


@pytest.mark.parametrize(
    ("file", "kept"), [("adapter", "weights"), ("adapter_ema", "ema")], ids=["weights", "average"]
)
def test_comfyui_loads_a_checkpoints_dora_as_it_was_trained(dora_run: RunDir, file: str, kept: str) -> None:
    folder = dora_run.checkpoint_dir(3)
    base = read(Path(dora_run.read_config().model.chroma_path))
    expected = trained_weights(read(folder / "state" / f"{kept}.safetensors"), base)
    loaded = loaded_as_comfyui_does(folder / f"{file}.safetensors", base)
    name = "single_blocks.0.linear1.weight"
    assert (expected[name] - base[name]).abs().max() > 0.01
    for name, weight in expected.items():
        torch.testing.assert_close(loaded[name], weight, rtol=0, atol=3e-6)


@pytest.mark.parametrize(("choice", "kept"), [("ema", "ema"), ("raw", "weights")])
def test_a_dora_is_exported_with_the_scales_that_lycoris_takes(
    dora_run: RunDir, choice: str, kept: str, tmp_path: Path, capsys
) -> None:
    out = tmp_path / "kohya.safetensors"
    arguments = ["export", str(dora_run.path), "--format", "kohya", "--weights", choice, "-o", str(out)]
    assert main(arguments) == 0
    num_layers = sum(name.endswith(".dora_scale") for name in read(out))
    assert f"verified: {num_layers} layers, by the key rules of sd-scripts" in capsys.readouterr().err
    exported = read(out)
    for name, tensor in read(dora_run.checkpoint_dir(3) / "state" / f"{kept}.safetensors").items():
        if name.endswith(".dora_scale"):
            layer = name.removesuffix(".dora_scale").replace(".", "_")
            torch.testing.assert_close(
                exported[f"lora_unet_{layer}.dora_scale"][:, 0], tensor, rtol=2e-6, atol=0
            )


def test_an_export_that_needs_the_base_says_so(dora_run: RunDir, tmp_path: Path, capsys) -> None:
    lone = tmp_path / "alone" / "fox.safetensors"
    lone.parent.mkdir()
    (dora_run.checkpoint_dir(3) / "adapter.safetensors").rename(lone)
    arguments = ["export", str(lone), "--format", "diffusers", "-o", str(tmp_path / "out.safetensors")]
    assert main(arguments) == 2
    assert "Name the base model that this DoRA was trained on" in capsys.readouterr().err
    base = dora_run.read_config().model.chroma_path
    assert main([*arguments, "--base", base]) == 0


def test_an_export_that_a_program_would_load_otherwise_is_not_written(
    dora_run: RunDir, tmp_path: Path, capsys, monkeypatch
) -> None:
    """A writer that forgets alpha, as other trainers have done."""

    def without_alpha(*arguments):
        tensors, said = adapter_content(*arguments)
        return {name: tensor for name, tensor in tensors.items() if not name.endswith(".alpha")}, said

    monkeypatch.setattr("flowloom.engine.export.adapter_content", without_alpha)
    out = tmp_path / "out.safetensors"
    assert main(["export", str(dora_run.path), "--format", "kohya", "-o", str(out)]) != 0
    error = capsys.readouterr().err
    assert "does not load in sd-scripts" in error
    assert "0.333 times as strong" in error
    assert not out.exists()


@pytest.mark.parametrize("verb", ["export", "merge", "sample"])
def test_a_flux_lora_with_a_text_encoder_is_used_without_it(
    verb: str, tmp_path: Path, tiny_family, capsys
) -> None:
    """The programs that write it know no other names, and every layer of the network is Chroma's as well."""
    path, out, base = tmp_path / "fox.safetensors", tmp_path / "out", tiny_family.chroma_path
    down, up = torch.ones(2, 256), torch.ones(64, 2)
    layer, clip = "lora_unet_final_layer_linear", "lora_te1_text_model_encoder_layers_0_mlp_fc1"
    block = "lora_unet_double_blocks_0_img_attn_proj"
    tensors = {
        f"{layer}.lora_down.weight": down,
        f"{layer}.lora_up.weight": up,
        f"{block}.lora_down.weight": down,
        f"{block}.lora_up.weight": torch.zeros(256, 2),
        f"{clip}.lora_down.weight": torch.ones(2, 8),
        f"{clip}.lora_up.weight": torch.ones(8, 2),
    }
    save_weights(path, tensors, {})
    arguments = {
        "export": ["export", str(path), "--format", "comfy", "-o", str(out)],
        "merge": ["export", str(path), "--format", "merged", "--base", str(base), "-o", str(out)],
        "sample": sample_arguments(tiny_family, base, path, out),
    }[verb]
    assert main(arguments) == 0
    assert f"2 of a text encoder or of trained embeddings: {clip}" in capsys.readouterr().err
    if verb == "merge":
        name = "final_layer.linear.weight"
        torch.testing.assert_close(read(out)[name], read(base)[name] + 2.0)


def sample_arguments(tiny_family, base: Path, lora: Path, out: Path) -> list[str]:
    config = out.with_name("config.json")
    t5 = str(tiny_family.t5_path)
    model = {
        "vae_path": str(tiny_family.vae_path),
        "t5_path": t5,
        "t5_config_path": f"{t5}/config.json",
        "t5_tokenizer_path": t5,
    }
    config.write_text(json.dumps({"model": model}))
    arguments = ["sample", str(base), "--config", str(config), "--lora", str(lora), "--prompt", "a fox"]
    return [*arguments, "--steps", "1", "--size", "64x64", "-o", str(out)]


def test_a_merge_is_what_was_trained(dora_run: RunDir, tmp_path: Path) -> None:
    out = tmp_path / "merged.safetensors"
    arguments = ["export", str(dora_run.path), "--format", "merged", "--weights", "raw", "-o", str(out)]
    assert main(arguments) == 0
    base = read(Path(dora_run.read_config().model.chroma_path))
    expected = trained_weights(read(dora_run.checkpoint_dir(3) / "state" / "weights.safetensors"), base)
    dtype = next(iter(open_weights(out).dtypes.values()))
    for name, tensor in open_weights(out).items():
        torch.testing.assert_close(tensor, expected[name].to(dtype), rtol=1e-2, atol=3e-6)


@pytest.fixture
def files(tmp_path: Path, tiny_family) -> dict[str, Path]:
    """Files that stand in the wrong place, or that nothing reads."""
    lora = {
        "diffusion_model.img_in.lora_A.weight": torch.ones(1, 64),
        "diffusion_model.img_in.lora_B.weight": torch.ones(64, 1),
    }
    save_weights(tmp_path / "fox.safetensors", lora, {})
    scaled = dict(open_weights(tiny_family.chroma_path).items()) | {"img_in.weight_scale_2": torch.ones(1)}
    save_weights(tmp_path / "scaled.safetensors", scaled, {})
    (tmp_path / "small.gguf").write_bytes(b"GGUF" + bytes(64))
    return {
        "lora": tmp_path / "fox.safetensors",
        "scaled": tmp_path / "scaled.safetensors",
        "gguf": tmp_path / "small.gguf",
        "vae": Path(tiny_family.vae_path),
        "t5": Path(tiny_family.t5_path) / "model.safetensors",
        "chroma": Path(tiny_family.chroma_path),
    }


WRONG = [
    ("chroma_path", "lora", "fox.safetensors is a LoRA"),
    ("chroma_path", "scaled", "has weights quantized by ComfyUI"),
    ("chroma_path", "gguf", "not a complete GGUF file"),
    ("chroma_path", "t5", "Chroma's network goes here"),
    ("t5_path", "vae", "T5 XXL's encoder goes here"),
    ("t5_path", "gguf", "not a complete GGUF file"),
    ("vae_path", "chroma", "FLUX's VAE of 16 channels, ae.safetensors goes here"),
]


@pytest.mark.parametrize(("key", "file", "message"), WRONG)
def test_a_wrong_model_file_is_a_problem_of_its_key_before_anything_starts(
    key: str, file: str, message: str, files: dict[str, Path], make_config, tmp_path: Path, capsys
) -> None:
    """`train` makes no run, the preflight and the studio list it, the engine's own process says it too."""
    config = make_config().model_dump(mode="json")
    config["model"][key] = str(files[file])
    path, runs_dir = tmp_path / "config.json", tmp_path / "runs"
    path.write_text(json.dumps(config))
    assert main(["train", str(path), "--runs-dir", str(runs_dir)]) == 2
    said = capsys.readouterr().err
    assert f"model.{key}: " in said
    assert message in said
    assert not runs_dir.exists()
    found = [problem for problem in TRAINER.check(config) if problem.where == f"model.{key}"]
    assert [message in problem.text for problem in found] == [True]
    assert main(["preflight", str(path), "--json"]) != 0
    listed = [
        problem
        for problem in json.loads(capsys.readouterr().out)["problems"]
        if problem["where"] == f"model.{key}"
    ]
    assert [message in problem["message"] for problem in listed] == [True]
    with pytest.raises(ConfigError, match=message):
        build(RunConfig.model_validate(config), Ranks())


@pytest.mark.parametrize(
    ("file", "message"),
    [("chroma", "is Chroma, not a LoRA"), ("vae", "not a LoRA"), ("gguf", "not a complete GGUF file")],
)
def test_other_files_are_not_taken_for_adapters(
    file: str, message: str, files: dict[str, Path], make_config, tmp_path: Path, capsys
) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(make_config().model_dump(mode="json")))
    out = str(tmp_path / "out.safetensors")
    sample = [
        "sample",
        str(files["chroma"]),
        "--config",
        str(path),
        "--prompt",
        "x",
        "-o",
        str(tmp_path / "s"),
    ]
    assert main([*sample, "--lora", str(files[file])]) == 2
    assert message in capsys.readouterr().err
    assert main(["export", str(files[file]), "--format", "comfy", "-o", out]) == 2
    assert message in capsys.readouterr().err
    problems = {
        name: ALL[name].check({"source_path": str(files[file]), "base_path": str(files["chroma"])})
        for name in ("export", "merge")
    }
    assert all(problem.where == "source_path" and message in problem.text
               for found in problems.values() for problem in found)  # fmt: skip
    assert [len(found) for found in problems.values()] == [1, 1]


def test_a_merge_into_another_model_is_refused(files: dict[str, Path], tmp_path: Path, capsys) -> None:
    arguments = ["export", str(files["lora"]), "--format", "merged", "-o", str(tmp_path / "out.safetensors")]
    for base, said in (
        ("vae", "Chroma's network goes here"),
        ("scaled", "quantized by ComfyUI"),
        ("gguf", "GGUF"),
    ):
        assert main([*arguments, "--base", str(files[base])]) == 2
        assert said in capsys.readouterr().err
        config = {"source_path": str(files["lora"]), "base_path": str(files[base])}
        (problem,) = ALL["merge"].check(config)
        assert problem.where == "base_path"
        assert said in problem.text


def test_an_adapter_of_another_size_is_not_exported(dora_run: RunDir, tmp_path: Path, capsys) -> None:
    base = tmp_path / "narrow.safetensors"
    wide = read(Path(dora_run.read_config().model.chroma_path))
    save_weights(base, wide | {"single_blocks.0.linear2.weight": torch.zeros(8, 8)}, {})
    out = tmp_path / "out.safetensors"
    arguments = ["export", str(dora_run.path), "--format", "kohya", "--base", str(base), "-o", str(out)]
    assert main(arguments) == 2
    assert "1 layers of other sizes" in capsys.readouterr().err
    assert not out.exists()
