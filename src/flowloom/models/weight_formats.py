"""Weights whose numbers need scales in other tensors: those that are read, and those that are not. No torch.

Read: float8 and int8 with scales (ComfyUI, torchao, compressed-tensors), bitsandbytes' 4 and 8 bits. Without
the scales the numbers are another network, so all other formats are rejected wherever weights are opened.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, NamedTuple

from flowloom.files import parsed
from flowloom.json_types import is_array, is_object

Role = Literal["scale", "layout", "SCB", "absmax", "map", "nested absmax", "nested map", "state", "unused"]
Parts = dict[Role, str]
"""The tensors beside a quantized weight, by role."""

_MARKER = "scaled_fp8"
"""A tensor that ComfyUI's scaled float8 files have, with or without a prefix."""
_STATES = (".weight.quant_state.bitsandbytes__nf4", ".weight.quant_state.bitsandbytes__fp4")
_ROLES: tuple[tuple[str, Role], ...] = (
    (".scale_weight", "scale"),
    (".weight_scale", "scale"),
    (".weight_scale_inv", "scale"),
    (".comfy_quant", "layout"),
    (".scale_input", "unused"),
    (".input_scale", "unused"),
    (".SCB", "SCB"),
    (".weight_format", "unused"),
    (".weight.absmax", "absmax"),
    (".weight.quant_map", "map"),
    (".weight.nested_absmax", "nested absmax"),
    (".weight.nested_quant_map", "nested map"),
    *((state, "state") for state in _STATES),
)
_TITLES: dict[Role, str] = {
    "absmax": "4-bit weights of bitsandbytes",
    "SCB": "8-bit weights of bitsandbytes",
}
_LAYOUTS = {"float8_e4m3fn", "float8_e5m2", "int8_tensorwise"}
"""ComfyUI's formats that are a weight times its scale."""
_LAYOUT_KEYS = {"format", "full_precision_matrix_mult", "convrot_groupsize"}
"""Keys of ComfyUI's description of a weight that do not change its numbers."""
_LAYOUTS_IN_METADATA = "_quantization_metadata"
_FLOATS = {"F64", "F32", "F16", "BF16"}
_SCALED = {
    "F8_E4M3": "scaled float8 weights",
    "F8_E5M2": "scaled float8 weights",
    "I8": "scaled int8 weights",
}

_UNREADABLE = (
    ("weights quantized by GPTQ, AWQ or SVDQuant", (".qweight", ".wscales")),
    ("weights quantized by quanto", (".weight._data", ".weight._scale")),
    ("weights quantized by ComfyUI in a format that is not read here", (".weight_scale_2", ".comfy_quant")),
    ("4-bit weights of bitsandbytes, not all of them", (".absmax", ".quant_map", *_STATES)),
    ("8-bit weights of bitsandbytes, not all of them", (".SCB",)),
    (
        "scaled float8 weights in a layout that is not read here",
        (".scale_weight", ".weight_scale", ".weight_scale_inv", f".{_MARKER}"),
    ),
)
"""Its name, and the suffixes of its tensors; they count where nothing above explains them."""
INSTEAD = "Use the bf16 or fp16 .safetensors file of the same model"
_SMALL = {
    "network": ", with lora.base_model_quant_level 8bit or 4bit to save memory",
    "text-encoder": ", with model.t5_to_8bit to save memory",
}
"""Settings that save as much memory, by kind of model."""


def is_description(name: str) -> bool:
    """True for a small tensor that holds JSON about a weight."""
    return name.endswith((".comfy_quant", *_STATES))


def quantized_weights(
    dtypes: Mapping[str, str], describe: Callable[[str], bytes], metadata: Mapping[str, str]
) -> dict[str, Parts]:
    """The quantized weights that can be read, each with the tensors beside it.

    Args:
        dtypes: number format by name, as safetensors spells it.
        describe: the bytes of a tensor for which `is_description` is true.
    """
    if not _are_known(metadata):
        return {}
    found: dict[str, Parts] = {}
    for name in dtypes:
        for suffix, role in _ROLES:
            weight = f"{name.removesuffix(suffix)}.weight"
            if name.endswith(suffix) and weight in dtypes:
                found.setdefault(weight, {})[role] = name
                break
    return {weight: parts for weight, parts in found.items() if _is_complete(weight, parts, dtypes, describe)}


