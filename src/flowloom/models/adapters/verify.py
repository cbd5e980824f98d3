"""Check of an export before it is offered: another program must compute the change that was trained.

The file's tensors are read by the program's own rules (key_rules.py), not by the functions that wrote them.
Both changes of a weight are compared by their products with random vectors (Freivalds 1977): that takes no
(out, in) matrix, so every layer is compared. Rows of a DoRA also have a factor, which is compared by itself.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from flowloom.errors import WeightsError
from flowloom.models.adapters.fused import Layer, layers_of
from flowloom.models.adapters.key_rules import KeyRules, Program, Rows
from flowloom.models.family import DEFAULT, families
from flowloom.models.weight_files import some_names

_VECTORS = 4
_TOLERANCE = 1e-4
"""Largest difference, relative to the largest value of a layer: sums of float32 differ by less than 1e-5."""

BaseWeight = Callable[[str], Tensor]


class Verified(NamedTuple):
    """A file that the program loads as trained."""

    num_layers: int
    program: str

    @property
    def line(self) -> str:
        """The result for the user."""
        return f"{self.num_layers} layers, by the key rules of {self.program}"


def rules_for(form: str, meta: Mapping[str, Any]) -> KeyRules:
    """The rules of the program that reads `form`, for the family of the adapter with metadata `meta`.

    Raises:
        WeightsError: no program reads the family's adapters in that format.
    """
    names = families()[meta.get("family", DEFAULT)].names
    if form not in names.readers:
        raise WeightsError(names.without_reader(form))
    return names.readers[form]


def verify(
    rules: KeyRules,
    tensors: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
    meta: Mapping[str, Any],
    base: BaseWeight | None = None,
) -> Verified:
    """Compare the file `tensors`, read by `rules`, with the adapter that it was made from.

    Args:
        state, meta: the adapter: an `Adapter`'s state and metadata.
        base: weights (out, in) of the network's layers, which a DoRA needs if the program's rule differs.

    Raises:
        WeightsError: the program would not load the file, or would compute another change of the weights.
    """
    program = rules.program
    ours = {name: _of_adapter(layer) for name, layer in layers_of(state, meta).items()}
    found = _read(rules, tensors)
    places = {name: _place(rules, name, ours) for name in found}
    strange = [name for name, place in places.items() if not place]
    if strange:
        raise _refused(program, f"it has no layer {some_names(strange)}, or the adapter has none of its rows")
    for name, layer in found.items():
        _check_whole(program, name, layer)
    expected = {name: _values(layer, _scales_for(program, name, layer, base)) for name, layer in ours.items()}
    applied = {name: torch.zeros_like(values) for name, values in expected.items()}
    for name, layer in found.items():
        values = _values(layer, layer.row_scales)
        for target, mine, theirs in _rows(places[name], ours, program, name, layer):
            applied[target][mine] += values[theirs]
    for name, values in expected.items():
        _compare(program, name, values, applied[name])
    return Verified(len(ours), program.title)


@dataclass(frozen=True)
class _Factors:
    """One layer's low-rank change: s B A or s w1 ⊗ w2, and a DoRA's row scales."""

    tensors: Mapping[str, Tensor]
    scale: float
    is_over_base: bool = False

    @property
    def row_scales(self) -> Tensor | None:
        """The DoRA's scales (out,), as stored."""
        scales = self.tensors.get("dora_scale")
        return None if scales is None else scales.flatten()

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        rows = columns = 1
        for part in self._parts:
            rows *= self._end(part, "a" if part != "lora" else "B.weight").shape[0]
            columns *= self._end(part, "b" if part != "lora" else "A.weight").shape[1]
        return rows, columns

    @property
    def _parts(self) -> tuple[str, ...]:
        return ("lora",) if "lora_A.weight" in self.tensors else ("lokr_w1", "lokr_w2")

    def _end(self, part: str, end: str) -> Tensor:
        return self.tensors[part if part in self.tensors else f"{part}_{end}"]

    def times(self, x: Tensor) -> Tensor:
        """The change of the weight (out, in) times `x` (in, k)."""
        if self._parts == ("lora",):
            return self.scale * (self.tensors["lora_B.weight"] @ (self.tensors["lora_A.weight"] @ x))
        first, second = (_product(self.tensors, w) for w in self._parts)
        # (w1 ⊗ w2) x is w2 X w1', with x as a matrix of the columns of w1 and w2.
        blocks = x.reshape(first.shape[1], second.shape[1], -1)
        return self.scale * torch.einsum("ac,bd,cdk->abk", first, second, blocks).flatten(0, 1)


def _product(tensors: Mapping[str, Tensor], part: str) -> Tensor:
    return tensors[part] if part in tensors else tensors[f"{part}_a"] @ tensors[f"{part}_b"]


def _of_adapter(layer: Layer) -> _Factors:
    tensors = {suffix: tensor.float().cpu() for suffix, tensor in layer.tensors.items()}
    return _Factors(tensors, layer.scale, layer.is_over_base)


def _read(rules: KeyRules, tensors: Mapping[str, Tensor]) -> dict[str, _Factors]:
    """The tensors by the program's name of their layer, with the scale that it computes."""
    program = rules.program
    layers: dict[str, dict[str, Tensor]] = {}
    unused: list[str] = []
    for key, tensor in tensors.items():
        inner = key.removeprefix(rules.prefix)
        ending = next((ending for ending in program.suffixes if inner.endswith(f".{ending}")), "")
        if not key.startswith(rules.prefix) or not ending:
            unused.append(key)
        else:
            own = layers.setdefault(inner.removesuffix(f".{ending}"), {})
            own[program.suffixes[ending]] = tensor.float().cpu()
    if unused:
        raise _refused(program, f"it ignores {len(unused)} of {len(tensors)} tensors ({some_names(unused)})")
    return {name: _Factors(own, _scale(program, own)) for name, own in layers.items()}


