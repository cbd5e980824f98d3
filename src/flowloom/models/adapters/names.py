"""Names of linear layers in the adapter files of other programs; no tensor is read.

ComfyUI puts a prefix before the checkpoint's names; kohya writes underscores for dots; diffusers has other
names, and several layers where the checkpoint has one with more rows. OneTrainer and LyCORIS write diffusers'
names with underscores, FLOW the checkpoint's with its own suffix.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from flowloom.models.adapters.key_rules import KeyRules

COMFY_PREFIX, DIFFUSERS_PREFIX = "diffusion_model.", "transformer."

Leaves = Mapping[str, tuple[str, ...]]
Stack = tuple[str, str, Leaves]
"""Blocks: the checkpoint's name and diffusers', and the layers of one block in both."""

SUFFIXES = {
    "lora_A.weight": "lora_A.weight",
    "lora_A.default.weight": "lora_A.weight",
    "lora_A.default": "lora_A.weight",
    "lora_A": "lora_A.weight",
    "lora.lora_A": "lora_A.weight",
    "lora_down.weight": "lora_A.weight",
    "lora.down.weight": "lora_A.weight",
    "lora_B.weight": "lora_B.weight",
    "lora_B.default.weight": "lora_B.weight",
    "lora_B.default": "lora_B.weight",
    "lora_B": "lora_B.weight",
    "lora.lora_B": "lora_B.weight",
    "lora_up.weight": "lora_B.weight",
    "lora.up.weight": "lora_B.weight",
    "alpha": "alpha",
    "dora_scale": "dora_scale",
    "lora_magnitude_vector": "dora_scale",
    "lora_magnitude_vector.weight": "dora_scale",
    "lora_magnitude_vector.default": "dora_scale",
    "lora_magnitude_vector.default.weight": "dora_scale",
} | {f"lokr_{factor}": f"lokr_{factor}" for factor in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b")}
"""Suffixes of tensors in files, and ours."""
_LONGEST_FIRST = sorted(SUFFIXES, key=len, reverse=True)
OTHER_KINDS = {"hada_": "LoHa", "oft_": "OFT", "lokr_t2": "LoKr of convolutions", "on_input": "(IA)^3"}
"""Marks of adapters that cannot be read, and their names."""

FLOW_SUFFIXES = (".lora.lora_A", ".lora.lora_B")
"""FLOW's own endings."""

_DOTTED_PREFIXES = re.compile(r"((base_model\.model|model|diffusion_model|transformer)\.)+")
_FLAT_PREFIX = re.compile(r"(lora_unet|lora_transformer|lycoris)_")
_BESIDE = re.compile(
    r"(lora_te\d*_|lycoris_te|text_encoders?(_\d)?\.|t5(xxl)?\.|clip_\w\.|te\d?\.|cond_stage_model\.|bundle_emb\.)"
)


class Place(NamedTuple):
    """Where a tensor of an adapter belongs."""

    layer: str
    """Our name of the layer."""
    part: int
    """Which part of its rows."""
    num_parts: int
    suffix: str
    """One of the values of SUFFIXES."""
    spelled: str
    """The file's name of the layer, without a prefix."""


