"""Chroma Radiance trained by the engine: pixels in place of latents, everything else as for other families.

diffusers has no such network: tests/nn/test_radiance.py compares it with the published code.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from flowloom.cli.main import main
from flowloom.config.model_files import resolve_paths
from flowloom.config.run import ModelSection, RunConfig
from flowloom.config.unused_keys import idle_keys
from flowloom.data.loader import Sample, SampleBatch
from flowloom.engine.__main__ import run_engine
from flowloom.engine.build import load_encoders
from flowloom.engine.collate import _token_weight  # pyright: ignore[reportPrivateUsage]
from flowloom.engine.export import export_adapter
from flowloom.engine.preview import SampleGenerator, SamplingParams
from flowloom.engine.randomness import generator
from flowloom.engine.state import Precision
from flowloom.errors import WeightsError
from flowloom.model_library.requirements import unfit_for
from flowloom.model_library.scan import look
from flowloom.models.adapters.read import load_onto
from flowloom.models.families.radiance import FAMILY
from flowloom.models.family import detect, family_for
from flowloom.models.weights import open_weights, save_weights
from flowloom.nn.radiance import Radiance, RadianceParams
from flowloom.nn.tiny import make_approximator
from flowloom.run.directory import RunDir
from flowloom.run.events import read_events
from flowloom.run.resume import change_by_flags
from tests.models.adapters.comfyui import loaded_as_comfyui_does

CPU, META = torch.device("cpu"), torch.device("meta")
PARAMS = RadianceParams(768, 128, 64, 4.0, 2, 2, 2, (4, 14, 14), 10_000, True, 64, 2, 64, 16, 16, 2, 2, 4)
LORA = {"rank": 2, "alpha": 4}
ROTATION = {"change_layer_every": 1, "trained_single_blocks": 1, "trained_double_blocks": 1}
METHODS: dict[str, dict[str, Any]] = {
    "full": {
        "memory": {"streamed_blocks": 2},
        "optimizer": {"device": "cpu"},
        "inference": {
            "inference_every": 2,
            "steps": 2,
            "prompts": ["red"],
            "image_dim": [64, 32],
            "cfg": 2.0,
        },
    },
    "rotation": {"training": ROTATION},
    "keywords": {
        "training": {"trained_layer_keywords": ["nerf_blocks.1."]},
        "method": {"kind": "keywords"},
        "model": {"use_x0": True},
    },
    "dora": {"lora": LORA | {"target_layers": ["blocks"]}, "method": {"kind": "dora"}},
    "lokr": {"lora": LORA, "method": {"kind": "lokr"}, "ema": {"decay": 0.9}},
    "lora-8bit": {
        "lora": LORA | {"base_model_quant_level": "8bit"},
        "memory": {"checkpointed_blocks": 2, "streamed_blocks": 6},
    },
}


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        state = Radiance(PARAMS).state_dict()
    made = make_approximator(PARAMS, 5)
    return state | {f"distilled_guidance_layer.{name}": tensor for name, tensor in made.items()}


@pytest.fixture(scope="module")
def path(weights: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file as released, with the buffer that FLOW saves."""
    path = tmp_path_factory.mktemp("radiance") / "Chroma1-Radiance.safetensors"
    save_weights(path, weights | {"mod_index": torch.arange(PARAMS.num_modulations)}, {})
    return path


@pytest.fixture(scope="module")
def model(path: Path, tiny_family: Any) -> dict[str, Any]:
    section = ModelSection(path=str(path), t5_path=str(tiny_family.t5_path), t5_max_length=24)
    return resolve_paths(section, Path()).model_dump() | {"chroma_path": ""}


def losses(run_dir: RunDir) -> list[float]:
    return [event["loss"] for event in read_events(run_dir.events_jsonl) if event["kind"] == "step"]


def tensors(run_dir: RunDir) -> dict[str, Tensor]:
    checkpoint = run_dir.latest_checkpoint()
    assert checkpoint
    paths = sorted(checkpoint.glob("*.safetensors"))
    return {f"{path.name}:{name}": tensor for path in paths for name, tensor in open_weights(path).items()}


def test_a_released_file_is_recognized_and_needs_no_vae(path: Path, model: dict[str, Any], make_config):
    assert detect(path) is family_for(ModelSection(path=str(path))) is FAMILY
    assert FAMILY.sizes(path) == PARAMS
    config = make_config(model=model | {"vae_path": ""})
    assert not unfit_for(config)
    assert [file.key for file in FAMILY.files if file.role == "latents"] == []


def test_a_file_under_comfyuis_prefix_is_the_same_network(weights, path: Path, tmp_path: Path):
    other = tmp_path / "comfy.safetensors"
    save_weights(other, {f"model.diffusion_model.{name}": tensor for name, tensor in weights.items()}, {})
    assert detect(other) is FAMILY
    networks = [FAMILY.load_network(one, CPU, torch.float32).state_dict() for one in (path, other)]
    assert all(torch.equal(tensor, networks[1][name]) for name, tensor in networks[0].items())


