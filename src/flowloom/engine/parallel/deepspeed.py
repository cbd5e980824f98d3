"""Sharded training by DeepSpeed's ZeRO: optimizer states (stage 1), gradients (2) and weights (3).

DeepSpeed sums and clips the gradients, and makes the updates; everything else is this engine's. Weights,
states and averages have the names and the format of any other run, so that runs can change their strategy.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from flowloom.config.run import RunConfig
from flowloom.engine.parallel.gradients import Gradients
from flowloom.engine.parallel.ranks import Ranks
from flowloom.engine.parallel.zero_settings import zero_settings
from flowloom.engine.state import Precision
from flowloom.errors import ConfigError, Problem
from flowloom.models.family import family_for

T = TypeVar("T")

MOMENTS = ("exp_avg", "exp_avg_sq")
"""States of AdamW beside the number of updates."""
COPY = "float32"
"""The copy of a bfloat16 weight that the update changes, as a state of the optimizer."""


def zero_network(
    config: RunConfig, ranks: Ranks, precision: Precision, attach: Callable[[nn.Module], T]
) -> tuple[nn.Module, T, ZeroShards]:
    """The network of `config` under ZeRO, and what `attach` made of it before.

    Raises:
        ConfigError: DeepSpeed is not installed, or refuses its settings.
    """
    deepspeed = open_deepspeed(precision.device)
    settings = zero_settings(config, precision)
    model = family_for(config.model).load_network(
        config.model.network_path, torch.device("cpu"), precision.compute
    )
    attached = attach(model)
    if settings["zero_optimization"]["stage"] < 3:
        return model.to(precision.device), attached, ZeroShards(model, ranks, settings)
    for weight in model.parameters():
        weight.data = weight.data.to(precision.compute)
    # Replaces the data of every weight by this rank's part.
    deepspeed.zero.Init(module=model, config_dict_or_path=settings, dtype=precision.compute)
    unchecked: Any = model
    # Each pass gathers weights from all ranks, so all of them must make equally many.
    unchecked.is_single_pass = True
    return model, attached, PartitionedShards(model, ranks, settings)


def open_deepspeed(device: torch.device) -> Any:
    """The package, connected to the ranks.

    Raises:
        ConfigError: it is not installed.
    """
    if importlib.util.find_spec("deepspeed") is None:
        message = "deepspeed is not installed: pip install 'flowloom[deepspeed]'."
        raise ConfigError("the configuration", [Problem("parallel.strategy", message)])
    os.environ.setdefault("DS_ACCELERATOR", device.type)
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    deepspeed: Any = importlib.import_module("deepspeed")
    deepspeed.init_distributed("nccl" if device.type == "cuda" else "gloo")
    return deepspeed


class ZeroShards:
    """Whole weights on each rank, with sharded optimizer states (stages 1 and 2); see `Shards`."""

    _extent: ClassVar = "full"
    """Of the states that DeepSpeed's functions read and write."""

    def __init__(self, model: nn.Module, ranks: Ranks, settings: Mapping[str, Any]):
        self._model, self._ranks, self._settings = model, ranks, settings
        self._training: ZeroTraining | None = None

    @property
    def files(self) -> None:
        """None: the first rank writes the parts of all."""

    def parts(self, weights: Mapping[str, nn.Parameter]) -> dict[str, nn.Parameter]:
        return dict(weights)

    def connect(
        self,
        trained: Mapping[str, nn.Parameter],
        parts: Mapping[str, nn.Parameter],
        optimizer: torch.optim.Optimizer,
    ) -> tuple[Gradients, torch.optim.Optimizer]:
        if self._training is None:
            weights = {id(part): trained[name] for name, part in parts.items() if name in trained}
            self._training = ZeroTraining(self, self._model, optimizer, weights, self._settings)
        return self._training, cast("torch.optim.Optimizer", self._training)

    def local(self, tensor: Tensor) -> Tensor:
        return tensor

    def whole(self, weight: nn.Parameter, part: Tensor) -> Tensor:  # noqa: ARG002 -- for partitions
        return part.to("cpu", copy=True) if self._ranks.is_first else part

    def joined(self, tensor: Tensor) -> Tensor:
        return tensor.detach().cpu()

    def part_of(self, weight: nn.Parameter, whole: Tensor) -> Tensor:  # noqa: ARG002 -- for partitions
        return whole

    def reshard(self) -> None:
        """Nothing: each rank has all of every weight."""

    def renew(self) -> None:
        self.reshard()
        if self._training:
            self._training.refresh()

    def state_of(self, weight: nn.Parameter, key: str) -> Tensor:
        """This rank's part of an optimizer state. Called by all ranks at once."""
        return self._access("get", weight, key).cpu()

    def set_state(self, weight: nn.Parameter, key: str, part: Tensor) -> None:
        """Replace this rank's part of an optimizer state."""
        self._access("set", weight, key, part)

    def _access(self, verb: str, weight: nn.Parameter, key: str, *part: Tensor) -> Any:
        utilities: Any = importlib.import_module("deepspeed.utils")
        if key == COPY:
            return getattr(utilities, f"safe_{verb}_{self._extent}_fp32_param")(weight, *part)
        return getattr(utilities, f"safe_{verb}_{self._extent}_optimizer_state")(weight, *part, key)


