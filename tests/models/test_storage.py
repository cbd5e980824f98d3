"""Numbers that only count with scales beside them are never read as weights."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from flowloom.errors import WeightsError
from flowloom.models.adapters.merge import merge
from flowloom.models.adapters.read import read_adapter
from flowloom.models.autoencoder import load_autoencoder
from flowloom.models.chroma import load_chroma
from flowloom.models.text_encoder import load_text_encoder
from flowloom.models.weights import open_weights, save_weights
from tests.models.quantized_files import write_gguf, write_scaled

CPU = torch.device("cpu")


def as_scaled_float8(path: Path, out: Path, mark: str) -> Path:
    """float8 that fills its range, and a scale for each weight under a name by `mark`."""
    tensors: dict[str, Tensor] = {}
    for name, tensor in open_weights(path).items():
        if tensor.ndim != 2:
            tensors[name] = tensor.clone()
            continue
        scale = tensor.float().abs().max() / 448
        tensors[name] = (tensor.float() / scale).to(torch.float8_e4m3fn)
        tensors[name.removesuffix("weight") + mark] = scale
    save_weights(out, tensors, dict(open_weights(path).metadata))
    return out


@pytest.mark.parametrize("mark", ["weight_scale_2", "weight._scale"])
@pytest.mark.parametrize("key", ["chroma", "t5"])
def test_scales_that_are_not_understood_are_refused_by_name(
    key: str, mark: str, tiny_family, tmp_path: Path
) -> None:
    folder = tiny_family.t5_path
    source = {"chroma": tiny_family.chroma_path, "t5": folder / "model.safetensors"}[key]
    path = as_scaled_float8(Path(source), tmp_path / "scaled.safetensors", mark)
    loads = {
        "chroma": lambda: load_chroma(path, CPU, torch.float32),
        "t5": lambda: load_text_encoder(path, folder, folder, CPU, torch.float32),
    }
    with pytest.raises(WeightsError, match=r"scaled\.safetensors has weights quantized by.*Use the bf16"):
        loads[key]()


def test_an_adapter_is_not_merged_into_numbers_without_scales(tiny_family, tmp_path: Path) -> None:
    """Here no network is built, so no name would be found that does not fit."""
    path = as_scaled_float8(Path(tiny_family.chroma_path), tmp_path / "scaled.safetensors", "weight._scale")
    width = open_weights(tiny_family.chroma_path).shapes["img_in.weight"]
    lora = {"lora_A.weight": torch.ones(1, width[1]), "lora_B.weight": torch.ones(width[0], 1)}
    adapter = tmp_path / "fox.safetensors"
    save_weights(adapter, {f"diffusion_model.img_in.{name}": t for name, t in lora.items()}, {})
    with pytest.raises(WeightsError, match="quantized by quanto"):
        merge(path, adapter, tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


def test_a_merge_into_plain_float8_keeps_the_adapter(tiny_family, tmp_path: Path) -> None:
    base = {n: t.to(torch.float8_e4m3fn) for n, t in open_weights(tiny_family.chroma_path).items()}
    save_weights(tmp_path / "fp8.safetensors", base, {})
    rows, columns = base["img_in.weight"].shape
    down, up = torch.full((1, columns), 1e-2), torch.full((rows, 1), 1e-2)
    adapter = {"diffusion_model.img_in.lora_A.weight": down, "diffusion_model.img_in.lora_B.weight": up}
    save_weights(tmp_path / "fox.safetensors", adapter, {})
    merge(tmp_path / "fp8.safetensors", tmp_path / "fox.safetensors", tmp_path / "out.safetensors")
    merged = open_weights(tmp_path / "out.safetensors")
    assert set(merged.dtypes.values()) == {torch.bfloat16}
    expected = (base["img_in.weight"].float() + 1e-4).bfloat16()
    assert torch.equal(merged["img_in.weight"], expected)
    assert torch.equal(merged["txt_in.weight"], base["txt_in.weight"].bfloat16())


@pytest.mark.parametrize("form", ["comfy", "Q8_0"])
@pytest.mark.parametrize("dtype", [None, torch.float32])
def test_a_merge_into_a_quantized_base_is_written_in_the_compute_dtype(
    form: str, dtype: torch.dtype | None, tiny_family, tmp_path: Path
) -> None:
    tensors = {name: tensor.clone() for name, tensor in open_weights(tiny_family.chroma_path).items()}
    base = tmp_path / "base.safetensors"
    meant = write_gguf(base, tensors, form) if form == "Q8_0" else write_scaled(base, tensors, form)
    layer = "double_blocks.0.img_attn.proj"
    rows, columns = tensors[f"{layer}.weight"].shape
    down, up = torch.full((1, columns), 1e-1), torch.full((rows, 1), 1e-1)
    adapter = {f"diffusion_model.{layer}.lora_A.weight": down, f"diffusion_model.{layer}.lora_B.weight": up}
    save_weights(tmp_path / "fox.safetensors", adapter, {})
    merge(base, tmp_path / "fox.safetensors", tmp_path / "out.safetensors", dtype=dtype)
    merged = open_weights(tmp_path / "out.safetensors")
    wanted = dtype or torch.bfloat16
    assert set(merged.dtypes.values()) == {wanted}
    for name, expected in meant.items():
        if name == f"{layer}.weight":
            expected = expected.float() + 1e-2
        assert torch.allclose(merged[name].float(), expected.to(wanted).float(), rtol=1e-6, atol=1e-7), name


@pytest.mark.parametrize("name", ["x.gguf", "x.safetensors", "x.pth"])
@pytest.mark.parametrize("what", ["chroma", "vae", "adapter"])
def test_damaged_gguf_is_refused_by_name(name: str, what: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(b"GGUF" + bytes(64))
    reads = {
        "chroma": lambda: load_chroma(path, CPU, torch.float32),
        "vae": lambda: load_autoencoder(path, CPU, torch.float32),
        "adapter": lambda: read_adapter(path),
    }
    with pytest.raises(WeightsError, match=f"{name}: not a complete GGUF file.*Download it again"):
        reads[what]()
