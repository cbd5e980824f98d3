"""Weights files in the forms that others write: by gguf's and bitsandbytes' code, with ComfyUI's names."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

Tensors = Mapping[str, Tensor]
Written = dict[str, Tensor]
"""The float32 numbers that a file means, by the code that wrote it."""
MIN_ROWS = 32


def is_layer(name: str, tensor: Tensor) -> bool:
    """True for a linear layer's weight inside a block, as converters choose them."""
    return tensor.ndim == 2 and "block" in name and min(tensor.shape) >= MIN_ROWS


def write_gguf(path: Path, tensors: Tensors, kind: str, architecture: str = "flux") -> Written:
    """As ComfyUI-GGUF's converter: layers in blocks, all others as float32, the last bias as bfloat16."""
    writer = gguf.GGUFWriter(str(path), architecture)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_array("tokenizer.ggml.tokens", ["a", "b", "ü"])
    meant: Written = {}
    for name, tensor in tensors.items():
        wanted = kind if is_layer(name, tensor) else "BF16" if name.endswith("layer.linear.bias") else "F32"
        quant = gguf.GGMLQuantizationType[wanted]
        data = tensor.float().numpy()
        if is_layer(name, tensor) and kind in FLATTENED:
            writer.add_array(f"comfy.gguf.orig_shape.{name}", list(data.shape))
            data = data.reshape(-1, 256)
        blocks = quantize(data, quant)
        writer.add_tensor(name, blocks, raw_dtype=quant)
        meant[name] = torch.from_numpy(gguf.quants.dequantize(blocks, quant).reshape(tensor.shape).copy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return meant


FLATTENED = {"Q4_K", "Q5_K", "Q6_K"}


def quantize(data: np.ndarray, kind: gguf.GGMLQuantizationType) -> np.ndarray:
    """Blocks by gguf's quantizer; its package only reads K-quants, so these get random codes."""
    try:
        return gguf.quants.quantize(data, kind)
    except NotImplementedError:
        block, width = gguf.GGML_QUANT_SIZES[kind]
        draw = np.random.default_rng(data.size)
        blocks = draw.integers(0, 256, (data.size // block, width), dtype=np.uint8)
        # Scales as small as weights': two float16 at the start (Q4_K, Q5_K), or one at the end (Q6_K).
        scales = draw.uniform(1e-5, 1e-4, (len(blocks), 2)).astype(np.float16).view(np.uint8)
        blocks[:, :4] = scales
        blocks[:, -2:] = scales[:, :2]
        return blocks.reshape(*data.shape[:-1], -1)


def write_scaled(path: Path, tensors: Tensors, style: str) -> Written:
    """float8 or int8 that fills its range, with the scales' names and shapes of ComfyUI and others."""
    found: dict[str, Tensor] = {}
    meant: Written = {}
    metadata = {"format": "pt"}
    if style == "comfy":
        found["scaled_fp8"] = torch.empty(0, dtype=torch.float8_e4m3fn)
    for name, tensor in tensors.items():
        if not is_layer(name, tensor):
            found[name] = meant[name] = tensor.clone()
            continue
        stem = name.removesuffix("weight")
        codes, scale = _codes(tensor, style)
        found[name], meant[name] = codes, codes.float() * _spread(scale, tensor.shape)
        if style == "comfy":
            found |= {f"{stem}scale_weight": scale, f"{stem}scale_input": torch.ones(())}
        elif style == "blocks":
            found[f"{stem}weight_scale_inv"] = scale
        else:
            found[f"{stem}weight_scale"] = scale
        if style == "comfy_quant":
            layout = {"format": "float8_e4m3fn", "full_precision_matrix_mult": True}
            found[f"{stem}comfy_quant"] = torch.tensor(list(json.dumps(layout).encode()), dtype=torch.uint8)
            found[f"{stem}input_scale"] = torch.ones(())
    save_file({name: tensor.contiguous() for name, tensor in found.items()}, path, metadata)
    return meant


SCALED = ("comfy", "comfy_quant", "rows", "blocks", "int8")


def _codes(tensor: Tensor, style: str) -> tuple[Tensor, Tensor]:
    if style == "blocks":
        rows, columns = (-(-size // 128) for size in tensor.shape)
        scale = torch.rand(rows, columns, generator=torch.Generator().manual_seed(tensor.numel())) + 0.5
        return (tensor / _spread(scale, tensor.shape)).to(torch.float8_e4m3fn), scale
    if style == "int8":
        scale = tensor.abs().amax(1, keepdim=True) / 127
        return (tensor / scale).round().to(torch.int8), scale
    scale = (tensor.abs().amax(1, keepdim=True) if style == "rows" else tensor.abs().max()) / 448
    return (tensor / scale).to(torch.float8_e4m3fn), scale


def _spread(scale: Tensor, shape: torch.Size) -> Tensor:
    if scale.ndim == 2 and scale.shape[1] > 1:
        return scale.repeat_interleave(128, 0)[: shape[0]].repeat_interleave(128, 1)[:, : shape[1]]
    return scale


def write_bitsandbytes(path: Path, tensors: Tensors, kind: str, *, is_nested: bool = True) -> Written:
    """bitsandbytes' own state: nf4, fp4 or int8."""
    from bitsandbytes import functional

    found: dict[str, Tensor] = {}
    meant: Written = {}
    for name, tensor in tensors.items():
        if not is_layer(name, tensor):
            found[name] = meant[name] = tensor.clone()
        elif kind == "int8":
            codes, scales, _ = functional.int8_vectorwise_quant(tensor.half())
            found |= {name: codes, f"{name.removesuffix('weight')}SCB": scales}
            meant[name] = functional.int8_vectorwise_dequant(codes, scales)
        else:
            packed, state = functional.quantize_4bit(
                tensor.float(), quant_type=kind, compress_statistics=is_nested
            )
            found |= {name: packed} | {
                f"{name}.{key}": part for key, part in state.as_dict(packed=True).items()
            }
            meant[name] = functional.dequantize_4bit(packed, state)
    save_file({name: tensor.contiguous().clone() for name, tensor in found.items()}, path)
    return meant
