"""Models are recognized by their headers, and damage is named before they are loaded."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from typing import Any

import pytest
import torch

from flowloom.errors import WeightsError
from flowloom.import_warnings import quiet_imports
from flowloom.model_library.scan import find, look, name_parts
from flowloom.models.header import MAX_HEADER, read_header
from tests.model_library.conftest import CHROMA, KNOWN, T5_XXL, VAE_4, write_model

with quiet_imports():
    from transformers import (
        Gemma2Config,
        Gemma2Model,
        MistralConfig,
        MistralModel,
        Qwen2Config,
        Qwen2Model,
        Qwen3Config,
        Qwen3Model,
    )


@pytest.mark.parametrize("name", KNOWN)
def test_released_models_are_recognized(name: str, tmp_path: Path):
    shapes, kind, architecture = KNOWN[name]
    found = look(write_model(tmp_path / "x.safetensors", shapes))
    assert (found.kind, found.architecture, found.precision) == (kind, architecture, "BF16")


def test_a_checkpoint_names_what_is_in_it(tmp_path: Path):
    found = look(write_model(tmp_path / "x.safetensors", KNOWN["sdxl checkpoint"][0], dtype="F16"))
    assert found.parts == ("sdxl", "vae-sd", "clip-l")
    assert found.precision == "F16"


def test_the_scaling_in_diffusers_config_distinguishes_vaes(tmp_path: Path):
    path = write_model(tmp_path / "vae" / "diffusion_pytorch_model.safetensors", VAE_4)
    assert look(path).architecture == "vae-sd"
    (tmp_path / "vae" / "config.json").write_text('{"scaling_factor": 0.13025}')
    assert look(path).architecture == "vae-sdxl"


def test_a_file_that_fits_no_kind_is_unknown_and_no_problem(tmp_path: Path):
    found = look(write_model(tmp_path / "x.safetensors", {"something.weight": (3, 3)}))
    assert (found.kind, found.architecture, found.problem) == ("unknown", None, None)


@pytest.mark.parametrize(
    "prefix", ["", "model.", "language_model.", "model.language_model.", "language_model.model."]
)
def test_language_models_are_recognized_alone_and_with_vision(prefix: str, tmp_path: Path):
    shapes = {f"{prefix}layers.0.self_attn.q_proj.weight": (8, 4), "visual.patch_embed.weight": (2, 2)}
    found = look(write_model(tmp_path / "x.safetensors", shapes))
    assert (found.kind, found.architecture, found.width) == ("text-encoder", "language-model", 4)


def test_language_models_are_distinguished_by_transformers_names(tmp_path: Path):
    """An encoder of another kind with the same width, such as Qwen3-VL 4B for Qwen3 4B, gives other texts."""
    sizes: dict[str, Any] = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    sizes |= {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 4, "vocab_size": 8}
    with torch.device("meta"):
        networks = {
            "qwen3": Qwen3Model(Qwen3Config(**sizes)),
            "gemma2": Gemma2Model(Gemma2Config(**sizes)),
            "qwen2.5": Qwen2Model(Qwen2Config(**sizes)),
            "language-model": MistralModel(MistralConfig(**sizes)),
        }
    for kind, network in networks.items():
        shapes = {name: tuple(weight.shape) for name, weight in network.state_dict().items()}
        path = write_model(tmp_path / f"{kind}.safetensors", shapes)
        assert look(path).architecture == kind
    shapes = {f"model.language_model.{name}": (8, 8) for name in networks["qwen3"].state_dict()}
    path = write_model(tmp_path / "vision.safetensors", shapes | {"model.visual.patch_embed.proj.bias": (2,)})
    assert look(path).architecture == "qwen3-vl"


STORED = {
    "scale of no weight": ("single_blocks.77.linear1.scale_weight", "scaled float8 weights"),
    "marker": ("scaled_fp8", "scaled float8 weights"),
    "ComfyUI": ("single_blocks.0.linear1.comfy_quant", "weights quantized by ComfyUI"),
    "nf4": ("single_blocks.0.linear1.weight.quant_state.bitsandbytes__nf4", "4-bit weights of bitsandbytes"),
    "nf4 maxima": ("single_blocks.0.linear1.weight.absmax", "4-bit weights of bitsandbytes"),
    "int8": ("single_blocks.77.linear1.SCB", "8-bit weights of bitsandbytes"),
    "SVDQuant": ("single_blocks.0.linear1.qweight", "SVDQuant"),
    "quanto": ("single_blocks.0.linear1.weight._data", "quanto"),
}


@pytest.mark.parametrize("kind", STORED)
@pytest.mark.parametrize("model", ["chroma", "t5"])
def test_weights_that_need_scales_say_what_they_are_and_what_to_use(kind: str, model: str, tmp_path: Path):
    name, what = STORED[kind]
    shapes = (CHROMA if model == "chroma" else T5_XXL) | {name: (1,)}
    found = look(write_model(tmp_path / "small.safetensors", shapes, dtype="F8_E4M3"))
    assert found.kind == ("network" if model == "chroma" else "text-encoder")
    assert found.problem
    assert found.problem.startswith("small.safetensors has ")
    assert what in found.problem
    hint = "lora.base_model_quant_level" if model == "chroma" else "model.t5_to_8bit"
    assert "Use the bf16 or fp16 .safetensors file of the same model" in found.problem
    assert hint in found.problem


def test_the_marker_counts_behind_a_prefix(tmp_path: Path):
    shapes = {
        f"model.diffusion_model.{name}": shape for name, shape in {**CHROMA, "scaled_fp8": (2,)}.items()
    }
    found = look(write_model(tmp_path / "x.safetensors", shapes, dtype="F8_E4M3"))
    assert found.architecture == "chroma"
    assert found.problem
    assert "scaled float8" in found.problem


@pytest.mark.parametrize("name", ["x.gguf", "x.safetensors", "x.bin"])
def test_gguf_is_recognized_under_any_name(name: str, tmp_path: Path):
    (tmp_path / name).write_bytes(b"GGUF" + bytes(100))
    problem = look(tmp_path / name).problem
    assert problem
    assert f"{name}: not a complete GGUF file" in problem


def test_a_pipe_is_not_waited_for(tmp_path: Path):
    os.mkfifo(tmp_path / "x.safetensors")
    assert find([tmp_path])[0].problem == f"{tmp_path / 'x.safetensors'} is not a regular file."


LORA = {"double_blocks.0.img_attn.qkv": (3072, 9216), "single_blocks.0.linear1": (3072, 21504)}


def lora(prefix: str, down: str, up: str, separator: str = ".", rank: int = 16) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for layer, (inside, outside) in LORA.items():
        name = prefix + layer.replace(".", separator)
        shapes |= {f"{name}.{down}.weight": (rank, inside), f"{name}.{up}.weight": (outside, rank)}
    return shapes


@pytest.mark.parametrize(
    ("shapes", "naming"),
    [
        (lora("diffusion_model.", "lora_A", "lora_B"), "comfy"),
        (lora("lora_unet_", "lora_down", "lora_up", "_"), "kohya"),
        (lora("transformer.", "lora_A", "lora_B"), "diffusers"),
        (lora("base_model.model.", "lora_A", "lora_B"), "peft"),
    ],
    ids=["comfy", "kohya", "diffusers", "peft"],
)
def test_the_names_rank_and_layers_of_a_lora_are_read(shapes: dict[str, Any], naming: str, tmp_path: Path):
    found = look(write_model(tmp_path / "x.safetensors", shapes))
    assert found.kind == "lora"
    assert found.adapter
    facts = found.adapter
    assert (facts.kind, facts.naming, facts.rank, facts.alpha) == ("lora", naming, 16, None)
    assert (facts.num_layers, facts.base, facts.base_evidence) == (
        2,
        "radiance-or-flux2-or-flux-or-chroma",
        "tensors",
    )


@pytest.mark.parametrize(
    ("width", "base"), [(3072, "flux2-or-flux-or-chroma"), (256, "flux2-or-flux-or-chroma"), (1536, "sd3")]
)
@pytest.mark.parametrize(
    "prefix", ["transformer.transformer_blocks.0.attn.", "lora_transformer_transformer_blocks_0_attn_"]
)
def test_double_blocks_by_diffusers_names_are_not_taken_for_sd_3(
    width: int, base: str, prefix: str, tmp_path: Path
):
    name = f"{prefix}add_k_proj"
    shapes = {f"{name}.lora_down.weight": (4, width), f"{name}.lora_up.weight": (width, 4)}
    adapter = look(write_model(tmp_path / "x.safetensors", shapes)).adapter
    assert adapter
    assert adapter.base == base


def test_tensors_of_a_text_encoder_do_not_decide_the_naming(tmp_path: Path):
    shapes = {"bundle_emb.<fox>.t5": (1, 4096)} | lora("lora_transformer_", "lora_down", "lora_up", "_")
    adapter = look(write_model(tmp_path / "x.safetensors", shapes)).adapter
    assert adapter
    assert (adapter.naming, adapter.has_text_encoder) == ("kohya", True)


@pytest.mark.parametrize(
    ("dtype", "value", "alpha"),
    [("F32", struct.pack("<f", 8), 8.0), ("BF16", b"\x00\x41", 8.0), ("F16", struct.pack("<e", 0.5), 0.5)],
)
def test_alpha_is_read_from_its_tensor(dtype: str, value: bytes, alpha: float, tmp_path: Path):
    shapes = lora("lora_unet_", "lora_down", "lora_up", "_")
    name = "lora_unet_single_blocks_0_linear1.alpha"
    path = write_model(tmp_path / "x.safetensors", shapes | {name: ()}, dtype=dtype, values={name: value})
    found = look(path).adapter
    assert found
    assert found.alpha == alpha
    assert found.num_layers == 2


@pytest.mark.parametrize(
    ("name", "extra", "metadata", "base"),
    [
        (
            "x",
            {"lora_unet_double_blocks_0_img_mod_lin.lora_down.weight": (16, 3072)},
            {},
            ("flux", "tensors"),
        ),
        (
            "x",
            {"lora_unet_distilled_guidance_layer_in_proj.lora_down.weight": (16, 64)},
            {},
            ("chroma", "tensors"),
        ),
        ("x", {}, {"modelspec.architecture": "chroma/lora"}, ("chroma", "metadata")),
        ("x", {}, {"ss_base_model_version": "flux1"}, ("flux", "metadata")),
        ("my-Chroma-fox", {}, {}, ("chroma", "name")),
    ],
)
def test_the_base_of_a_lora_is_reported_with_its_evidence(
    name: str, extra: dict[str, Any], metadata: dict[str, str], base: tuple[str, str], tmp_path: Path
):
    shapes = lora("lora_unet_", "lora_down", "lora_up", "_") | extra
    found = look(write_model(tmp_path / f"{name}.safetensors", shapes, metadata)).adapter
    assert found
    assert (found.base, found.base_evidence) == base


@pytest.mark.parametrize(
    ("width", "base"), [(768, "sd15"), (1024, "sd2"), (2048, "sdxl")], ids=["sd15", "sd2", "sdxl"]
)
def test_the_base_of_a_unet_lora_is_recognized_by_its_text(width: int, base: str, tmp_path: Path):
    layer = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"
    shapes = {f"{layer}.lora_down.weight": (8, width), f"{layer}.lora_up.weight": (640, 8)}
    found = look(write_model(tmp_path / "x.safetensors", shapes))
    assert found.adapter
    assert found.adapter.base == found.architecture == base


def test_other_adapters_are_recognized(tmp_path: Path):
    layer = "lora_unet_single_blocks_0_linear1"
    kinds = {
        "lokr": {f"{layer}.lokr_w1": (4, 4), f"{layer}.lokr_w2_b": (8, 768)},
        "loha": {f"{layer}.hada_w1_a": (64, 4), f"{layer}.hada_w1_b": (4, 64)},
        "dora": {f"{layer}.lora_down.weight": (4, 64), f"{layer}.dora_scale": (64, 1)},
    }
    for kind, shapes in kinds.items():
        found = look(write_model(tmp_path / f"{kind}.safetensors", shapes)).adapter
        assert found
        assert found.kind == kind


@pytest.mark.parametrize(
    ("name", "variant", "version"),
    [
        ("Chroma1-HD", "HD", None),
        ("Chroma1-HD-Flash", "HD Flash", None),
        ("Chroma1-Radiance-v0.4", "Radiance", "0.4"),
        ("chroma-unlocked-v48-detail-calibrated", "detail-calibrated", "48"),
        ("flux1-dev", "dev", None),
        ("sd_xl_base_1.0", "Base", None),
    ],
)
def test_names_state_variant_and_version(name: str, variant: str | None, version: str | None):
    assert name_parts(Path(f"{name}.safetensors")) == (variant, version)


def header(content: Any, data: bytes = b"") -> bytes:
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    return len(text).to_bytes(8, "little") + text + data


TENSOR = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
DAMAGED = {
    "empty": (b"", "truncated"),
    "seven bytes": (b"1234567", "truncated"),
    "length beyond the end": ((2**40).to_bytes(8, "little") + b"{}", "truncated"),
    "all ones": (b"\xff" * 64, "truncated"),
    "no JSON": (header(b"nonsense"), "not JSON"),
    "not an object": (header([1, 2]), "names no tensors"),
    "nested without end": (header(b"[" * 200_000), "not JSON"),
    "an endless number": (header(b'{"a": ' + b"9" * 10_000 + b"}"), "not JSON"),
    "no UTF-8": (header(b'{"\xff\xfe": {}}'), "not JSON"),
    "tensor is a number": (header({"a": 3}), "impossible entry"),
    "negative shape": (header({"a": TENSOR | {"shape": [-2]}}, bytes(8)), "impossible entry"),
    "shape of texts": (header({"a": TENSOR | {"shape": ["2"]}}, bytes(8)), "impossible entry"),
    "backwards": (header({"a": TENSOR | {"data_offsets": [8, 0]}}, bytes(8)), "impossible entry"),
    "shape and bytes disagree": (header({"a": TENSOR | {"shape": [3]}}, bytes(8)), "impossible entry"),
    "true for a number": (header({"a": TENSOR | {"shape": [True, 2]}}, bytes(8)), "impossible entry"),
    "truncated data": (header({"a": TENSOR}, bytes(4)), "truncated: "),
    "a pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "git lfs pull"),
    "a web page": (b"<!DOCTYPE html><html><body>Not found</body></html>", "truncated"),
}


@pytest.mark.parametrize("fault", DAMAGED)
def test_a_damaged_file_is_a_named_problem(fault: str, tmp_path: Path):
    content, word = DAMAGED[fault]
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=word):
        read_header(path)
    found = look(path)
    assert found.kind == "damaged"
    assert found.problem
    assert word in found.problem


def test_a_header_that_claims_too_much_is_not_read(tmp_path: Path):
    path = tmp_path / "x.safetensors"
    with path.open("wb") as file:
        file.write((MAX_HEADER + 1).to_bytes(8, "little"))
        file.truncate(MAX_HEADER + 100)
    assert "more than any model's" in str(look(path).problem)


def test_a_file_is_read_again_when_it_changes(tmp_path: Path):
    path = write_model(tmp_path / "x.safetensors", CHROMA)
    assert look(path).architecture == "chroma"
    write_model(path, VAE_4)
    assert look(path).architecture == "vae-sd"


def test_shards_are_one_model(tmp_path: Path):
    names = list(T5_XXL)
    for i, part in enumerate((names[:1], names[1:])):
        write_model(tmp_path / f"t5/model-0000{i}.safetensors", {name: T5_XXL[name] for name in part})
    places = {name: f"model-0000{int(name != names[0])}.safetensors" for name in names}
    (tmp_path / "t5/model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    (found,) = find([tmp_path])
    assert (found.path, found.architecture, found.width) == (tmp_path / "t5", "t5-xxl", 4096)
    (tmp_path / "t5/model-00001.safetensors").unlink()
    (found,) = find([tmp_path])
    assert "1 of 2 shards are missing" in str(found.problem)


def test_an_index_that_leads_elsewhere_is_damaged(tmp_path: Path):
    write_model(tmp_path / "secret.safetensors", CHROMA)
    index = tmp_path / "t5/model.safetensors.index.json"
    index.parent.mkdir()
    index.write_text('{"weight_map": {"a": "../secret.safetensors"}}')
    assert look(index).kind == "damaged"


def test_a_diffusers_folder_and_its_parts_are_listed(tmp_path: Path):
    folder = tmp_path / "Chroma1-HD"
    write_model(folder / "transformer/diffusion_pytorch_model.safetensors", KNOWN["chroma, diffusers"][0])
    write_model(folder / "vae/diffusion_pytorch_model.safetensors", KNOWN["vae, 16"][0])
    (folder / "model_index.json").write_text(
        '{"_class_name": "ChromaPipeline", "transformer": ["diffusers", "x"], "vae": ["diffusers", "y"]}'
    )
    found = {model.path.relative_to(tmp_path).as_posix(): model for model in find([tmp_path])}
    pipeline = found["Chroma1-HD"]
    assert (pipeline.kind, pipeline.family, pipeline.parts) == ("pipeline", "Chroma", ("transformer", "vae"))
    network = found["Chroma1-HD/transformer/diffusion_pytorch_model.safetensors"]
    assert (network.architecture, network.variant) == ("chroma", "HD")


def test_pickles_are_listed_and_never_opened(tmp_path: Path):
    for name in ("a.pt", "b.pth", "c.ckpt", "d.bin"):
        path = tmp_path / name
        path.write_bytes(b"cposix\nsystem\n(S'touch pwned'\ntR.")
        path.chmod(0)  # to open it would fail
    assert [model.kind for model in find([tmp_path])] == ["pickle"] * 4


def test_hidden_folders_and_dangling_links_are_passed_over(tmp_path: Path):
    write_model(tmp_path / ".trash/x.safetensors", CHROMA)
    (tmp_path / "gone.safetensors").symlink_to(tmp_path / "nowhere")
    assert find([tmp_path]) == []
