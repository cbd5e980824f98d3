"""Rules by which other programs read an adapter's file, as data; verify.py applies them to what we write.

They are stated apart from the writer (formats.py, names.py), so that a mistake there is found.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

_LOKR = {f"lokr_{factor}": f"lokr_{factor}" for factor in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b")}


@dataclass(frozen=True)
class Program:
    """A program's arithmetic: the tensors of a layer that it uses, and how it computes with them."""

    title: str
    suffixes: Mapping[str, str]
    """Endings of tensors, each with ours; it ignores or rejects all others."""
    dora_divides_by: Literal["base", "sum"]
    """A DoRA's rows are divided by the norms of W, or of W + s B A."""
    lokr_scale_power: int = 1
    """A LoKr is scaled by (alpha / rank) to this power."""


COMFYUI = Program(
    "ComfyUI",
    {
        "lora_A.weight": "lora_A.weight",
        "lora_B.weight": "lora_B.weight",
        "lora_down.weight": "lora_A.weight",
        "lora_up.weight": "lora_B.weight",
        "alpha": "alpha",
        "dora_scale": "dora_scale",
    }
    | _LOKR,
    dora_divides_by="base",
)
KOHYA = Program(
    "sd-scripts (kohya)",
    {
        "lora_down.weight": "lora_A.weight",
        "lora_up.weight": "lora_B.weight",
        "alpha": "alpha",
        "dora_scale": "dora_scale",
    }
    | _LOKR,
    dora_divides_by="sum",
    lokr_scale_power=2,
)
DIFFUSERS = Program(
    "diffusers",
    {
        "lora_A.weight": "lora_A.weight",
        "lora_B.weight": "lora_B.weight",
        "lora_magnitude_vector.weight": "dora_scale",
    },
    dora_divides_by="sum",
)


class Rows(NamedTuple):
    """Some rows of one of the network's layers: part `part` of `count`, from 0.

    Every part has as many rows as the layer has columns, the last one has the rest.
    """

    layer: str
    part: int
    count: int


@dataclass(frozen=True)
class KeyRules:
    """How a program finds the layers of one family's network in a file."""

    program: Program
    prefix: str
    """Start of all names; the program ignores other tensors."""
    layers: Mapping[str, tuple[str, ...] | Rows] = field(default_factory=dict[str, "tuple[str, ...] | Rows"])
    """The program's names of layers, `{}` for a number: each is the network's layers that are joined in it,
    in the order of rows, or some rows of one. Empty: the program has the network's names."""
    is_flat: bool = False
    """Names have an underscore for every dot."""


def same(*layers: str) -> dict[str, tuple[str, ...]]:
    """Rules for layers that the program and the network give the same name."""
    return {layer: (layer,) for layer in layers}


def network_names(
    comfyui: str = "diffusion_model.", kohya: str = "lora_unet_", diffusers: str = "transformer."
) -> dict[str, KeyRules]:
    """Rules of a family whose layers have the same names in every program, by format; "" leaves one out."""
    rules = {
        "comfy": KeyRules(COMFYUI, comfyui),
        "kohya": KeyRules(KOHYA, kohya, is_flat=True),
        "diffusers": KeyRules(DIFFUSERS, diffusers),
    }
    return {form: rule for form, rule in rules.items() if rule.prefix}
