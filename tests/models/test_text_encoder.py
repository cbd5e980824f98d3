"""T5 gives the states that transformers gives at full length, trimmed; and its files are checked."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from flowloom.errors import WeightsError
from flowloom.import_warnings import quiet_imports
from flowloom.models.quantized import Float8Linear
from flowloom.models.text_encoder import TextEncoder, load_text_encoder
from flowloom.models.tokenizer import load_tokenizer
from flowloom.models.weights import open_weights, save_weights

with quiet_imports():
    from transformers import T5EncoderModel, T5Tokenizer

CPU = torch.device("cpu")
CAPTIONS = ["a red bar on white, number 1", "", "blue circle", "portrait of an old man in a boat at night"]


def load(folder: Path, t5_path: Path | None = None, **options: Any) -> TextEncoder:
    options = {"dtype": torch.float32} | options
    return load_text_encoder(t5_path or folder, folder / "config.json", folder, CPU, **options)


@pytest.fixture(scope="module")
def reference(tiny_t5: Path) -> Any:
    """Transformers' own encoder and tokenizer: states (T, C) of a caption padded to 512, and its length."""
    with quiet_imports():
        model = T5EncoderModel.from_pretrained(tiny_t5, local_files_only=True).eval()
        tokenizer = T5Tokenizer.from_pretrained(tiny_t5, local_files_only=True)

    @torch.no_grad()
    def states(caption: str, length: int = 512) -> tuple[Tensor, int]:
        inputs = tokenizer(
            [caption], padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        )
        return model(**inputs).last_hidden_state[0], int(inputs.attention_mask.sum())

    return states


@pytest.fixture(scope="module")
def encoder(tiny_t5: Path) -> TextEncoder:
    return load(tiny_t5)


def close(found: Tensor, expected: Tensor) -> bool:
    return found.shape == expected.shape and bool((found - expected).abs().max() < 1e-5)


def test_states_are_those_at_full_length_trimmed_to_one_padding_token(encoder: TextEncoder, reference: Any):
    for caption, found in zip(CAPTIONS, encoder.encode(CAPTIONS, 512), strict=True):
        expected, length = reference(caption)
        assert close(found, expected[: length + 1])
        assert expected.std() > 0.1


def test_a_caption_does_not_see_its_neighbours(encoder: TextEncoder):
    together = encoder.encode(CAPTIONS, 512)
    for caption, states in zip(CAPTIONS, together, strict=True):
        assert close(encoder.encode([caption], 512)[0], states)


def test_the_empty_caption_is_two_tokens(encoder: TextEncoder):
    assert [len(states) for states in encoder.encode(["", "a red bar", ""], 512)][::2] == [2, 2]
    assert encoder.count_tokens([""]) == [1]


@pytest.mark.parametrize("room", [-3, 0, 1])
def test_a_long_caption_is_cut_as_transformers_cuts_it(encoder: TextEncoder, reference: Any, room: int):
    (tokens,) = encoder.count_tokens(CAPTIONS[:1])
    max_length = tokens + room
    (found,) = encoder.encode(CAPTIONS[:1], max_length)
    expected, length = reference(CAPTIONS[0], max_length)
    assert length == min(tokens, max_length)
    assert close(found, expected[: min(length + 1, max_length)])


def test_no_captions_are_no_states(encoder: TextEncoder):
    assert encoder.encode([], 512) == []


def test_dtype_and_gradients_are_those_of_a_frozen_encoder(tiny_t5: Path):
    encoder = load(tiny_t5, dtype=torch.bfloat16)
    (states,) = encoder.encode(["blue circle"], 64)
    assert states.dtype == torch.bfloat16
    assert not states.requires_grad
    assert {weight.requires_grad for weight in encoder.encoder.parameters()} == {False}


def test_every_spelling_of_the_weights_loads_alike(tiny_t5: Path, tmp_path: Path, encoder: TextEncoder):
    plain = dict(open_weights(tiny_t5 / "model.safetensors"))
    decoder = {"decoder.block.0.x": torch.zeros(1), "lm_head.weight": torch.zeros(1)}
    embedding = plain["shared.weight"]
    only_inner = {k: t for k, t in plain.items() if k != "shared.weight"} | {
        "encoder.embed_tokens.weight": embedding
    }
    spellings = {
        "both.safetensors": plain | {"encoder.embed_tokens.weight": embedding.clone()} | decoder,
        "inner.safetensors": only_inner,
        "whole.safetensors": {f"text_encoders.t5xxl.transformer.{k}": t for k, t in plain.items()}
        | {"model.diffusion_model.x": torch.zeros(1)},
    }
    (expected,) = encoder.encode(["blue circle"], 64)
    for name, tensors in spellings.items():
        save_weights(tmp_path / name, tensors, {})
        (found,) = load(tiny_t5, tmp_path / name).encode(["blue circle"], 64)
        assert torch.equal(found, expected), name


