"""Sharded training by PyTorch's FSDP2: each rank keeps a part of every weight, and the states for that part.

A block's weights are gathered shortly before it runs, forwards and backwards, and freed after it. Its
gradients are then summed over the ranks, each rank receiving its part. Optimizer, average and clipping see
plain tensors, the parts: they do not know that a network is sharded.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
)
from torch.distributed.tensor import DTensor

from flowloom.config.run import ADAPTERS, RunConfig
from flowloom.engine.memory import streamed_blocks
from flowloom.engine.parallel.ranks import Ranks
from flowloom.engine.parallel.shards import FileShards
from flowloom.engine.state import Precision
from flowloom.engine.trainable import trainable_names, trained_names
from flowloom.models.family import family_for
from flowloom.models.weights import Weights, check_names

T = TypeVar("T")

PREFETCHED = 2
"""Blocks whose weights are gathered while the one before them computes."""


class FsdpShards:
    """The weights of a network under FSDP2; see `Shards`. Each rank writes its parts of a checkpoint."""

    def __init__(self, model: nn.Module, mesh: DeviceMesh):
        self._model = cast("FSDPModule", model)
        self._modules = [module for module in model.modules() if isinstance(module, FSDPModule)]
        self._group = mesh.get_group("shard")
        is_on_cpu = mesh.device_type == "cpu"
        self._host_mesh = (
            mesh if is_on_cpu else DeviceMesh("cpu", mesh.mesh, mesh_dim_names=mesh.mesh_dim_names)
        )
        self._place, self._num = self._group.rank(), self._group.size()

    @property
    def files(self) -> FileShards:
        return self

    def parts(self, weights: Mapping[str, nn.Parameter]) -> dict[str, nn.Parameter]:
        """Plain tensors of some rows, perhaps none."""
        return {
            name: nn.Parameter(_part(weight.detach()), requires_grad=False)
            for name, weight in weights.items()
        }

    def connect(
        self,
        trained: Mapping[str, nn.Parameter],
        parts: Mapping[str, nn.Parameter],
        optimizer: torch.optim.Optimizer,
    ) -> tuple[ShardedGradients, torch.optim.Optimizer]:
        pairs = [(weight, parts[name]) for name, weight in trained.items()]
        return ShardedGradients(self._model, self._group, pairs), optimizer

    def local(self, tensor: Tensor) -> Tensor:
        return _part(tensor)

    def whole(self, weight: nn.Parameter, part: Tensor) -> Tensor:
        sharded = cast("DTensor", weight)
        if part.shape != _part(weight).shape:
            return part  # such as the number of updates
        whole = DTensor.from_local(
            part.to(sharded.device),
            sharded.device_mesh,
            sharded.placements,
            run_check=False,
            shape=sharded.shape,
            stride=sharded.stride(),
        )
        return self.joined(whole)

    def placed(self, weight: nn.Parameter, part: Tensor) -> Tensor:
        sharded = cast("DTensor", weight)
        return DTensor.from_local(
            part,
            self._host_mesh,
            sharded.placements,
            run_check=False,
            shape=sharded.shape,
            stride=sharded.stride(),
        )

    def joined(self, tensor: Tensor) -> Tensor:
        return cast("DTensor", tensor).full_tensor().cpu()

    def part_of(self, weight: nn.Parameter, whole: Tensor) -> Tensor:
        if whole.shape != weight.shape:
            return whole
        num_rows = -(-len(whole) // self._num)
        return whole[num_rows * self._place :][:num_rows].clone()

    def reshard(self) -> None:
        """Free gathered weights: those outside of blocks stay gathered after a pass without gradients."""
        for module in self._modules:
            module.reshard()

    def renew(self) -> None:
        for module in self._modules:
            module.unshard()
            module.reshard()


class ShardedGradients:
    """Gradients that are summed over the ranks while the backward pass runs; see `Gradients`."""

    def __init__(
        self, model: FSDPModule, group: dist.ProcessGroup, pairs: Iterable[tuple[nn.Parameter, nn.Parameter]]
    ):
        self._model, self._group, self._pairs = model, group, list(pairs)

    def backward(self, loss: Tensor, *, is_last: bool) -> None:
        # Groups of ranks that have the same shards exchange their sums once for each update.
        self._model.set_requires_all_reduce(is_last)
        loss.backward()

    def finish(self, max_norm: float | None) -> Tensor:
        """Give each part its gradient, and clip by the norm over all parts."""
        for weight, part in self._pairs:
            part.grad = None if weight.grad is None else _part(weight.grad)
            weight.grad = None
        gradients = [part.grad for _, part in self._pairs if part.grad is not None]
        square = nn.utils.get_total_norm(gradients).double().square()
        dist.all_reduce(square, group=self._group)
        norm = square.sqrt().float()
        if max_norm is not None:
            nn.utils.clip_grads_with_norm_([part for _, part in self._pairs], max_norm, norm)
        return norm

    def close(self) -> None:
        """Nothing: the hooks are the network's."""


