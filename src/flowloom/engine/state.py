"""The state of a run in memory: network, trained weights, optimizer, average, position."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from flowloom.config.run import RunConfig
from flowloom.engine.ema import Ema
from flowloom.engine.lr import lr_factor
from flowloom.engine.objective import Objective
from flowloom.engine.offload.copies import copies_to
from flowloom.engine.offload.early import FusedGradients
from flowloom.engine.offload.host_gradients import HostGradients, HostSetup
from flowloom.engine.offload.host_weights import HostWeights
from flowloom.engine.offload.streaming import BlockStreamer
from flowloom.engine.parallel.gradients import Gradients, LocalGradients, gradients_of
from flowloom.engine.parallel.ranks import ALONE, Ranks
from flowloom.engine.parallel.shards import FileShards, Shards
from flowloom.engine.position import Position
from flowloom.engine.trainable import rotation_at, trained_names
from flowloom.json_types import is_object
from flowloom.models.adapters.adapter import Adapter


class Precision(NamedTuple):
    """The device and number formats of the network."""

    device: torch.device
    compute: torch.dtype
    """Of the frozen weights and the arithmetic."""
    trained: torch.dtype
    """Of the trained weights on the device."""

    def autocast(self) -> AbstractContextManager[Any]:
        """Compute in bfloat16 if any weights are in it."""
        enabled = torch.bfloat16 in (self.compute, self.trained)
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=enabled)


def choose_precision(config: RunConfig, device: torch.device) -> Precision:
    """Number formats by `parallel.dtype` and `parallel.trained_dtype`."""
    formats = {"bf16": torch.bfloat16, "fp32": torch.float32}
    compute = formats.get(config.parallel.dtype, torch.bfloat16 if device.type == "cuda" else torch.float32)
    # A host optimizer and DeepSpeed have float32 copies: the device needs the weights for computation only.
    strategy = config.parallel.strategy
    has_copies = strategy == "deepspeed" or (config.optimizer.device == "cpu" and strategy != "fsdp")
    default = compute if has_copies else torch.float32
    if config.optimizer.kind == "adamw_bf16":
        default = torch.bfloat16
    return Precision(device, compute, formats.get(config.parallel.trained_dtype, default))


class Network(NamedTuple):
    """A network in memory."""

    model: nn.Module
    adapter: Adapter | None = None
    """The adapter that is trained in place of the model's weights."""
    streamer: BlockStreamer | None = None
    """Holds weights in host memory."""
    shards: Shards | None = None
    """Set if the weights are sharded over the ranks."""


