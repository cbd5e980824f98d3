"""Checkpoints: written atomically, and exact enough to continue bit for bit."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from flowloom.engine.finite import not_finite
from flowloom.engine.position import Position
from flowloom.engine.shard_files import SaveGroup, open_shards, write_shards
from flowloom.engine.snapshot import ADAPTER, EMA_ADAPTER, EMA_MODEL, MODEL, Snapshot, numbers_of
from flowloom.engine.state import TrainState
from flowloom.errors import (
    CheckpointError,
    DivergedError,
    FlowloomError,
    RunError,
    disk_full,
    is_disk_full,
    one_line,
)
from flowloom.files import sync
from flowloom.models.weights import open_weights, place, save_weights
from flowloom.run.directory import RunDir, checkpoint_name

POSITION, OPTIMIZER, WEIGHTS, EMA = "trainer.json", "optimizer.pt", "weights.safetensors", "ema.safetensors"
SHARDS = "shards"
"""Folder in place of the tensors in the other files, of a network that is sharded over the ranks."""
_UNREADABLE = (pickle.UnpicklingError, EOFError)
"""Errors of torch on truncated files, beside RuntimeError."""


def save(run_dir: RunDir, snapshot: Snapshot, group: SaveGroup) -> Path:
    """Write a checkpoint and return its folder. The ranks of `group` call this together.

    It is written under a temporary name, flushed to the disk and renamed, so that a folder called
    `step_XXXXXXXX` is always complete.

    Raises:
        DivergedError: it would hold a NaN or an infinity; nothing is written.
        DiskFullError: the disk is full; nothing is left behind.
    """
    if found := group.first_of(not_finite(snapshot.numbers)):
        raise DivergedError(snapshot.step, f"{found} is no longer finite, so this step is not saved")
    final = run_dir.checkpoint_dir(snapshot.step)
    unfinished = final.with_name(f"{final.name}.tmp")
    try:
        group.from_first(partial(_begin, unfinished))
        if snapshot.shards:
            write_shards(unfinished / "state" / SHARDS, snapshot.shards, group)
        group.from_first(partial(_finish, unfinished, final, snapshot))
    except OSError as error:
        if not is_disk_full(error):
            raise
        raise disk_full(final, error) from error
    finally:
        if group.is_first:
            shutil.rmtree(unfinished, ignore_errors=True)
    return final


def _begin(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "state").mkdir(parents=True)


def _finish(folder: Path, final: Path, snapshot: Snapshot) -> None:
    """Write everything but shards into `folder`, then rename it."""
    weights, average = snapshot.numbers.weights, snapshot.numbers.average
    inner = folder / "state"
    if snapshot.shards:
        # Each whole tensor is read from the shards of all ranks when it is written.
        weights, average = (open_shards(inner / SHARDS, kind) for kind in ("weights", "average"))
    for name, (tensors, metadata) in snapshot.exports(weights, average).items():
        save_weights(folder / name, tensors, metadata)
    if snapshot.finer:
        save_weights(inner / WEIGHTS, snapshot.finer, {})
    (inner / POSITION).write_text(snapshot.position)
    _torch_save(inner / OPTIMIZER, snapshot.optimizer)
    if average and not snapshot.shards:
        save_weights(inner / EMA, average, {})
    _sync_tree(folder)
    discard(final)
    folder.rename(final)
    sync(final.parent)


def _torch_save(path: Path, content: object) -> None:
    # Through a Python file: torch's own writer hides the system's reason, such as a full disk.
    with path.open("wb") as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:
            # After a failed write the writer fails to close its archive as well, and raises that.
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


def load(folder: Path, state: TrainState) -> None:
    """Restore `state` as it was when `folder` was written.

    Raises:
        CheckpointError: a file is missing, damaged, of another configuration, or holds a NaN.
    """
    try:
        _load(folder, state)
    except torch.OutOfMemoryError:
        raise
    except (OSError, ValueError, LookupError, TypeError, RuntimeError, FlowloomError, *_UNREADABLE) as error:
        raise CheckpointError(folder, f"it is incomplete or damaged ({one_line(str(error))}).") from error
    if found := not_finite(numbers_of(state)):
        raise CheckpointError(folder, f"{found} is not finite.")
    if folder.name != checkpoint_name(state.position.step):
        raise _misnamed(folder, state.position.step)


def _misnamed(folder: Path, step: int) -> CheckpointError:
    """Return the error for a copied or renamed folder, which the run would resume from after each save."""
    name = checkpoint_name(step)
    error = CheckpointError(folder, f"its name does not match its content, which is of step {step}.")
    is_copy = (folder.parent / name).exists()
    hint = f"It is a copy of {name}: move it elsewhere" if is_copy else f"Rename it to {name}"
    error.hint = f"{hint}, then resume the run."
    return error


class _Stored(NamedTuple):
    """The numbers of a checkpoint; in both layouts whole tensors, each read on access."""

    weights: Mapping[str, Tensor]
    average: Mapping[str, Tensor]
    optimizer: dict[str, dict[str, Any]]
    parked: dict[str, dict[str, Any]]


def _opened(folder: Path, state: TrainState) -> _Stored:
    inner = folder / "state"
    # By mmap: a rank that shares the weights keeps a part of these states.
    mmap = state.shards is not None
    recorded = torch.load(inner / OPTIMIZER, map_location="cpu", weights_only=True, mmap=mmap)
    optimizer, parked = (
        {name: state.part_of(name, kept) for name, kept in recorded[kind].items()}
        for kind in ("optimizer", "parked")
    )
    if not (inner / SHARDS).exists():
        weights: dict[str, Tensor] = {}
        if state.adapter is None:
            weights |= dict(open_weights(folder / MODEL).items())
        if (inner / WEIGHTS).exists():
            weights |= dict(open_weights(inner / WEIGHTS).items())
        average: Mapping[str, Tensor] = open_weights(inner / EMA) if (inner / EMA).exists() else {}
        return _Stored(weights, average, optimizer, parked)
    for kind, states in (("optimizer", optimizer), ("parked", parked)):
        shards = open_shards(inner / SHARDS, kind)
        for key in shards:
            name, _, kept = key.partition("/")
            states[name][kept] = state.part_of(name, shards[key])
    weights_of, average_of = (open_shards(inner / SHARDS, kind) for kind in ("weights", "average"))
    return _Stored(weights_of, average_of, optimizer, parked)


def _load(folder: Path, state: TrainState) -> None:
    recorded: dict[str, Any] = json.loads((folder / "state" / POSITION).read_text())
    stored = _opened(folder, state)
    # Checkpoints of earlier versions call it "turn".
    rotation = recorded.pop("rotation" if "rotation" in recorded else "turn")
    state.parked = stored.parked
    state.position = Position(**recorded)
    if state.ema:
        # Without a file the average starts from the checkpoint's weights, not from the base's.
        device = torch.device("cpu") if state.ema.on_cpu else state.precision.device
        state.ema.shadow = {
            name: place(state.part_of(name, t), device, torch.float32) for name, t in stored.average.items()
        }
    _load_weights(stored.weights, state)
    # Not rotation_at(step): a checkpoint between two rotations still holds the optimizer of the first.
    state.start_rotation(rotation)
    state.load_optimizer_states(stored.optimizer)


def _load_weights(tensors: Mapping[str, Tensor], state: TrainState) -> None:
    if state.host:
        state.host.restore({} if state.adapter else tensors)
    if state.adapter and not state.shards:
        state.adapter.load_state_dict(tensors)
        return
    state.release()
    if state.shards:
        for name, part in state.parts.items():
            part.data.copy_(state.part_of(name, tensors[name]))
        return
    # With copies on the host, the device need not have room for the finer values.
    coarse = torch.promote_types(state.precision.compute, state.precision.trained) if state.host else None
    for name, weight in state.weights.items():
        tensor = tensors[name]
        weight.data = tensor.to(weight.device, coarse or tensor.dtype, copy=True)


def find_weights(source: Path, weights: Literal["ema", "raw"] = "ema") -> Path:
    """The model or adapter file of `source`: a file itself, a checkpoint, or a run's newest checkpoint.

    Args:
        weights: `ema` is the average, if there is one.

    Raises:
        RunError: there is no such file.
    """
    if source.is_file():
        return source
    folder: Path | None = source
    if not source.name.startswith("step_"):
        folder = RunDir.open(source).latest_checkpoint()
    if folder is None or not folder.is_dir():
        raise RunError(f"{source}: there is no checkpoint here.")
    names = (EMA_ADAPTER, EMA_MODEL, ADAPTER, MODEL) if weights == "ema" else (ADAPTER, MODEL)
    found = next((folder / name for name in names if (folder / name).exists()), None)
    if found is None:
        raise RunError(f"{folder}: neither {ADAPTER} nor {MODEL} is here.")
    return found


def discard(folder: Path) -> None:
    """Delete a checkpoint. It is renamed first, so that a kill leaves no partial folder under its name."""
    if folder.exists():
        doomed = folder.with_name(f"{folder.name}.old.tmp")
        folder.rename(doomed)
        shutil.rmtree(doomed)


def _sync_tree(folder: Path) -> None:
    for path in (*folder.rglob("*"), folder):
        sync(path)
