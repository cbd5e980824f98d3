"""The content of a checkpoint in memory: of the live state, or a copy that training does not change."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from flowloom.engine.finite import Numbers
from flowloom.engine.offload.copies import page_locked
from flowloom.engine.parallel.shards import FileShards
from flowloom.engine.state import TrainState
from flowloom.json_types import is_object
from flowloom.models.adapters.adapter import Adapter
from flowloom.models.adapters.formats import adapter_content
from flowloom.models.weight_files import Entry
from flowloom.models.weights import Weights

MODEL, ADAPTER = "model.safetensors", "adapter.safetensors"
EMA_MODEL, EMA_ADAPTER = "model_ema.safetensors", "adapter_ema.safetensors"


class Export(NamedTuple):
    """The content of a weights file."""

    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str]


MakeExports = Callable[[Mapping[str, Tensor], Mapping[str, Tensor]], dict[str, Export]]


@dataclass(frozen=True)
class Snapshot:
    """Everything that a checkpoint holds; of a network that is sharded over the ranks, this rank's part."""

    step: int
    position: str
    """JSON."""
    numbers: Numbers
    """Every weight, average and optimizer state, by the checkpoint's names."""
    optimizer: dict[str, Any]
    """Optimizer states that are not in `shards`."""
    exports: MakeExports
    """Files for other programs by name, made of the whole weights and their average."""
    finer: Mapping[str, Tensor]
    """Weights in a number format that their export does not have."""
    shards: Mapping[str, Tensor]
    """DTensors on the CPU, of which each rank writes its part; empty if the first rank has all."""


class HostBuffers:
    """Copies in host memory, page-locked for CUDA. Each copy replaces the one of the same key before it."""

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}
        self._used: set[str] = set()

    def copied(self, key: str, value: Any) -> Any:
        """A copy of a tensor or of nested dicts with tensors; `finish` waits for it."""
        if is_object(value):
            return {name: self.copied(f"{key}/{name}", part) for name, part in value.items()}
        if not isinstance(value, Tensor):
            return value
        if flatten := getattr(value, "__tensor_flatten__", None):
            # Low-bit states and shards: tensors in a tensor.
            names, context = flatten()
            parts = {name: self.copied(f"{key}/{name}", getattr(value, name)) for name in names}
            kind: Any = type(value)
            return kind.__tensor_unflatten__(parts, context, value.size(), value.stride())
        self._used.add(key)
        buffer = self._buffers.get(key)
        if buffer is None or (buffer.dtype, buffer.shape) != (value.dtype, value.shape):
            buffer = self._buffers[key] = _host_tensor(value)
        return buffer.copy_(value.detach(), non_blocking=value.is_cuda)

    @property
    def num_bytes(self) -> int:
        """Bytes of all buffers."""
        return sum(buffer.nbytes for buffer in self._buffers.values())

    def finish(self, device: torch.device) -> None:
        """Wait for the copies from `device`, and free the buffers of keys that were not copied this time."""
        if device.type == "cuda":
            torch.cuda.current_stream(device).synchronize()
        self._buffers = {key: buffer for key, buffer in self._buffers.items() if key in self._used}
        self._used = set()


def _host_tensor(like: Tensor) -> Tensor:
    if not like.is_cuda or not like.nbytes:
        return torch.empty_like(like, device="cpu", requires_grad=False)
    return page_locked(like.nbytes).view(like.dtype).view(like.shape)


def take_snapshot(
    state: TrainState, metadata: dict[str, str], buffers: HostBuffers | None = None
) -> Snapshot:
    """The snapshot of `state` between two steps.

    Where ranks share the weights, all of them call this together. The first one gets the whole, in host
    memory, and the others a snapshot without content.

    Args:
        metadata: of the exported files.
        buffers: for a copy of all that training changes. Without them the snapshot is the live state.
    """
    if state.file_shards:
        return _shards_snapshot(state, state.file_shards, metadata, buffers or HostBuffers())
    numbers = numbers_of(state, buffers.copied if buffers and not state.shards else _same)
    if state.shards:
        numbers = _joined(state, numbers)
    elif buffers:
        buffers.finish(state.precision.device)
    compute = state.precision.compute
    exports: MakeExports = partial(_exports, compute, metadata)
    if state.adapter:
        exports = partial(_made, _adapter_exports(state, state.adapter, numbers, metadata))
    return Snapshot(
        step=state.position.step,
        position=_position(state),
        numbers=numbers,
        optimizer={"optimizer": numbers.optimizer, "parked": numbers.parked},
        exports=exports,
        finer={name: t for name, t in numbers.weights.items() if state.adapter or t.dtype != compute},
        shards={},
    )


def _position(state: TrainState) -> str:
    return json.dumps({"rotation": state.rotation, **asdict(state.position)}, indent=1)


