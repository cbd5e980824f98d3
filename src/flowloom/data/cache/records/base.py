"""A kind of record: the output of one sort of encoder, its axes, its numbers as bytes and back."""

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
    """One tensor a record. A module of this package has one in KIND; caches read and write any."""

    name: str
    """At most 16 letters, as it stands in the shards."""
    axes: tuple[str, ...]
    """Of the tensor; with `has_spread` it may have a first axis of 2 more: mean and log-variance."""
    has_spread: bool = False

    def to_array(self, tensor: Tensor) -> tuple[NDArray[Any], str]:
        """The bits of `tensor`, on the CPU and contiguous, and the name of its number format.

        Raises:
            CacheError: it has other axes than this kind.
        """
        spread = self.has_spread and tensor.ndim == len(self.axes) + 1 and tensor.shape[0] == 2
        if tensor.ndim != len(self.axes) and not spread:
            raise CacheError(f"{self.name} has the axes {', '.join(self.axes)}, not {tuple(tensor.shape)}.")
        import torch

        bits = tensor.detach().cpu().contiguous()
        flat = bits.reshape(-1).view(torch.uint8).numpy().view(_WIDTHS[bits.dtype.itemsize])
        return flat.reshape(tensor.shape), str(tensor.dtype).removeprefix("torch.")


def to_tensor(payload: NDArray[np.uint8], dtype: str, shape: tuple[int, ...]) -> Tensor:
    """The tensor of a record: a view of its bytes, not to be written to."""
    import torch

    return torch.from_numpy(payload).view(getattr(torch, dtype)).view(shape)


def record_kinds() -> dict[str, RecordKind]:
    """Every kind by name: a new one is a new file."""
    import flowloom.data.cache.records as package

    modules = [name for _, name, _ in pkgutil.iter_modules(package.__path__) if name != "base"]
    kinds = [importlib.import_module(f"{package.__name__}.{name}").KIND for name in modules]
    return {kind.name: kind for kind in kinds}