def _scale(program: Program, tensors: Mapping[str, Tensor]) -> float:
    """alpha / rank; without an alpha, or without a rank, 1."""
    narrow = ("lora_A.weight", "lokr_w2_b", "lokr_w1_b")
    rank = next((tensors[suffix].shape[0] for suffix in narrow if suffix in tensors), 0)
    if not rank or "alpha" not in tensors:
        return 1.0
    power = 1 if "lora_A.weight" in tensors else program.lokr_scale_power
    return (float(tensors["alpha"]) / rank) ** power


def _check_whole(program: Program, name: str, layer: _Factors) -> None:
    if any(suffix.startswith("lokr") for suffix in layer.tensors):
        wanted = [
            suffix
            for part in ("lokr_w1", "lokr_w2")
            if part not in layer.tensors
            for suffix in (f"{part}_a", f"{part}_b")
        ]
    else:
        wanted = ["lora_A.weight", "lora_B.weight"]
    missing = [suffix for suffix in wanted if suffix not in layer.tensors]
    if missing:
        raise _refused(program, f"{name} has no {missing[0]}")
    scales = layer.tensors.get("dora_scale")
    if scales is not None and scales.shape not in {(layer.shape[0], 1), (layer.shape[0],)}:
        raise _refused(program, f"the scales of {name} are not one for each of its rows")


def _place(rules: KeyRules, name: str, ours: Mapping[str, _Factors]) -> tuple[str, ...] | Rows | None:
    """The network's layers that the program's layer `name` is, or the rows of one; None if there are none."""
    if not rules.layers:
        dot = "_" if rules.is_flat else "."
        return next(((layer,) for layer in ours if layer.replace(".", dot) == name), None)
    for pattern, place in rules.layers.items():
        spelled = pattern.replace(".", "_") if rules.is_flat else pattern
        match = re.fullmatch(re.escape(spelled).replace(r"\{\}", r"(\d+)"), name)
        if match is None:
            continue
        numbers = match.groups()
        if isinstance(place, Rows):
            layer = place.layer.format(*numbers)
            return place._replace(layer=layer) if layer in ours else None
        layers = tuple(layer.format(*numbers) for layer in place)
        return layers if ours.keys() & set(layers) else None
    return None


def _rows(
    place: tuple[str, ...] | Rows | None,
    ours: Mapping[str, _Factors],
    program: Program,
    name: str,
    layer: _Factors,
) -> Iterator[tuple[str, slice, slice]]:
    """Each of the network's layers that `layer` changes, its rows, and those of `layer` that change them."""
    assert place
    rows, columns = layer.shape
    if isinstance(place, Rows):
        whole = ours[place.layer].shape
        start = place.part * columns
        stop = whole[0] if place.part == place.count - 1 else start + columns
        if (stop - start, whole[1]) != (rows, columns):
            raise _refused(program, f"{name} is {rows} x {columns}, the layer {stop - start} x {whole[1]}")
        yield place.layer, slice(start, stop), slice(0, rows)
        return
    start = 0
    for i, target in enumerate(place):
        size = ours[target].shape[0] if target in ours else columns if i < len(place) - 1 else rows - start
        if target in ours:
            yield target, slice(0, size), slice(start, start + size)
        start += size
    if start != rows or any(ours[target].shape[1] != columns for target in place if target in ours):
        raise _refused(program, f"{name} is {rows} x {columns}, which are not the sizes of its layers")


def _scales_for(program: Program, name: str, layer: _Factors, base: BaseWeight | None) -> Tensor | None:
    """The DoRA scales (out,) with which `program` computes the trained weight; None if this is no DoRA."""
    scales = layer.row_scales
    if scales is None or layer.is_over_base == (program.dora_divides_by == "base"):
        return scales
    if base is None:
        raise _refused(program, "its rule for DoRA differs, and the comparison needs the base model")
    weight = base(name).float().cpu()
    of_base = cast("Tensor", weight.norm(dim=1)) + torch.finfo(torch.float32).eps
    of_sum = cast("Tensor", (weight + layer.times(torch.eye(weight.shape[1]))).norm(dim=1))
    ratio = of_sum / of_base if layer.is_over_base else of_base / of_sum
    return torch.where(of_sum > 0, scales * ratio, scales)


def _values(layer: _Factors, row_scales: Tensor | None) -> Tensor:
    """Products of the change with random vectors, and the row scales: (out, vectors + 1)."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(layer.shape[1], _VECTORS, generator=generator)
    products = layer.times(x)
    scales = torch.zeros(len(products)) if row_scales is None else row_scales
    return torch.cat((products, scales[:, None]), dim=1)


def _compare(program: Program, name: str, expected: Tensor, applied: Tensor) -> None:
    for what, part in (("change", slice(0, _VECTORS)), ("DoRA scales", slice(_VECTORS, None))):
        ours, theirs = expected[:, part], applied[:, part]
        difference, largest = float((ours - theirs).abs().max()), float(ours.abs().max())
        if not difference <= _TOLERANCE * largest:
            ratio = float((ours * theirs).sum() / (ours * ours).sum()) if largest else float("inf")
            raise _refused(
                program,
                f"the {what} of {name} would differ by {difference / max(largest, 1e-30):.2g} of the largest "
                f"value (on average {ratio:.3g} times as strong)",
            )


def _refused(program: Program, reason: str) -> WeightsError:
    return WeightsError(
        f"This export does not load in {program.title} as trained: {reason}. Nothing was written. This is a "
        "defect of Flowloom: please report it with this message, and export in another format."
    )
