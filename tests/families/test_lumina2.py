"""Lumina 2 beyond the contract of all families: released files, grouped keys, refiners, empty captions."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers.loaders.lora_conversion_utils import _convert_non_diffusers_lumina2_lora_to_diffusers
from diffusers.loaders.single_file_utils import convert_lumina2_to_diffusers
from torch import Tensor
from transformers import Gemma2Config, Gemma2Model

from flowloom.config.run import ModelSection, RunConfig
from flowloom.model_library.requirements import unfit_for
from flowloom.models.adapters.formats import adapter_content
from flowloom.models.families.lumina2 import FAMILY, INSTRUCTION, instructed
from flowloom.models.family import detect
from flowloom.models.weights import save_weights
from flowloom.nn.recompute import Recompute
from tests.engine.test_memory_plan import write_hole
from tests.families.lumina2 import in_release, make_transformer

CPU = torch.device("cpu")
WIDTH, KEYS, FFN = 2304, 768, 16
"""diffusers' converters assume the release's width."""
STACKS = ("layers.0", "noise_refiner.0", "context_refiner.0")


def test_a_release_loads_into_the_network(tmp_path: Path):
    network, path = make_transformer(), tmp_path / "lumina_2.safetensors"
    save_weights(path, in_release(network.state_dict()), {})
    assert detect(path) is FAMILY
    loaded = FAMILY.load_network(path, CPU, torch.float32).state_dict()
    assert all(torch.equal(loaded[name], weight) for name, weight in network.state_dict().items())


def test_names_are_those_of_diffusers_converter(tmp_path: Path):
    state = in_release(make_transformer().state_dict())
    draw = torch.Generator().manual_seed(0)
    joined = {name: torch.randn(WIDTH + 2 * KEYS, WIDTH, generator=draw) for name in state if ".qkv." in name}
    save_weights(tmp_path / "release.safetensors", state | joined, {})
    found, expected = FAMILY.open_weights(tmp_path / "release.safetensors"), state | joined
    expected = convert_lumina2_to_diffusers(expected)
    assert found.keys() == expected.keys() == make_transformer().state_dict().keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def adapter_state() -> dict[str, Tensor]:
    """A LoRA of rank 2 on all layers of one block of each kind."""
    draw = torch.Generator().manual_seed(1)
    sizes = {f"attn.to_{part}": (rows, WIDTH) for part, rows in (("q", WIDTH), ("k", KEYS), ("v", KEYS))}
    sizes |= {"attn.to_out.0": (WIDTH, WIDTH), "feed_forward.linear_2": (WIDTH, FFN)}
    sizes |= {f"feed_forward.linear_{i}": (FFN, WIDTH) for i in (1, 3)} | {"norm1.linear": (4 * WIDTH, 1024)}
    state: dict[str, Tensor] = {}
    for stack in STACKS:
        for layer, (rows, columns) in sizes.items():
            if layer != "norm1.linear" or stack != "context_refiner.0":
                state[f"{stack}.{layer}.lora_A.weight"] = torch.randn(2, columns, generator=draw)
                state[f"{stack}.{layer}.lora_B.weight"] = torch.randn(rows, 2, generator=draw)
    return state


def changes(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The change of each layer times one vector, by its name."""
    found: dict[str, Tensor] = {}
    for name, down in tensors.items():
        if name.endswith(".lora_A.weight"):
            x = torch.linspace(-1, 1, down.shape[1])
            layer = name.removesuffix(".lora_A.weight").removeprefix("transformer.")
            found[layer] = tensors[name.replace("lora_A", "lora_B")] @ (down @ x)
    return found


def test_comfyuis_adapters_are_read_by_diffusers_converter():
    """The layers of attention have fewer keys than queries, and a rank three times as high."""
    state = adapter_state()
    meta = {"kind": "lora", "rank": 2, "alpha": 2, "family": "lumina2"}
    tensors, _ = adapter_content("comfy", state, meta, {})
    assert tensors["diffusion_model.layers.0.attention.qkv.lora_A.weight"].shape == (6, WIDTH)
    # The converter takes no alpha; every scale is 1 here.
    alphas = {name: tensor for name, tensor in tensors.items() if name.endswith(".alpha")}
    shapes = {name: tensors[name.replace("alpha", "lora_A.weight")].shape for name in alphas}
    assert all(float(alpha) == shapes[name][0] for name, alpha in alphas.items())
    kept = {name: tensor for name, tensor in tensors.items() if name not in alphas}
    found, expected = changes(_convert_non_diffusers_lumina2_lora_to_diffusers(kept)), changes(state)
    assert found.keys() == expected.keys()
    for layer, change in expected.items():
        torch.testing.assert_close(found[layer], change, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("recomputed", [(4, 0), (0, 4), (2, 1)])
def test_recomputed_refiners_change_no_gradient(recomputed: tuple[int, int]):
    draw = torch.Generator().manual_seed(3)
    x, level = torch.randn(2, 24, 64, generator=draw), torch.tensor([0.2, 0.9])
    texts = [{"states": torch.randn(length, 32, generator=draw)} for length in (12, 7)]
    networks = [make_transformer(), make_transformer()]
    networks[1].load_state_dict(networks[0].state_dict())
    FAMILY.recompute(networks[1], Recompute(*recomputed))
    for network in networks:
        FAMILY.predict(network, x, level, texts, (12, 8)).square().mean().backward()
    for ours, theirs in zip(*(network.parameters() for network in networks), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=0, atol=0)


def test_an_empty_caption_has_no_instruction():
    assert instructed("") == ""
    assert instructed("a fox") == f"{INSTRUCTION}a fox"


def test_a_text_without_positions_is_refused():
    given = {"model": {"family": "lumina2", "path": "x", "t5_max_length": 300}}
    config = RunConfig.model_validate(given | {"inference": {"prompts": ["a"], "t5_max_length": 299}})
    (problem,) = unfit_for(config)
    assert problem.where == "model.t5_max_length"
    assert "up to 299 tokens, not 300" in problem.text


def test_comfyuis_file_of_gemma_needs_no_settings(tmp_path: Path):
    """It has no config.json beside it, and holds the tokenizer."""
    with torch.device("meta"):
        model = torch.nn.ModuleDict({"model": Gemma2Model(Gemma2Config())})
        model.register_buffer("spiece_model", torch.zeros(5))
    path = write_hole(tmp_path / "gemma_2_2b_fp16.safetensors", model)
    section = ModelSection(path="x", vae_path="x", text_encoder_path=str(path))
    loaded = FAMILY.encoders(section)["model.text_encoder_path"](torch.device("meta"), torch.float32)
    assert sum(weight.numel() for weight in loaded.parameters()) == 2_614_341_888