class PartitionedShards(ZeroShards):
    """Weights of which each rank keeps a part (stage 3): a flat piece, the last one filled up with zeros."""

    _extent: ClassVar = "local"

    def parts(self, weights: Mapping[str, nn.Parameter]) -> dict[str, nn.Parameter]:
        return {name: cast("Any", weight).ds_tensor for name, weight in weights.items()}

    def local(self, tensor: Tensor) -> Tensor:
        return getattr(tensor, "ds_tensor", tensor)

    def whole(self, weight: nn.Parameter, part: Tensor) -> Tensor:
        sharded = cast("Any", weight)
        if part.shape != sharded.ds_tensor.shape:
            return part  # such as the number of updates
        pieces = part.new_empty(len(part) * self._ranks.size)
        dist.all_gather(list(pieces.view(self._ranks.size, -1)), part.detach().contiguous())
        return pieces[: sharded.ds_numel].view(sharded.ds_shape).cpu()

    def joined(self, tensor: Tensor) -> Tensor:
        return self.whole(cast("nn.Parameter", tensor), self.local(tensor))

    def part_of(self, weight: nn.Parameter, whole: Tensor) -> Tensor:
        sharded = cast("Any", weight)
        if whole.shape != sharded.ds_shape:
            return whole
        size = len(sharded.ds_tensor)
        piece = whole.flatten()[size * self._ranks.rank :][:size]
        return nn.functional.pad(piece, (0, size - len(piece)))

    def reshard(self) -> None:
        for weight in cast("list[Any]", list(self._model.parameters())):
            if weight.ds_status.name == "AVAILABLE":
                weight.partition()


