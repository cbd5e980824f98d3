"""Chroma loads from every usual kind of file, and the kind of every other file is named."""

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from flowloom.errors import WeightsError
from flowloom.import_warnings import quiet_imports
from flowloom.models.chroma import load_chroma, read_chroma_params
from flowloom.models.chroma_names import from_diffusers, to_diffusers
from flowloom.models.weights import check_names, open_weights, save_weights
from flowloom.nn.chroma import CHROMA1, Chroma
from flowloom.nn.tiny import TINY

with quiet_imports():
    from diffusers import ChromaTransformer2DModel

# diffusers' Chroma uses a class that diffusers itself deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:`FluxPosEmbed` is deprecated:FutureWarning")
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def state(tiny_chroma_path: Path) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in open_weights(tiny_chroma_path).items()}


@pytest.fixture(scope="module")
def inputs() -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(5)
    ids = torch.zeros(12, 3)
    ids[:, 1:] = torch.cartesian_prod(torch.arange(3), torch.arange(4))
    return {
        "latents": torch.randn(2, 12, TINY.in_channels, generator=draw),
        "noise_level": torch.tensor([0.3, 0.9]),
        "text": torch.randn(2, 7, TINY.context_in_dim, generator=draw),
        "image_ids": ids,
    }


def diffusers_model(state: dict[str, Tensor]) -> ChromaTransformer2DModel:
    model = ChromaTransformer2DModel(
        in_channels=TINY.in_channels,
        num_layers=TINY.depth,
        num_single_layers=TINY.depth_single_blocks,
        attention_head_dim=TINY.hidden_size // TINY.num_heads,
        num_attention_heads=TINY.num_heads,
        joint_attention_dim=TINY.context_in_dim,
        axes_dims_rope=TINY.axes_dim,
        approximator_num_channels=TINY.approximator_in_dim,
        approximator_hidden_dim=TINY.approximator_hidden_size,
        approximator_layers=TINY.approximator_depth,
    )
    model.load_state_dict(to_diffusers(state))
    return model.eval()


@torch.no_grad()
def output(model: Chroma, inputs: dict[str, Tensor]) -> Tensor:
    return model(**inputs)


@pytest.fixture(scope="module")
def expected(state: dict[str, Tensor], inputs: dict[str, Tensor]) -> Tensor:
    model = Chroma(TINY)
    model.load_state_dict(state)
    return output(model, inputs)


def test_diffusers_network_under_its_names_gives_the_same(
    state: dict[str, Tensor], inputs: dict[str, Tensor], expected: Tensor
):
    with torch.no_grad():
        found = diffusers_model(state)(
            hidden_states=inputs["latents"],
            timestep=inputs["noise_level"],
            encoder_hidden_states=inputs["text"],
            img_ids=inputs["image_ids"],
            txt_ids=torch.zeros(7, 3),
        ).sample
    assert expected.std() > 0.1
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()


def test_diffusers_names_lead_back_to_ours(state: dict[str, Tensor]):
    back = from_diffusers(to_diffusers(state))
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in state.items())


def test_the_full_network_has_diffusers_names_for_all_of_it():
    with torch.device("meta"):
        ours, theirs = Chroma(CHROMA1), ChromaTransformer2DModel()
    converted = to_diffusers(ours.state_dict())
    assert {k: t.shape for k, t in converted.items()} == {k: t.shape for k, t in theirs.state_dict().items()}


def as_file(state: dict[str, Tensor], folder: Path) -> Path:
    save_weights(folder / "chroma.safetensors", state, {})
    return folder / "chroma.safetensors"


def as_flow_pth(state: dict[str, Tensor], folder: Path) -> Path:
    path = folder / "2025-01-01_00-00-00.pth"
    torch.save(state | {"__x0__": torch.tensor([]), "mod_index": torch.arange(40)}, path)
    return path


def as_comfy(state: dict[str, Tensor], folder: Path) -> Path:
    others = {"first_stage_model.decoder.x": torch.zeros(2), "text_encoders.t5xxl.x": torch.zeros(2)}
    return as_file({f"model.diffusion_model.{k}": t for k, t in state.items()} | others, folder)