class TrainState:
    """Everything that an update changes or needs."""

    def __init__(
        self,
        config: RunConfig,
        network: Network,
        objective: Objective,
        precision: Precision,
        ranks: Ranks,
    ):
        self.config = config
        self.model, self.adapter, self.streamer, self.shards = network
        self.objective = objective
        self.precision = precision
        self.ranks = ranks
        self.sharers = ranks if self.shards else ALONE
        """The ranks that share the network's weights, and make each pass through it together."""
        self.position = Position()
        on_host = config.optimizer.device == "cpu" and not self.shards
        keeps_average_on_cpu = config.optimizer.device == "cpu" or config.ema.device == "cpu"
        self.ema = Ema(config.ema.decay, keeps_average_on_cpu) if config.ema.decay is not None else None
        self.weights: dict[str, nn.Parameter] = (
            self.adapter.parameters if self.adapter else dict(self.model.named_parameters())
        )
        """Every weight that may ever be trained, by the checkpoint's name."""
        self.parts = self.shards.parts(self.weights) if self.shards else self.weights
        """This rank's part of each weight: what the optimizer and the average change."""
        self.parked: dict[str, dict[str, Any]] = {}
        """Rotation: optimizer states of weights that are not trained now, on the CPU."""
        self.rotation = -1
        self.trained: dict[str, nn.Parameter] = {}
        self.host = self._host_weights() if on_host else None
        """Copies that the optimizer updates in place of the trained weights."""
        self.is_fused = config.memory.fused_backward
        """True if weights are updated within the backward pass."""
        self.gradients: Gradients = LocalGradients(())
        self.apply_update: Callable[[], None] = self._step
        """Makes the update that the gradients are ready for, and frees them."""
        self.optimizer: torch.optim.Optimizer
        self.is_whole = True
        """True if weights, optimizer, average and position are of the same step."""
        self.shield: Callable[[], AbstractContextManager[None]] = nullcontext
        """Entered around each update: a stop must not interrupt it."""
        self.rotate_if_due()

    @property
    def exact_weights(self) -> dict[str, nn.Parameter]:
        """Every weight that may ever be trained, in the precision of its update."""
        return {**self.parts, **(self.host.copies if self.host else {})}

    @contextmanager
    def averaged(self) -> Generator[None]:
        """Put the averaged weights in place of the trained ones, within a `with` block."""
        assert self.ema
        self.release()
        with self.ema.swapped_in(self.parts):
            try:
                yield
            finally:
                self.release()

    @property
    def runs_network(self) -> bool:
        """True if this rank takes part when the network runs outside of training."""
        return self.ranks.is_first or self.shards is not None

    def part(self, tensor: Tensor) -> Tensor:
        """This rank's part of a weight or its gradient; all of it where the network is not sharded."""
        return self.shards.local(tensor) if self.shards else tensor

    def whole(self, weight: nn.Parameter, part: Tensor) -> Tensor:
        """The whole of `part`, which has the shape of this rank's part of `weight`; by all ranks at once."""
        return self.shards.whole(weight, part) if self.shards else part

    @property
    def file_shards(self) -> FileShards | None:
        """Set if each rank writes its part of a checkpoint. Of adapters, the first rank writes all."""
        return self.shards.files if self.shards and self.adapter is None else None

    def joined(self, tensor: Tensor) -> Tensor:
        """The whole of a weight, by all ranks at once."""
        return self.shards.joined(tensor) if self.shards else tensor

    def part_of(self, name: str, value: Any) -> Any:
        """This rank's part of an average or of an optimizer's state, nested or not, of the weight `name`."""
        if self.shards is None:
            return value
        if is_object(value):
            return {key: self.part_of(name, inner) for key, inner in value.items()}
        return self.shards.part_of(self.weights[name], value) if isinstance(value, Tensor) else value

    def release(self) -> None:
        """Let every weight be writable: none refers to a buffer that streaming overwrites, or is gathered."""
        if self.streamer:
            self.streamer.release()
        if self.shards:
            self.shards.reshard()

    @contextmanager
    def updating(self) -> Generator[None]:
        """Within this context, weights and position change from one step to the next."""
        with self.shield():
            self.is_whole = False
            yield
            self.is_whole = True

    def rotate_if_due(self) -> None:
        """Train the weights of the current step's rotation; without rotation, choose them once."""
        rotation = rotation_at(self.config, self.position.step)
        if rotation != self.rotation:
            if self.rotation >= 0:
                self._park()
            self.start_rotation(rotation)

    def start_rotation(self, rotation: int) -> None:
        """Train the weights of `turn` with a new optimizer."""
        self.rotation = rotation
        names = (
            list(self.weights) if self.adapter else trained_names(self.config, list(self.weights), rotation)
        )
        self.gradients.close()
        self._select(names)
        self.optimizer = self._make_optimizer()
        self._connect_gradients()
        self._unpark()

    def set_lr(self) -> float:
        """Set and return the learning rate of the next update."""
        lr = self._lr
        for group in self.optimizer.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(lr)
            else:
                group["lr"] = lr
        return lr

    @property
    def _lr(self) -> float:
        step = self.position.step
        since = None
        if self.config.method_kind == "rotation" and self.config.method.rotation_states == "reset":
            assert self.config.training.change_layer_every is not None
            since = step % self.config.training.change_layer_every + 1
        return self.config.training.lr * lr_factor(self.config, step + 1, self.position.progress, since)

    def _select(self, names: list[str]) -> None:
        chosen = set(names)
        self.release()
        # With kept rotation states the float32 weights stay, or each rotation would round them.
        kept = self.parked.keys() - chosen
        if self.host:
            self.host.follow(self.weights, names, sorted(kept))
        for name, weight in self.weights.items():
            is_trained = name in chosen
            wanted = self.precision.trained if is_trained else self.precision.compute
            # A checkpoint that is written now may refer to a frozen weight, which must not change under it.
            needs_copy = is_trained and not weight.requires_grad
            weight.requires_grad_(is_trained)
            weight.grad = None
            if not self.adapter and (self.host or name not in kept):
                self._convert(name, wanted, needs_copy=needs_copy)
        if self.streamer:
            self.streamer.adopt()
        if self.shards and self.trained:
            self.shards.renew()
        self.trained = {name: self.weights[name] for name in names}
        if self.ema:
            self.ema.follow(self.updated)

    def _convert(self, name: str, dtype: torch.dtype, *, needs_copy: bool) -> None:
        if not self.shards:
            self.weights[name].data = self.weights[name].data.to(dtype, copy=needs_copy)
        elif name in self.trained:
            # A sharded weight keeps its format; its numbers are rounded as those of one device.
            self.parts[name].data.copy_(self.parts[name].data.to(dtype))

    @property
    def updated(self) -> dict[str, nn.Parameter]:
        """The weights that the optimizer updates, by name: the trained ones, their parts or host copies."""
        weights = self.exact_weights
        return {name: weights[name] for name in self.trained}

    def _host_weights(self) -> HostWeights:
        if self.adapter:
            return HostWeights(None)
        rounds = self.config.optimizer.kind == "adamw_bf16"
        return HostWeights(self.precision.trained if rounds else torch.float32)

    def _connect_gradients(self) -> None:
        """Connect the trained weights with the optimizer, by way of the device, the ranks or the host."""
        if self.host:
            copies = copies_to(self.precision.device, "optimizer.device")
            setup = HostSetup(copies, self.ranks, self.streamer, self.is_fused)
            early = HostGradients(self.trained, self.updated, self.optimizer, setup)
        elif self.is_fused:
            early = FusedGradients(list(self.trained.values()), self.optimizer)
        else:
            self.gradients, self.apply_update = self._connect_ranks(), self._step
            return
        self.gradients, self.apply_update = early, early.apply

    def _connect_ranks(self) -> Gradients:
        if self.shards is None:
            return gradients_of(self.ranks, self.trained.values())
        gradients, self.optimizer = self.shards.connect(self.trained, self.parts, self.optimizer)
        return gradients

    def _step(self) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def _make_optimizer(self) -> torch.optim.Optimizer:
        decay, updated = self.config.training.weight_decay, self.updated
        plain = [p for name, p in updated.items() if "bias" in name or "norm" in name]
        decayed = [p for name, p in updated.items() if not ("bias" in name or "norm" in name)]
        groups: list[dict[str, object]] = [
            {"params": decayed, "weight_decay": decay},
            {"params": plain, "weight_decay": 0.0},
        ]
        return self.config.optimizer.build(
            [group for group in groups if group["params"]], self.config.training.lr
        )

    def optimizer_states(self) -> dict[str, dict[str, Any]]:
        """The optimizer's state of each trained weight, by name."""
        states = self.optimizer.state_dict()["state"]
        return {name: states[i] for i, name in enumerate(self._optimizer_order()) if i in states}

    def load_optimizer_states(self, states: Mapping[str, dict[str, Any]]) -> None:
        """Load optimizer states by name; weights without one start from zero."""
        whole = self.optimizer.state_dict()
        order = self._optimizer_order()
        whole["state"] = {i: states[name] for i, name in enumerate(order) if name in states}
        self.optimizer.load_state_dict(whole)

    def _optimizer_order(self) -> list[str]:
        names = {id(weight): name for name, weight in self.updated.items()}
        return [names[id(p)] for group in self.optimizer.param_groups for p in group["params"]]

    def _park(self) -> None:
        if self.config.method.rotation_states == "keep":
            states = self.optimizer_states()
            self.parked |= {name: _on_cpu(state) for name, state in states.items()}

    def _unpark(self) -> None:
        # Copies: on a CPU the optimizer would change the parked tensors, which a checkpoint may refer to.
        known = {name: _on_cpu(self.parked[name]) for name in self.trained if name in self.parked}
        if known:
            self.load_optimizer_states(known)


def _on_cpu(state: Any) -> Any:
    """A copy of an optimizer's state, which may be nested, on the CPU."""
    if is_object(state):
        return {key: _on_cpu(value) for key, value in state.items()}
    return state.to("cpu", copy=True) if isinstance(state, Tensor) else state