class ZeroTraining:
    """DeepSpeed's engine as gradients (see `Gradients`) and as an optimizer with states by weight."""

    def __init__(
        self,
        shards: ZeroShards,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        weights: Mapping[int, nn.Parameter],
        settings: Mapping[str, Any],
    ):
        self._shards, self._size = shards, dist.get_world_size()
        self.param_groups: list[dict[str, Any]] = [{**group} for group in optimizer.param_groups]
        for group in optimizer.param_groups:
            group["params"] = [weights[id(part)] for part in group["params"]]
        self._weights = [weight for group in optimizer.param_groups for weight in group["params"]]
        deepspeed: Any = importlib.import_module("deepspeed")
        self._engine: Any = deepspeed.initialize(
            model=model, optimizer=_offloaded(optimizer, settings), config=settings, dist_init_required=False
        )[0]
        self._norm = torch.zeros(())
        self._keys = (*MOMENTS, *((COPY,) if settings["bf16"]["enabled"] else ()))
        self._make_states()

    def _make_states(self) -> None:
        """Let every state exist, so that it can be loaded; DeepSpeed makes them in the first update."""
        zero, inner = self._engine.optimizer, self._engine.optimizer.optimizer
        in_groups = [buffer for group in inner.param_groups for buffer in group["params"]]
        # Stage 3 adds them to the groups during an update only.
        for buffer in getattr(zero, "fp32_partitioned_groups_flat", in_groups):
            if not inner.state[buffer]:
                step = torch.zeros((), device=buffer.device) if isinstance(inner, torch.optim.AdamW) else 0
                inner.state[buffer] = {"step": step} | {key: torch.zeros_like(buffer) for key in MOMENTS}
        if hasattr(zero, "_lazy_init_hp_params_optimizer_state"):
            # Otherwise after the update of the first group, when those of the other groups have no states.
            zero._lazy_init_hp_params_optimizer_state()

    @property
    def _states(self) -> Mapping[Any, dict[str, Any]]:
        """The states of DeepSpeed's flat buffers."""
        return self._engine.optimizer.optimizer.state

    def backward(self, loss: Tensor, *, is_last: bool) -> None:
        engine = self._engine
        engine.set_gradient_accumulation_boundary(is_last)
        # The network is called directly, so that the engine does not see its output.
        engine.optimizer.clear_backward_seen_flag()
        engine._backward_prologue()
        # It averages; the loss is already divided by the weight of the whole update.
        engine.backward(loss * self._size, scale_wrt_gas=False)

    def finish(self, max_norm: float | None) -> Tensor:  # noqa: ARG002 -- it is in the settings
        """The norm that `step` will have found: DeepSpeed clips in its update."""
        self._norm = torch.zeros(())
        return self._norm

    def close(self) -> None:
        """Nothing: the hooks are DeepSpeed's, for the whole run."""

    def step(self) -> None:
        """Clip, update, and let every rank have the new weights."""
        for mine, group in zip(self.param_groups, self._engine.optimizer.param_groups, strict=True):
            group["lr"] = mine["lr"]
        self._engine.step()
        self._norm.fill_(float(self._engine.get_global_grad_norm()))

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Nothing: `step` does it."""

    def refresh(self) -> None:
        """Copy the weights into the float32 copies that the update changes."""
        self._engine.optimizer.refresh_fp32_params()

    def state_dict(self) -> dict[str, Any]:
        """The states of this rank's parts by the number of the weight."""
        step = torch.as_tensor(next(iter(self._states.values()))["step"], dtype=torch.float32).cpu()
        if not step:
            return {"state": {}, "param_groups": self.param_groups}
        states = {
            number: {"step": step.clone()} | {key: self._shards.state_of(weight, key) for key in self._keys}
            for number, weight in enumerate(self._weights)
        }
        return {"state": states, "param_groups": self.param_groups}

    def load_state_dict(self, content: Mapping[str, Any]) -> None:
        """Load states of this rank's parts."""
        for number, weight in enumerate(self._weights):
            # A run of another strategy has no copies: the weights are loaded already.
            known = content["state"].get(number, {})
            for key in known.keys() & set(self._keys):
                self._shards.set_state(weight, key, known[key])
        steps = {float(state["step"]) for state in content["state"].values()}
        for state in self._states.values():
            step = state["step"]
            state["step"] = step.fill_(max(steps, default=0)) if isinstance(step, Tensor) else int(max(steps))


def _offloaded(optimizer: torch.optim.Optimizer, settings: Mapping[str, Any]) -> Any:
    """DeepSpeed's own AdamW if the states are in host memory, else `optimizer`."""
    target: Mapping[str, Any] = settings["zero_optimization"].get("offload_optimizer") or {}
    if target.get("device", "none") == "none":
        return optimizer
    adam: Any = importlib.import_module("deepspeed.ops.adam")
    chosen: dict[str, Any] = {key: optimizer.defaults[key] for key in ("lr", "betas", "eps", "weight_decay")}
    groups = [{key: group[key] for key in ("params", *chosen)} for group in optimizer.param_groups]
    return adam.DeepSpeedCPUAdam(groups, adamw_mode=True, **chosen)