@pytest.mark.parametrize(
    ("extra", "reason"),
    [
        ({"__32x32__": torch.empty(0)}, "patches of 32 pixels"),
        ({"nerf_final_layer.linear.weight": torch.zeros(3, 16)}, "an early version"),
        ({"img_in_patch.weight": torch.zeros(64, 3, 32, 32)}, "have 32 pixels on each side"),
    ],
)
def test_versions_that_differ_are_refused_by_name(weights, extra, reason: str, tmp_path: Path):
    other = tmp_path / "other.safetensors"
    save_weights(other, weights | extra, {})
    with pytest.raises(WeightsError, match=reason):
        FAMILY.load_network(other, CPU, torch.float32)


def test_a_network_that_predicts_images_has_to_be_trained_so(weights, model, make_config, tmp_path: Path):
    other = tmp_path / "x0.safetensors"
    save_weights(other, weights | {"__x0__": torch.empty(0)}, {})
    config = make_config(model=model | {"path": str(other)})
    (problem,) = unfit_for(config)
    assert problem.where == "model.use_x0"
    assert not unfit_for(make_config(model=model | {"path": str(other), "use_x0": True}))


def test_the_key_of_chromas_network_says_where_radiance_goes(path: Path, make_config, model):
    (problem,) = unfit_for(make_config(model=model | {"path": "", "chroma_path": str(path)}))
    assert "works on pixels" in problem.message
    with pytest.raises(WeightsError, match=r"Name it in model\.path"):
        family_for(ModelSection()).load_network(path, CPU, torch.float32)


@pytest.mark.parametrize("method", METHODS)
def test_a_resumed_run_equals_an_uninterrupted_one(
    make_run: Callable[..., RunDir], model: dict[str, Any], method: str
):
    sections = METHODS[method] | {"model": model | METHODS[method].get("model", {})}
    whole, parts = make_run("whole", **sections), make_run("parts", **sections)
    for run_dir, ends in ((whole, [3]), (parts, [2, 3])):
        for end in ends:
            change_by_flags(run_dir, [("limits.max_steps", str(end))])
            run_engine(run_dir)
    assert losses(whole) == losses(parts)
    assert len(losses(whole)) == 3
    assert all(0 < loss < 100 for loss in losses(whole))
    expected, found = tensors(whole), tensors(parts)
    assert expected.keys() == found.keys()
    assert all(torch.equal(tensor, found[name]) for name, tensor in expected.items())


def test_recomputed_and_streamed_blocks_change_no_loss(make_run: Callable[..., RunDir], model):
    memory = ({}, {"checkpointed_blocks": "all"}, {"streamed_blocks": "all"})
    runs = [make_run(str(i), model=model, lora=LORA, memory=one) for i, one in enumerate(memory)]
    for run_dir in runs:
        run_engine(run_dir)
    assert all(losses(run_dir) == pytest.approx(losses(runs[0]), rel=1e-6) for run_dir in runs)


def test_images_are_not_cached_and_captions_are(make_run: Callable[..., RunDir], model, tmp_path: Path):
    data = {"uncond_percentage": 0.0, "tag_drop_percentage": 0.0, "shuffle_tags": False}
    cache = {"latents": "disk", "text": "disk", "dir": str(tmp_path / "cache"), "dtype": "fp32"}
    plain = make_run("plain", model=model, lora=LORA, dataloader=data)
    cached = make_run("cached", model=model, lora=LORA, dataloader=data, cache=cache)
    for run_dir in (plain, cached):
        run_engine(run_dir)
    assert losses(plain) == losses(cached)
    size = sum(file.stat().st_size for file in (tmp_path / "cache").rglob("*") if file.is_file())
    assert 0 < size < 22 * 24 * PARAMS.text_width * 4 * 2
    notes = " ".join(idle_keys(cached.read_config()))
    assert "cache.latents" in notes


def test_a_mask_weights_patches_of_16_pixels():
    mask = np.full((32, 48), 255, np.uint8)
    mask[:, 40:] = 0
    sample = Sample(0, 1, "a.png", "red bar", 1.0, np.zeros((32, 48, 3), np.uint8), mask)
    batch = SampleBatch(0, 0, (48, 32), [sample], [], [1])
    weight = _token_weight(batch, (32, 48), FAMILY.patch, CPU)
    assert weight is not None
    assert weight.tolist() == [[1.0, 1.0, 0.5, 1.0, 1.0, 0.5]]


