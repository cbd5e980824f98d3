"""Kinds of records: the axes of an encoder's output, and its conversion to bytes and back."""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from flowloom.errors import CacheError

if TYPE_CHECKING:
    from torch import Tensor

_WIDTHS = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}


@dataclass(frozen=True)
class RecordKind:
    """Records with one tensor each. Each module of this package defines a KIND."""

    name: str
    """At most 16 ASCII characters, as stored in the shards."""
    axes: tuple[str, ...]
    """Of the tensor; with `has_spread` it may have another first axis of 2: mean and log-variance."""
    has_spread: bool = False

    def to_array(self, tensor: Tensor) -> tuple[NDArray[Any], str]:
        """The bits of `tensor`, on the CPU and contiguous, and the name of its number format.

        Raises:
            CacheError: the tensor has other axes.
        """
        spread = self.has_spread and tensor.ndim == len(self.axes) + 1 and tensor.shape[0] == 2
        if tensor.ndim != len(self.axes) and not spread:
            raise CacheError(f"{self.name} has the axes {', '.join(self.axes)}, not {tuple(tensor.shape)}.")
        import torch

        bits = tensor.detach().cpu().contiguous()
        flat = bits.reshape(-1).view(torch.uint8).numpy().view(_WIDTHS[bits.dtype.itemsize])
        return flat.reshape(tensor.shape), str(tensor.dtype).removeprefix("torch.")


def to_tensor(payload: NDArray[np.uint8], dtype: str, shape: tuple[int, ...]) -> Tensor:
    """The tensor of a record: a view of its bytes that must not be written to."""
    import torch

    return torch.from_numpy(payload).view(getattr(torch, dtype)).view(shape)


def record_kinds() -> dict[str, RecordKind]:
    """All kinds by name."""
    import flowloom.data.cache.records as package

    modules = [name for _, name, _ in pkgutil.iter_modules(package.__path__) if name != "base"]
    kinds = [importlib.import_module(f"{package.__name__}.{name}").KIND for name in modules]
    return {kind.name: kind for kind in kinds}
