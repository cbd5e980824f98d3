"""Weights in formats that are not supported: GGUF, and low-bit numbers with scales in other tensors.

Detected by the first bytes of a file and the names of its tensors. Without their scales
the numbers are another network, so such files are rejected wherever weights are opened.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

GGUF = ".gguf"
_GGUF_BEGINS = b"GGUF"
_MARKER = "scaled_fp8"
"""A tensor that ComfyUI's scaled float8 files have, with or without a prefix."""
_SCALED = (
    ("4-bit weights of bitsandbytes", (".absmax", ".quant_map", "bitsandbytes__nf4", "bitsandbytes__fp4")),
    ("8-bit weights of bitsandbytes", (".SCB",)),
    ("weights quantized by GPTQ, AWQ or SVDQuant", (".qweight", ".wscales")),
    ("weights quantized by quanto", (".weight._data", ".weight._scale")),
    ("scaled float8 weights", (".scale_weight", ".weight_scale", ".weight_scale_inv", f".{_MARKER}")),
    ("weights quantized by ComfyUI", (".weight_scale_2", ".comfy_quant")),
)
"""Its name, and the suffixes of its tensors."""
_INSTEAD = "Use the bf16 or fp16 .safetensors file of the same model"
_SMALL = {
    "network": ", with lora.base_model_quant_level 8bit or 4bit to save memory",
    "text-encoder": ", with model.t5_to_8bit to save memory",
}
"""Settings that save as much memory, by kind of model."""


def why_unreadable(names: Iterable[str], kind: str = "") -> str | None:
    """The message after the name of a file whose tensors have these `names`; None without a fault.

    Args:
        kind: network, text-encoder ... if known: adds a hint on saving memory.
    """
    ends = {f".{name}" if name == _MARKER else name for name in names}
    for what, marks in _SCALED:
        if any(name.endswith(marks) for name in ends):
            return (
                f"has {what}: the numbers are wrong without the scales beside them, which no "
                f"trainer here reads. {_INSTEAD}{_SMALL.get(kind, '')}."
            )
    return None


def why_gguf(path: Path, kind: str = "") -> str | None:
    """The message after the name of a GGUF file, detected by content; None for other files."""
    try:
        with path.open("rb") as file:
            begins = file.read(len(_GGUF_BEGINS))
    except OSError:
        return None
    if begins != _GGUF_BEGINS and path.suffix != GGUF:
        return None
    return (
        "is a GGUF file, whose weights are quantized to generate images; no trainer here reads "
        f"it. {_INSTEAD}{_SMALL.get(kind, '')}."
    )