def shard_network(
    config: RunConfig, ranks: Ranks, precision: Precision, attach: Callable[[nn.Module], T]
) -> tuple[nn.Module, T, FsdpShards]:
    """The network of `config`, sharded over the ranks; and what `attach` made of it before.

    Until a block is sharded, its weights are views of the file: pages of memory that the ranks of a machine
    share. The device holds one whole block at a time.
    """
    mesh = make_mesh(config, ranks, precision.device)
    family = family_for(config.model)
    model = _mapped(config, precision.compute)
    attached = attach(model)
    is_adapter = config.method_kind in ADAPTERS
    wide: set[int] = set() if is_adapter else _ever_trained(config, model)
    policy = MixedPrecisionPolicy(
        # An adapter's weights are few, and the changes of DoRA's scales are smaller than bfloat16's digits.
        param_dtype=None if is_adapter else precision.compute,
        reduce_dtype=torch.float32,
        cast_forward_inputs=False,
    )
    blocks = [block for _, block in family.blocks(model)]
    on_host = _on_host(config, model, blocks)
    host = CPUOffloadPolicy(pin_memory=precision.device.type == "cuda")
    # Some of diffusers' blocks return two views of a tensor; no network changes them in place.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view", category=UserWarning)
    for module in (*blocks, model):
        for weight in module.parameters():
            if not isinstance(weight, DTensor):
                dtype = precision.trained if id(weight) in wide else weight.dtype
                weight.data = weight.data.to(precision.device, dtype, copy=True).contiguous()
        for place, buffer in list(module.named_buffers()):
            owner, _, name = place.rpartition(".")
            setattr(module.get_submodule(owner), name, buffer.to(precision.device))
        offload = host if module in on_host else OffloadPolicy()
        fully_shard(module, mesh=mesh, mp_policy=policy, offload_policy=offload)
    _connect(cast("FSDPModule", model), cast("list[FSDPModule]", blocks))
    # Each pass gathers weights from all ranks, so all of them must make equally many.
    unchecked: Any = model
    unchecked.is_single_pass = True
    return model, attached, FsdpShards(model, mesh)


def _on_host(config: RunConfig, model: nn.Module, blocks: Sequence[nn.Module]) -> set[nn.Module]:
    """Modules whose parts stay in host memory and are copied to the device before they are gathered.

    The optimizer updates each part where it is.
    """
    count = config.memory.streamed_blocks
    if config.optimizer.device == "cpu":
        return {model, *blocks}
    return set() if count in ("auto", 0) else set(streamed_blocks(count, blocks))


def make_mesh(config: RunConfig, ranks: Ranks, device: torch.device) -> DeviceMesh:
    """The ranks as one row of shards, or as rows of `parallel.shard_ranks` with the same shards."""
    in_row = config.parallel.shard_ranks or ranks.size
    if in_row == ranks.size:
        return init_device_mesh(device.type, (in_row,), mesh_dim_names=("shard",))
    sides = ranks.size // in_row, in_row
    return init_device_mesh(device.type, sides, mesh_dim_names=("replicate", "shard"))


def _mapped(config: RunConfig, dtype: torch.dtype) -> nn.Module:
    """The network with its weights in the file; those in another number format than `dtype` are copied."""
    load = family_for(config.model).load_network
    return load(config.model.network_path, torch.device("cpu"), dtype, _assign_views)


def _assign_views(
    module_on_meta: nn.Module, weights: Weights, _device: torch.device, dtype: torch.dtype
) -> None:
    """In place of `assign_weights`, which copies every weight."""
    check_names(module_on_meta, weights)
    views = {name: weights[name].to(dtype) for name in module_on_meta.state_dict()}
    module_on_meta.load_state_dict(views, assign=True)


def _ever_trained(config: RunConfig, model: nn.Module) -> set[int]:
    """Identities of the weights that are trained now or, in a rotation, at any time."""
    weights = dict(model.named_parameters())
    if config.method_kind == "rotation":
        names = trainable_names(config, list(weights))
    else:
        names = trained_names(config, list(weights), 0)
    return {id(weights[name]) for name in names}


def _connect(model: FSDPModule, blocks: Sequence[FSDPModule]) -> None:
    """Set what is gathered ahead, and that gradients are added up on every backend."""
    for module in (model, *blocks):
        # The loss is already divided by the weight of the whole update. Without both, NCCL averages.
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)
    model.set_modules_to_forward_prefetch([*blocks[:PREFETCHED]])
    for index, block in enumerate(blocks):
        after, before = blocks[index + 1 :], blocks[:index]
        block.set_modules_to_forward_prefetch([*after[:PREFETCHED]])
        block.set_modules_to_backward_prefetch([*before[: -PREFETCHED - 1 : -1]])


def _part(tensor: Tensor) -> Tensor:
    return cast("DTensor", tensor).to_local()