def _shards_snapshot(
    state: TrainState, files: FileShards, metadata: dict[str, str], buffers: HostBuffers
) -> Snapshot:
    numbers = numbers_of(state, buffers.copied)
    buffers.finish(state.precision.device)
    shards: dict[str, Tensor] = {}
    others: dict[str, dict[str, Any]] = {"optimizer": {}, "parked": {}}

    def add(key: str, name: str, part: Any) -> bool:
        """Add a part that has the shape of this rank's part of the weight `name`."""
        has_shape = isinstance(part, Tensor) and part.shape == state.parts[name].shape
        if has_shape:
            shards[key] = files.placed(state.weights[name], part)
        return has_shape

    for kind, parts in (("weights", numbers.weights), ("average", numbers.average)):
        for name, part in parts.items():
            add(f"{kind}/{name}", name, part)
    for kind, states in (("optimizer", numbers.optimizer), ("parked", numbers.parked)):
        for name, values in states.items():
            others[kind][name] = {
                key: value for key, value in values.items() if not add(f"{kind}/{name}/{key}", name, value)
            }
    return Snapshot(
        step=state.position.step,
        position=_position(state),
        numbers=numbers,
        optimizer=others,
        exports=partial(_exports, state.precision.compute, metadata),
        finer={},
        shards=shards,
    )


def _same(_key: str, value: Any) -> Any:
    return value


def numbers_of(state: TrainState, keep: Callable[[str, Any], Any] = _same) -> Numbers:
    """Every number of a checkpoint of `state`; what training changes is passed through `keep`, with a key.

    Where ranks share the weights, this rank's part.
    """
    state.release()
    shadow: dict[str, Tensor] = state.ema.shadow if state.ema else {}
    source: Mapping[str, Tensor]
    if state.shards:
        source = state.parts
    else:
        source = state.adapter.state_dict() if state.adapter else state.model.state_dict()
    if state.host and not state.adapter:
        source = {**source, **{name: weight.detach() for name, weight in state.host.copies.items()}}
    # A rotation writes the weights that it trains to the memory that they are streamed from.
    rotates = state.config.method_kind == "rotation"
    all_change = rotates and state.streamer is not None and state.streamer.streams_trained
    # Frozen weights need no copy: previews change only averaged ones, and a rotation that trains a frozen
    # weight puts a copy in its place. Parked optimizer states never change.
    weights: dict[str, Tensor] = {
        name: keep(f"weights/{name}", weight)
        if all_change or state.shards or name in state.trained or name in shadow
        else weight
        for name, weight in source.items()
    }
    return Numbers(
        weights, keep("average", shadow), keep("optimizer", state.optimizer_states()), dict(state.parked)
    )


def copied_bytes(state: TrainState) -> int:
    """Host memory that the copies of a snapshot of `state` take."""
    counted: list[int] = []

    def count(key: str, value: Any) -> Any:
        if is_object(value):
            return {name: count(key, part) for name, part in value.items()}
        if isinstance(value, Tensor):
            counted.append(value.nbytes)
        return value

    numbers_of(state, count)
    return sum(counted)


def _joined(state: TrainState, parts: Numbers) -> Numbers:
    """The parts of all ranks on the first one, joined tensor by tensor; nothing on the others."""

    def joined(name: str, value: Any) -> Any:
        if is_object(value):
            return {key: joined(name, inner) for key, inner in value.items()}
        return state.whole(state.weights[name], value) if isinstance(value, Tensor) else value

    def all_joined(values: Mapping[str, Any]) -> dict[str, Any]:
        pairs = ((name, joined(name, value)) for name, value in values.items())
        return {name: value for name, value in pairs if state.ranks.is_first}

    return Numbers(*(all_joined(values) for values in parts))


def _made(
    exports: dict[str, Export], _weights: Mapping[str, Tensor], _average: Mapping[str, Tensor]
) -> dict[str, Export]:
    return exports


def _exports(
    compute: torch.dtype,
    metadata: dict[str, str],
    weights: Mapping[str, Tensor],
    average: Mapping[str, Tensor],
) -> dict[str, Export]:
    """The files of a network. Tensors are converted when they are written: they may not all fit in memory."""
    plain, averaged = _cast(weights, compute), _cast(average, compute)
    exports = {MODEL: Export(Weights(Path(), plain, {}), metadata)}
    if average:
        exports[EMA_MODEL] = Export(Weights(Path(), plain | averaged, {}), metadata)
    return exports


def _adapter_exports(
    state: TrainState, adapter: Adapter, numbers: Numbers, metadata: dict[str, str]
) -> dict[str, Export]:
    # A DoRA's conversion reads the base, which may be streamed or sharded: now, not while the next step runs.
    def base(name: str) -> Tensor:
        state.sharers.from_first(lambda: name)
        return state.joined(adapter.base_weight(name))

    if not state.ranks.is_first:
        # Help the first rank to read the layers that it needs.
        while name := state.sharers.from_first(lambda: ""):
            state.joined(adapter.base_weight(name))
        return {}
    export = partial(adapter_content, "comfy", meta=adapter.metadata, said=metadata, base=base)
    exports = {ADAPTER: Export(*export(numbers.weights))}
    if state.ema:
        exports[EMA_ADAPTER] = Export(*export(numbers.average))
    state.sharers.from_first(lambda: "")
    return exports


def _cast(tensors: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Entry]:
    if isinstance(tensors, Weights):
        shapes = tensors.shapes
    else:
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    return {
        name: Entry(shape, dtype, partial(_read_as, tensors, name, dtype)) for name, shape in shapes.items()
    }


def _read_as(tensors: Mapping[str, Tensor], name: str, dtype: torch.dtype) -> Tensor:
    return tensors[name].to(dtype)
