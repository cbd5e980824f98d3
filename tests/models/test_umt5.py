"""UMT5 gives transformers' states from every spelling of its files; padding is left out."""

from pathlib import Path
from typing import Any

import pytest
import torch

from flowloom.import_warnings import quiet_imports
from flowloom.models.recognize import recognize
from flowloom.models.text_encoder import RealTokensOnly, load_text_encoder
from flowloom.models.weights import save_weights
from tests.conftest import write_tokenizer

with quiet_imports():
    from transformers import T5Tokenizer, UMT5Config, UMT5EncoderModel

CPU = torch.device("cpu")
CAPTIONS = ["a red bar on white, number 1", "", "blue circle"]
WANS = {
    "encoder.embed_tokens.weight": "token_embedding.weight",
    "encoder.final_layer_norm.weight": "norm.weight",
    "layer.0.SelfAttention.relative_attention_bias": "pos_embedding.embedding",
    "layer.0.SelfAttention": "attn",
    "layer.1.DenseReluDense.wi_0": "ffn.gate.0",
    "layer.1.DenseReluDense.wi_1": "ffn.fc1",
    "layer.1.DenseReluDense.wo": "ffn.fc2",
    "layer.0.layer_norm": "norm1",
    "layer.1.layer_norm": "norm2",
    "encoder.block.": "blocks.",
}
"""transformers' names and those of models_t5_umt5-xxl-enc-bf16.pth."""


@pytest.mark.parametrize("spelling", ["folder", "ComfyUI's file", "Wan's file"])
def test_states_are_transformers(tmp_path: Path, spelling: str):
    vocabulary = write_tokenizer(tmp_path / "spiece.model")
    with torch.random.fork_rng():
        torch.manual_seed(2)
        sizes: Any = {"vocab_size": vocabulary, "d_model": 32, "d_kv": 8, "d_ff": 37, "num_heads": 4}
        model = UMT5EncoderModel(UMT5Config(**sizes, num_layers=2)).eval()
    model.save_pretrained(tmp_path)
    path, state = tmp_path, dict(model.state_dict())
    if spelling != "folder":
        path = tmp_path / "umt5.safetensors"
        state |= {"spiece_model": torch.zeros(3, dtype=torch.uint8)}
        del state["encoder.embed_tokens.weight"]
    if spelling == "Wan's file":
        state = {name: tensor for name, tensor in model.state_dict().items() if name != "shared.weight"}
        for theirs, wans in WANS.items():
            state = {name.replace(theirs, wans): tensor for name, tensor in state.items()}
    if path != tmp_path:
        save_weights(path, {name: tensor.clone() for name, tensor in state.items()}, {})
    encoder = load_text_encoder(path, tmp_path, tmp_path, CPU, torch.float32)
    tokenizer: Any = T5Tokenizer.from_pretrained(tmp_path, local_files_only=True, extra_ids=0)
    inputs = tokenizer(CAPTIONS, padding="max_length", max_length=24, truncation=True, return_tensors="pt")
    with torch.no_grad():
        expected = model(inputs.input_ids, inputs.attention_mask).last_hidden_state
    for ours, theirs, mask in zip(
        RealTokensOnly(encoder).encode(CAPTIONS, 24), expected, inputs.attention_mask, strict=True
    ):
        torch.testing.assert_close(ours["states"], theirs[: int(mask.sum())], rtol=0, atol=1e-5)
    assert len(RealTokensOnly(encoder).encode(CAPTIONS, 3)[0]["states"]) == 3
    rounded = load_text_encoder(path, tmp_path, tmp_path, CPU, torch.float32, to_8bit=True)
    difference = rounded.encode(CAPTIONS, 24)[0] - encoder.encode(CAPTIONS, 24)[0]
    assert 0 < difference.abs().max() < 0.5


def test_it_is_recognized_by_its_vocabulary():
    names = {"encoder.block.0.layer.0.SelfAttention.q.weight": (4096, 4096), "shared.weight": (256384, 4096)}
    assert [found.architecture for found in recognize(names)] == ["umt5"]
    wans = {"blocks.0.attn.q.weight": (4096, 4096), "token_embedding.weight": (256384, 4096)}
    assert [found.architecture for found in recognize(wans)] == ["umt5"]