def _is_complete(
    weight: str, parts: Parts, dtypes: Mapping[str, str], describe: Callable[[str], bytes]
) -> bool:
    roles = parts.keys() - {"unused"}
    if "state" in roles:
        nested = {"nested absmax", "nested map"}
        return roles - nested == {"state", "absmax", "map"} and roles & nested in (set(), nested)
    if roles == {"SCB"}:
        return dtypes[weight] == "I8"
    if "layout" in roles and not _is_known(described(describe(parts["layout"]))):
        return False
    if roles - {"layout"} != {"scale"} or dtypes[parts["scale"]] not in _FLOATS:
        return False
    return dtypes[weight] in _SCALED or dtypes[weight] in _FLOATS


def described(content: bytes) -> Any:
    """The JSON in a description; None if it is damaged."""
    try:
        return parsed(content)
    except ValueError:
        return None


class Packed(NamedTuple):
    """The layout of a 4-bit weight."""

    kind: str
    """nf4 or fp4."""
    shape: tuple[int, ...]
    block: int
    """Numbers with one maximum."""
    nested_block: int
    """Maxima with one scale, where these are quantized too."""
    nested_offset: float


def packed(content: bytes) -> Packed | None:
    """The layout in bitsandbytes' description of a 4-bit weight; None if it is damaged."""
    state = described(content)
    if not is_object(state):
        return None
    shape, sizes = state.get("shape"), [state.get("blocksize"), state.get("nested_blocksize", 256)]
    offset = state.get("nested_offset", 0.0)
    if not is_array(shape) or not isinstance(offset, int | float):
        return None
    numbers = [size for size in (*shape, *sizes) if type(size) is int and 0 < size < 2**31]
    if len(numbers) != len(shape) + 2:
        return None
    return Packed(str(state.get("quant_type")), tuple(numbers[:-2]), numbers[-2], numbers[-1], float(offset))


def _is_known(layout: Any) -> bool:
    if not is_object(layout) or layout.get("format") not in _LAYOUTS:
        return False
    # Such as "convrot": rotated weights are another network until they are rotated back.
    return not any(value for key, value in layout.items() if key not in _LAYOUT_KEYS)


def _are_known(metadata: Mapping[str, str]) -> bool:
    stated = described(metadata.get(_LAYOUTS_IN_METADATA, "{}").encode())
    layers = stated.get("layers", {}) if is_object(stated) else None
    return is_object(layers) and all(_is_known(layout) for layout in layers.values())


def beside(names: Iterable[str], quantized: Mapping[str, Parts]) -> set[str]:
    """Those of `names` that only describe the weights in `quantized`: they are no weights."""
    markers = {name for name in names if quantized and f".{name}".endswith(f".{_MARKER}")}
    return markers.union(*(parts.values() for parts in quantized.values()))


def title_of(dtypes: Mapping[str, str], quantized: Mapping[str, Parts]) -> str | None:
    """The name of the format that most of the `quantized` weights have; None without any."""
    titles = [
        next(
            (_TITLES[role] for role in parts if role in _TITLES),
            _SCALED.get(dtypes[weight], "scaled weights"),
        )
        for weight, parts in quantized.items()
    ]
    return max(set(titles), key=titles.count) if titles else None


def why_unreadable(names: Iterable[str], kind: str = "") -> str | None:
    """The message after the name of a file with these `names` besides weights; None without a fault.

    Args:
        names: of tensors, without those `beside` quantized weights that are read.
        kind: network, text-encoder ... if known: adds a hint on saving memory.
    """
    ends = {f".{name}" if name == _MARKER else name for name in names}
    for what, marks in _UNREADABLE:
        if any(name.endswith(marks) for name in ends):
            return (
                f"has {what}: the numbers are wrong without the scales beside them. "
                f"{INSTEAD}{_SMALL.get(kind, '')}."
            )
    return None
