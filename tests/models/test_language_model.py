"""Language models as text encoders: states as transformers computes them, from folders and files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from flowloom.errors import WeightsError
from flowloom.import_warnings import quiet_imports
from flowloom.models.language_model import LanguageModel, load_text_model
from flowloom.models.weights import save_weights

with quiet_imports():
    import transformers

CPU = torch.device("cpu")
ROWS = [[5, 6, 7], [1, 2, 3, 4, 9]]
SIZES: dict[str, Any] = {
    "vocab_size": 80,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
VISION = {"hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 32, "depth": 1}


def rotary(**more: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6} | more}


def save(model: Any, folder: Path) -> None:
    model.save_pretrained(folder)


def qwen3() -> nn.Module:
    return transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**SIZES, **rotary()))


def gemma2() -> nn.Module:
    return transformers.Gemma2Model(transformers.Gemma2Config(**SIZES))


def qwen25() -> nn.Module:
    text = SIZES | rotary(mrope_section=[1, 1, 2])
    config = transformers.Qwen2_5_VLConfig(
        text_config=text, vision_config=VISION | {"fullatt_block_indexes": [0]}
    )
    return transformers.Qwen2_5_VLForConditionalGeneration(config)


def qwen3_vl() -> nn.Module:
    text = SIZES | rotary(mrope_section=[2, 1, 1], mrope_interleaved=True)
    config = transformers.Qwen3VLConfig(
        text_config=text, vision_config=VISION | {"deepstack_visual_indexes": [0]}
    )
    return transformers.Qwen3VLModel(config)


def gemma3() -> nn.Module:
    vision = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.Gemma3Config(
        text_config=SIZES,
        vision_config=vision | {"image_size": 28, "patch_size": 14},
        mm_tokens_per_image=4,
    )
    return transformers.Gemma3ForConditionalGeneration(config)


class Padding:
    """A tokenizer, as far as states need it."""

    pad_token_id = 0


def states(path: Path) -> list[torch.Tensor]:
    found = LanguageModel(load_text_model(path, CPU, torch.float32), Padding(), CPU).states(ROWS, range(4))
    return [row[: len(ids)] for row, ids in zip(found, ROWS, strict=True)]


@pytest.mark.parametrize("make", [qwen3, gemma2, qwen25, qwen3_vl, gemma3])
def test_states_are_those_of_each_text_alone(make: Callable[[], Any], tmp_path: Path):
    model = make().eval()
    model.save_pretrained(tmp_path)
    for row, found in zip(ROWS, states(tmp_path), strict=True):
        with torch.no_grad():
            expected = model(torch.tensor([row]), output_hidden_states=True).hidden_states
        torch.testing.assert_close(found, torch.cat(expected).transpose(0, 1), rtol=1e-5, atol=1e-5)


def test_a_file_without_a_configuration_is_qwen3_by_its_shapes(tmp_path: Path):
    save(qwen3(), tmp_path / "folder")
    path = tmp_path / "qwen_3_4b.safetensors"
    save_weights(path, load_file(tmp_path / "folder" / "model.safetensors"), {})
    for found, expected in zip(states(path), states(tmp_path / "folder"), strict=True):
        assert torch.equal(found, expected)


def test_another_file_without_a_configuration_is_rejected(tmp_path: Path):
    save(gemma2(), tmp_path / "folder")
    path = tmp_path / "gemma.safetensors"
    save_weights(path, load_file(tmp_path / "folder" / "model.safetensors"), {})
    with pytest.raises(WeightsError, match="beside it"):
        states(path)