def test_shards_load_as_one(tiny_t5: Path, tmp_path: Path, encoder: TextEncoder):
    tensors = list(open_weights(tiny_t5 / "model.safetensors").items())
    files = {"model-1.safetensors": dict(tensors[::2]), "model-2.safetensors": dict(tensors[1::2])}
    for name, part in files.items():
        save_weights(tmp_path / name, part, {})
    index = {"weight_map": {tensor: file for file, part in files.items() for tensor in part}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    (expected,) = encoder.encode(["blue circle"], 64)
    assert torch.equal(load(tiny_t5, tmp_path).encode(["blue circle"], 64)[0], expected)


def test_8_bit_halves_the_linear_layers_and_stays_near(tiny_t5: Path, encoder: TextEncoder):
    small = load(tiny_t5, to_8bit=True)
    linears = [module for module in small.encoder.modules() if isinstance(module, nn.Linear)]
    assert len(linears) == 2 * 7
    assert all(isinstance(layer, Float8Linear) for layer in linears)
    dtypes = {weight.dtype for weight in small.encoder.parameters() if weight.ndim == 2}
    assert dtypes == {torch.float8_e4m3fn, torch.float32}  # the second: the embedding and the positions
    assert sum(
        weight.nbytes for layer in linears for weight in layer.parameters() if weight.ndim == 2
    ) == sum(layer.in_features * layer.out_features for layer in linears)
    found, expected = small.encode(CAPTIONS[:1], 64)[0], encoder.encode(CAPTIONS[:1], 64)[0]
    assert 0 < (found - expected).norm() / expected.norm() < 0.06


def test_an_8_bit_layer_follows_each_row_however_small():
    weight = torch.randn(6, 16) * torch.tensor([1e-6, 1e-3, 1.0, 1e3, 0.0, 1.0])[:, None]
    x = torch.randn(3, 16)
    linear = nn.Linear(16, 6, bias=False)
    linear.weight.data = weight
    error = (Float8Linear(linear)(x) - x @ weight.T).norm(dim=0)
    scale = (x.norm() * weight.norm(dim=1)).clamp(min=1e-12)
    assert (error / scale).max() < 0.04
    assert Float8Linear(linear)(x.bfloat16()).dtype == torch.bfloat16


def test_the_names_and_configuration_of_the_released_encoder_load(tiny_t5: Path, tmp_path: Path):
    """T5 v1.1 XXL as published, but for its widths."""
    wide, inner = 48, 16
    attention = {f"layer.0.SelfAttention.{part}.weight": (inner, inner) for part in "qkvo"}
    dense = {f"layer.1.DenseReluDense.wi_{i}.weight": (wide, inner) for i in (0, 1)}
    norms = {f"layer.{i}.layer_norm.weight": (inner,) for i in (0, 1)}
    block = attention | dense | norms | {"layer.1.DenseReluDense.wo.weight": (inner, wide)}
    shapes = {f"encoder.block.{i}.{name}": shape for i in range(24) for name, shape in block.items()} | {
        "shared.weight": (32128, inner),
        "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight": (32, 4),
        "encoder.final_layer_norm.weight": (inner,),
    }
    assert len(shapes) == 219
    path, config = tmp_path / "t5xxl_fp16.safetensors", tmp_path / "config.json"
    save_weights(path, {name: torch.ones(shape).half() for name, shape in shapes.items()}, {})
    published = {
        "architectures": ["T5ForConditionalGeneration"], "d_ff": wide, "d_kv": 4, "d_model": inner,
        "decoder_start_token_id": 0, "dropout_rate": 0.1, "eos_token_id": 1, "initializer_factor": 1.0,
        "feed_forward_proj": "gated-gelu", "is_encoder_decoder": True, "layer_norm_epsilon": 1e-06,
        "model_type": "t5", "num_decoder_layers": 24, "num_heads": 4, "num_layers": 24,
        "output_past": True, "pad_token_id": 0, "relative_attention_num_buckets": 32,
        "tie_word_embeddings": False, "transformers_version": "4.0.0", "use_cache": True, "vocab_size": 32128,
    }  # fmt: skip
    config.write_text(json.dumps(published))
    encoder = load_text_encoder(path, config, tiny_t5, CPU, torch.bfloat16)
    assert encoder.encode(["blue"], 512)[0].isfinite().all()


@pytest.mark.parametrize(
    "caption",
    ["a red bar", "  two  spaces ", "tab\tand\nnewline", "ＦＵＬＬ width", "é 漢 ☃", "HELLO, you!", ""],
)
def test_both_tokenizer_files_say_what_transformers_says(tiny_t5: Path, tmp_path: Path, caption: str):
    with quiet_imports():
        expected = T5Tokenizer.from_pretrained(tiny_t5, local_files_only=True)
    expected.save_pretrained(tmp_path)
    assert (tmp_path / "tokenizer.json").exists()
    for folder in (tiny_t5, tmp_path):
        tokenize, _ = load_tokenizer(folder)
        assert [*tokenize(caption), 1] == expected(caption).input_ids


def test_any_text_has_tokens_below_the_vocabulary(tiny_t5: Path):
    tokenize, num_pieces = load_tokenizer(tiny_t5)
    for caption in ("</s> <pad> <unk>", "<extra_id_0>", "\ud800 half", "\x00\x01", "\U0001f600" * 50):
        assert all(1 < token < num_pieces for token in tokenize(caption))


def test_a_missing_or_wrong_tokenizer_is_named(tmp_path: Path):
    with pytest.raises(WeightsError, match=r"neither spiece.model nor tokenizer.json"):
        load_tokenizer(tmp_path)
    (tmp_path / "spiece.model").write_bytes(b"nonsense")
    with pytest.raises(WeightsError, match="not a complete sentencepiece model"):
        load_tokenizer(tmp_path)


def test_a_missing_sentencepiece_is_named_with_a_hint(tiny_t5: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(WeightsError, match="pip install sentencepiece"):
        load_tokenizer(tiny_t5)


def test_files_that_do_not_belong_together_are_refused(tiny_t5: Path, tmp_path: Path):
    config = json.loads((tiny_t5 / "config.json").read_text())
    shutil.copytree(tiny_t5, tmp_path, dirs_exist_ok=True)
    for change, message in (
        ({"vocab_size": 50}, "Use the tokenizer that belongs to this T5"),
        ({"num_layers": 3}, "missing"),
        ({"d_ff": 32}, "misshapen"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(WeightsError, match=message):
            load(tmp_path)
    for text in ("{", "[]", "{}"):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(WeightsError, match=r"config.json"):
            load(tmp_path)
