"""Krea 2: files as released, and what the contract does not cover."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import pytest
import torch
from diffusers import Krea2Transformer2DModel
from diffusers.loaders.single_file_utils import convert_krea2_transformer_checkpoint_to_diffusers
from torch import Tensor, nn

from flowloom.config.run import ModelSection
from flowloom.models.adapters.krea_keys import KREA
from flowloom.models.families.krea2 import _LAYERS, _OTHERS, _OTHERS_OF_BLOCK, _OUTER, _STACKS, FAMILY
from flowloom.models.family import detect
from flowloom.models.weights import save_weights
from tests.families.krea2 import make_transformer


def released(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """`state` by the names of Krea's file."""
    whole = {theirs: ours for ours, theirs in _OTHERS.items()}
    layers = {theirs: ours for ours, theirs in _LAYERS.items()}
    others = {theirs: ours for ours, theirs in _OTHERS_OF_BLOCK.items()}
    outer = {theirs: ours for ours, theirs in _OUTER.items()}
    found: dict[str, Tensor] = {}
    for name, tensor in state.items():
        layer, _, leaf = name.rpartition(".")
        stack = next((pair for pair in _STACKS.items() if name.startswith(f"{pair[1]}.")), None)
        if stack:
            number, _, inner = name.removeprefix(f"{stack[1]}.").partition(".")
            part = inner.rpartition(".")[0]
            inner = others.get(inner) or f"{layers[part]}.{leaf}"
            is_table = inner == "mod.lin"
            found[f"{stack[0]}.{number}.{inner}"] = tensor.flatten() if is_table else tensor
        else:
            found[whole.get(name) or f"{outer[layer]}.{leaf}"] = tensor
    return found


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_a_single_file_is_read_as_by_diffusers(tmp_path: Path, prefix: str):
    with torch.random.fork_rng():
        state = dict(make_transformer().state_dict())
    state = {name: torch.randn_like(tensor) for name, tensor in state.items()}
    theirs = released(state)
    path = tmp_path / "krea2_raw_bf16.safetensors"
    save_weights(path, {f"{prefix}{name}": tensor for name, tensor in theirs.items()}, {})
    assert detect(path) is FAMILY
    found, expected = (
        FAMILY.open_weights(path),
        convert_krea2_transformer_checkpoint_to_diffusers(dict(theirs)),
    )
    assert found.keys() == expected.keys() == state.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


def test_the_released_network_has_12_8_billion_parameters():
    with torch.device("meta"):
        network = Krea2Transformer2DModel()
    shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    sizes = FAMILY.read_sizes(shapes, {})
    assert {key: network.config[key] for key in vars(sizes)} == vars(sizes)
    assert sum(weight.numel() for weight in network.parameters()) == pytest.approx(12.8e9, rel=0.01)


def test_turbo_is_warned_about():
    notes = FAMILY.notes(ModelSection(path="models/krea2_turbo_bf16.safetensors"))
    assert ["distilled" in note for note in notes] == [True]
    assert not FAMILY.notes(ModelSection(path="models/krea2_raw_bf16.safetensors"))


def test_norms_stay_in_float32(tmp_path: Path):
    with torch.random.fork_rng():
        make_transformer().save_pretrained(tmp_path)
    network = FAMILY.load_network(tmp_path, torch.device("cpu"), torch.bfloat16)
    wide = {name for name, weight in network.named_parameters() if weight.dtype == torch.float32}
    theirs = Krea2Transformer2DModel.from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
    assert wide == {name for name, weight in theirs.named_parameters() if weight.dtype == torch.float32}
    assert len(wide) > 10


def test_the_rules_of_readers_are_those_of_diffusers_converter():
    theirs: dict[str, str] = {}
    ours: dict[str, str] = {}
    rules = cast("Mapping[str, tuple[str, ...]]", KREA["comfy"].layers)
    with torch.device("meta"):
        layers = [name for name, part in make_transformer().named_modules() if isinstance(part, nn.Linear)]
    for released_name, (name,) in rules.items():
        key = f"{released_name.format(0)}.weight"
        (found,) = convert_krea2_transformer_checkpoint_to_diffusers({key: torch.zeros(6, 1)})
        theirs[released_name], ours[released_name] = found, f"{name.format(0)}.weight"
    assert ours == theirs
    stated = {name for (name,) in rules.values()}
    assert stated == {re.sub(r"_blocks\.\d+", "_blocks.{}", name) for name in layers}