def as_prefixed(state: dict[str, Tensor], folder: Path) -> Path:
    return as_file({f"diffusion_model.{k}": t for k, t in state.items()}, folder)


def as_diffusers_shards(state: dict[str, Tensor], folder: Path) -> Path:
    diffusers_model(state).save_pretrained(folder / "transformer", max_shard_size="1MB")
    assert len(list((folder / "transformer").glob("*.safetensors"))) > 2
    return folder / "transformer"


def as_pipeline(state: dict[str, Tensor], folder: Path) -> Path:
    as_diffusers_shards(state, folder)
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "ChromaPipeline"}))
    return folder


@pytest.mark.parametrize(
    "write", [as_file, as_flow_pth, as_comfy, as_prefixed, as_diffusers_shards, as_pipeline]
)
def test_every_kind_of_checkpoint_is_the_same_network(
    write: Any, state: dict[str, Tensor], inputs: dict[str, Tensor], expected: Tensor, tmp_path: Path
):
    path = write(state, tmp_path)
    model = load_chroma(path, CPU, torch.float32)
    assert torch.equal(output(model, inputs), expected)
    assert read_chroma_params(path) == model.params == TINY


def test_it_arrives_in_the_requested_dtype_ready_to_train(tiny_chroma_path: Path):
    model = load_chroma(tiny_chroma_path, CPU, torch.bfloat16)
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}
    assert not any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))
    assert all(weight.requires_grad for weight in model.parameters())


def write_hollow(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """A safetensors file of bfloat16 zeros, which are a hole in it; the number of parameters."""
    header, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(file.tell() + end)
    return end // 2


def test_the_released_network_is_planned_from_the_header_of_its_17_gigabytes(tmp_path: Path):
    with torch.device("meta"):
        model = Chroma(CHROMA1)
    shapes = {name: tuple(weight.shape) for name, weight in model.state_dict().items()}
    path = tmp_path / "chroma.safetensors"
    assert len(shapes) == 643
    assert write_hollow(path, shapes) == 8_899_983_424
    assert read_chroma_params(path) == CHROMA1
    check_names(model, open_weights(path))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("diffusion_model.double_blocks.0.img_attn.qkv.lora_A.weight", "an adapter. Name the base network"),
        ("nerf_blocks.0.param_generator.weight", "Radiance"),
        ("vector_in.in_layer.weight", "FLUX"),
        ("img_in.scale_weight", "has scaled float8 weights.*Use the bf16 or fp16"),
        ("encoder.conv_in.weight", "not a Chroma network: it has no img_in.weight"),
    ],
)
def test_another_kind_of_file_is_named_for_what_it_is(tmp_path: Path, name: str, message: str):
    path = as_file({name: torch.zeros(2, 2)}, tmp_path)
    with pytest.raises(WeightsError, match=f"chroma.safetensors.*{message}"):
        read_chroma_params(path)


def test_a_checkpoint_with_gaps_lists_them(state: dict[str, Tensor], tmp_path: Path):
    broken = dict(state)
    del broken["single_blocks.1.linear2.bias"]
    broken["img_in.extra"] = torch.zeros(1)
    with pytest.raises(WeightsError) as caught:
        load_chroma(as_file(broken, tmp_path), CPU, torch.float32)
    assert "1 missing (single_blocks.1.linear2.bias)" in str(caught.value)
    assert "1 unexpected (img_in.extra)" in str(caught.value)


def test_a_diffusers_checkpoint_without_its_v_lists_the_fused_layer(state: dict[str, Tensor], tmp_path: Path):
    theirs = to_diffusers(state)
    del theirs["transformer_blocks.1.attn.to_v.weight"]
    with pytest.raises(WeightsError, match=r"1 missing \(double_blocks.1.img_attn.qkv.weight\)"):
        load_chroma(as_file(theirs, tmp_path), CPU, torch.float32)


def test_params_are_those_of_the_network_that_was_saved(tmp_path: Path):
    params = dataclasses.replace(TINY, depth=1, depth_single_blocks=3, qkv_bias=False, mlp_ratio=2.0)
    torch.manual_seed(0)
    path = as_file(Chroma(params).state_dict(), tmp_path)
    assert load_chroma(path, CPU, torch.float32).params == params
