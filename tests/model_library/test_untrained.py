"""An untrained network is recognized by its file, and offered after trained ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from flowloom.config.run import RunConfig
from flowloom.model_library.requirements import choices, untrained_models
from flowloom.model_library.scan import look
from flowloom.models.weights import save_weights
from flowloom.nn.tiny import TINY, random_chroma_weights


def written(path: Path, **changed: torch.Tensor) -> Path:
    weights = random_chroma_weights(TINY, seed=1)
    save_weights(path, {**weights, **{name.replace("__", "."): value for name, value in changed.items()}}, {})
    return path


def test_a_final_layer_of_zeros_is_an_untrained_network(tmp_path: Path) -> None:
    shape = random_chroma_weights(TINY, seed=1)["final_layer.linear.weight"].shape
    last = torch.zeros(shape)
    last[-1, -1] = 1e-30
    assert look(written(tmp_path / "untrained.safetensors")).is_untrained
    assert not look(written(tmp_path / "trained.safetensors", final_layer__linear__weight=last)).is_untrained


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_an_untrained_network_is_recognized_in_every_number_format(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    weights = {name: tensor.to(dtype) for name, tensor in random_chroma_weights(TINY, seed=1).items()}
    save_weights(tmp_path / "base.safetensors", weights, {})
    assert look(tmp_path / "base.safetensors").is_untrained
    prefixed = {f"model.diffusion_model.{name}": tensor for name, tensor in weights.items()}
    save_weights(tmp_path / "prefixed.safetensors", prefixed, {})
    assert look(tmp_path / "prefixed.safetensors").is_untrained


def test_trained_networks_are_offered_first(tmp_path: Path, tiny_chroma_path: Path) -> None:
    (tmp_path / "z-trained.safetensors").write_bytes(tiny_chroma_path.read_bytes())
    written(tmp_path / "a-untrained.safetensors")
    found = choices([tmp_path])["model.chroma_path"]
    assert [path.name for path in found] == ["z-trained.safetensors", "a-untrained.safetensors"]


def test_an_adapter_on_an_untrained_base_is_reported_before_it_starts(tmp_path: Path) -> None:
    base = str(written(tmp_path / "base.safetensors"))
    sections: dict[str, Any] = {"model": {"chroma_path": base}}
    assert untrained_models(RunConfig.model_validate(sections)) == []
    (message,) = untrained_models(RunConfig.model_validate(sections | {"lora": {"rank": 2}}))
    assert message.startswith("model.chroma_path: base.safetensors was never trained")