class LoraNames:
    """Names of one family's linear layers in files.

    Args:
        stacks: the blocks, each layer with diffusers' names in the order of its rows.
        outer: layers outside of any block, likewise.
        spec: the start of `modelspec.architecture`, which distinguishes families that share layer names.
        readers: rules of the programs that an adapter is exported to, by format; each export is verified by
            them.
        has_diffusers_layers: the network here is diffusers', whose layers are the parts.
        comfy_prefix: of the names in ComfyUI's files; by default diffusers' where ComfyUI reads FLUX's layers
            by diffusers' names as well, so that no layers need to be joined.
        joins_for_comfy: ComfyUI reads only the checkpoint's layers.
        joins_for_kohya: kohya's files have the checkpoint's layers rather than their parts.
        only_own_in_comfy: layers outside of any block that ComfyUI does not know by diffusers' names.
        kohya_module: `ss_network_module` of a LoRA.
    """

    def __init__(  # noqa: PLR0913 -- one table of a family
        self,
        stacks: Sequence[Stack],
        outer: Leaves,
        *,
        title: str,
        spec: str,
        implementation: str,
        readers: Mapping[str, KeyRules],
        has_diffusers_layers: bool = False,
        comfy_prefix: str = "",
        joins_for_comfy: bool = False,
        joins_for_kohya: bool = True,
        only_own_in_comfy: Collection[str] = (),
        kohya_module: str = "networks.lora_flux",
    ):
        self._stacks, self._outer = stacks, outer
        self.title, self.spec, self.implementation = title, spec, implementation
        self.readers = readers
        self.has_diffusers_layers = has_diffusers_layers
        is_split = has_diffusers_layers and not joins_for_comfy
        self.comfy_prefix = comfy_prefix or (DIFFUSERS_PREFIX if is_split else COMFY_PREFIX)
        self.joins_for_comfy = joins_for_comfy and has_diffusers_layers
        self.joins_for_kohya = joins_for_kohya and has_diffusers_layers
        self._only_own_in_comfy = only_own_in_comfy
        self.kohya_module = kohya_module

    def to_comfy(self, layer: str) -> str:
        """ComfyUI's name of `layer`, one of the network's or, with `joins_for_comfy`, of the checkpoint's."""
        own = self.in_checkpoint(layer)
        return COMFY_PREFIX + own if own in self._only_own_in_comfy else self.comfy_prefix + layer

    def without_reader(self, form: str) -> str:
        """The message that the family's adapters have no format `form`."""
        return f"{self.title} has no adapters in the format {form}. Use {' or '.join(self.readers)}."

    def place_of(self, name: str) -> Place | None:
        """Where the tensor `name` of an adapter's file belongs; None if the family has no such layer."""
        ending = next((suffix for suffix in _LONGEST_FIRST if name.endswith(f".{suffix}")), None)
        if ending is None:
            return None
        flat = _without(_FLAT_PREFIX, name.removesuffix(f".{ending}"))
        spelled = _without(_DOTTED_PREFIXES, flat)
        place = (spelled, 0, 1) if self._in_checkpoint(spelled) else None
        place = place or self.from_diffusers(spelled) or self._from_flat(flat)
        if place and self.has_diffusers_layers:
            place = self._as_part(*place)
        return Place(*place, SUFFIXES[ending], spelled) if place else None

    def _as_part(self, layer: str, part: int, num_parts: int) -> tuple[str, int, int]:
        """The network's own layer; a file's joined layer stays one, to be split when it is read."""
        own = self._in_checkpoint(layer)
        return (own[part], 0, 1) if num_parts == len(own) else (layer, 0, 1)

    def to_diffusers(self, layer: str) -> tuple[str, ...]:
        """diffusers' names of the network's `layer`, in the order of its rows; empty if it has none."""
        if self.has_diffusers_layers and self._from_diffusers(layer, "."):
            return (layer,)
        return self._in_checkpoint(layer)

    def checkpoint_parts(self, layer: str) -> tuple[str, ...]:
        """diffusers' names of a layer that the checkpoint names, in the order of its rows."""
        return self._in_checkpoint(layer)

    def _in_checkpoint(self, layer: str) -> tuple[str, ...]:
        """diffusers' names of a layer of the checkpoint."""
        if layer in self._outer:
            return self._outer[layer]
        for ours, theirs, leaves in self._stacks:
            match = re.fullmatch(rf"{re.escape(ours)}\.(\d+)\.(.+)", layer)
            if match:
                return tuple(f"{theirs}.{match[1]}.{part}" for part in leaves.get(match[2], ()))
        return ()

    def from_diffusers(self, layer: str) -> tuple[str, int, int] | None:
        """The checkpoint's name of diffusers' `layer`, which part of its rows it is, and of how many."""
        return self._from_diffusers(layer, ".")

    def _from_diffusers(self, layer: str, dot: str) -> tuple[str, int, int] | None:
        """`from_diffusers` of a name with `dot` for every dot."""
        for name, parts in self._outer.items():
            if layer in [part.replace(".", dot) for part in parts]:
                return name, 0, 1
        for ours, theirs, leaves in self._stacks:
            stack = re.escape(f"{theirs}.".replace(".", dot))
            match = re.fullmatch(rf"{stack}(\d+){re.escape(dot)}(.+)", layer)
            for name, parts in leaves.items() if match else ():
                flat = [part.replace(".", dot) for part in parts]
                if match and match[2] in flat:
                    return f"{ours}.{match[1]}.{name}", flat.index(match[2]), len(parts)
        return None

    def _from_flat(self, flat: str) -> tuple[str, int, int] | None:
        """`place_of` a layer with underscores for dots, in the checkpoint's spelling or diffusers'."""
        for name in self._outer:
            if flat == name.replace(".", "_"):
                return name, 0, 1
        for ours, _, leaves in self._stacks:
            match = re.fullmatch(rf"{ours.replace('.', '_')}_(\d+)_(\w+)", flat)
            for name in leaves if match else ():
                if match and match[2] == name.replace(".", "_"):
                    return f"{ours}.{match[1]}.{name}", 0, 1
        return self._from_diffusers(flat, "_")

    def in_checkpoint(self, name: str) -> str:
        """A layer or parameter of the network by the checkpoint's name, as configurations spell it."""
        if not self.has_diffusers_layers:
            return name
        layer, _, leaf = name.rpartition(".")
        whole = self.from_diffusers(name) or self.from_diffusers(layer)
        if whole:
            return whole[0] if self.from_diffusers(name) else f"{whole[0]}.{leaf}"
        for ours, theirs, _ in self._stacks:
            if name.startswith(f"{theirs}."):
                return f"{ours}.{name.removeprefix(f'{theirs}.')}"
        return name


def to_kohya(layer: str) -> str:
    """kohya's name: "lora_unet_double_blocks_0_img_attn_qkv"."""
    return "lora_unet_" + layer.replace(".", "_")


def _without(prefix: re.Pattern[str], name: str) -> str:
    match = prefix.match(name)
    return name[match.end() :] if match else name


def is_beside_the_network(name: str) -> bool:
    """True for a tensor of a text encoder, or of a trained embedding."""
    return _BESIDE.match(name) is not None