def test_operations_are_counted_as_torch_counts_them(path: Path):
    network = FAMILY.load_network(path, META, torch.float32)
    with torch.device(META), FlopCounterMode(display=False) as counter, torch.no_grad():
        texts = [{"states": torch.zeros(20, 128)}]
        FAMILY.predict(network, torch.zeros(1, 24, 768), torch.ones(1), texts, (64, 96))
    assert FAMILY.flops(PARAMS, 24, 20).forward == counter.get_total_flops()


def test_exports_are_verified_as_comfyui_reads_them(make_run: Callable[..., RunDir], model, path, tmp_path):
    run_dir = make_run(model=model, lora=LORA | {"target_layers": ["blocks", "txt_in"]}, training={"lr": 0.1})
    run_engine(run_dir)
    out = tmp_path / "comfy.safetensors"
    exported = export_adapter(run_dir.path, "comfy", out)
    num_layers = 2 * 8 + 2 * 2 + 2 + 1
    assert exported.verified.line == f"{num_layers} layers, by the key rules of ComfyUI"
    base = {name: tensor.float() for name, tensor in open_weights(path).items()}
    loaded = loaded_as_comfyui_does(out, base)
    changed = [name for name in base if not torch.equal(loaded[name], base[name])]
    assert len(changed) == num_layers
    network = FAMILY.load_network(path, CPU, torch.float32)
    assert len(load_onto(network, out).layers) == num_layers
    assert export_adapter(run_dir.path, "kohya", tmp_path / "kohya.safetensors").verified.num_layers == 23
    found = look(out).adapter
    assert found
    assert found.base == "radiance"
    whole = tmp_path / "merged.safetensors"
    assert main(["export", str(run_dir.path), "--format", "merged", "-o", str(whole)]) == 0
    merged = open_weights(whole)
    assert all(torch.allclose(merged[name], loaded[name], atol=1e-5) for name in merged)
    images = tmp_path / "images"
    sampled = ["--prompt", "red bar", "-o", str(images), "--size", "48x32", "--steps", "2"]
    assert main(["sample", str(run_dir.path), *sampled]) == 0
    (image,) = images.glob("*.png")
    with Image.open(image) as opened:
        assert opened.size == (48, 32)
    with pytest.raises(WeightsError, match="no adapters in the format diffusers"):
        export_adapter(run_dir.path, "diffusers", tmp_path / "diffusers.safetensors")


def generate(run_dir: RunDir, source: Path, prompt: str) -> tuple[np.ndarray, Tensor]:
    """The image that the engine generates, and one by FLOW's rule, step by step, without our sampler."""
    config: RunConfig = run_dir.read_config()
    network = FAMILY.load_network(source, CPU, torch.float32)
    encoders = load_encoders(config.model, config, CPU)
    width, height, steps = 32, 32, 12
    made = SampleGenerator(network, encoders, Precision(CPU, torch.float32, torch.float32))
    params = SamplingParams(width, height, steps, 1.0, 0, steps)
    (image,) = made.generate([prompt], [7], params)
    x = torch.randn(4, 768, generator=generator(7, "picture"))[None]
    texts = encoders.prompts([prompt])
    levels = FAMILY.schedule(network, steps, 4)
    with torch.no_grad():
        for now, then in pairwise(levels):
            x = x + (then - now) * FAMILY.predict(network, x, torch.tensor([now]), texts, (height, width))
    return np.asarray(image), FAMILY.unpack(x, (height, width))[0]


def test_an_image_is_learned_and_generated(make_run: Callable[..., RunDir], model, tmp_path: Path):
    """The training loss does not show a wrong sign, time direction or order of pixels; the image does."""
    folder = tmp_path / "images"
    folder.mkdir()
    coarse = np.random.default_rng(1).integers(0, 2, (3, 3, 3), dtype=np.uint8) * 255
    truth = Image.fromarray(coarse).resize((32, 32), Image.Resampling.BICUBIC)
    for i in range(4):
        truth.save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text("red bar")
    run_dir = make_run(
        model=model,
        training={"lr": 4e-3, "warmup_steps": 10, "train_minibatch": 4, "weight_decay": 0.0},
        dataloader={
            "jsonl_metadata_path": str(folder),
            "image_folder_path": str(folder),
            "base_resolution": [32],
            "uncond_percentage": 0.0,
        },
        optimizer={"max_grad_norm": 1.0},
        limits={"max_steps": 120},
        objective={"lowercase_percentage": 0.0},
    )
    run_engine(run_dir)
    checkpoint = run_dir.latest_checkpoint()
    assert checkpoint
    image, by_rule = generate(run_dir, checkpoint / "model.safetensors", "red bar")
    pixels = np.asarray(truth).astype(np.float32)
    assert ((image - pixels) ** 2).mean() < 0.1 * pixels.var()
    levels = ((by_rule.clamp(-1, 1) + 1) * 127.5).round().permute(1, 2, 0).numpy()
    assert np.abs(levels - image).max() <= 1
