"""Trained weights that get no gradient: they do not change, and the loss alone does not show it."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils.hooks import RemovableHandle

from flowloom.engine.state import TrainState
from flowloom.models.family import family_of

WATCHED_STEPS = 5
"""An adapter's second factor gets a gradient in the first step, its first factor in the second."""
SHOWN = 3


class Finding(NamedTuple):
    """A warning about the gradients."""

    message: str
    hint: str


class GradientWatch:
    """Records in a session's first steps which trained weights get a gradient."""

    def __init__(self, state: TrainState):
        self._state, self._rotation, self._num_steps = state, state.rotation, 0
        self._seen = {
            name: torch.zeros((), dtype=torch.bool, device=state.precision.device) for name in state.trained
        }
        # Hooks that run before any that take the gradient from the weight.
        self._hooks: list[RemovableHandle] = [
            self._watch(name, weight) for name, weight in state.trained.items()
        ]

    def _watch(self, name: str, weight: nn.Parameter) -> RemovableHandle:
        if not isinstance(weight, DTensor):
            return cast("RemovableHandle", weight.register_hook(partial(self._see, name)))

        def see_part(weight: Tensor) -> None:
            if weight.grad is not None:
                self._see(name, self._state.part(weight.grad))

        return cast("RemovableHandle", weight.register_post_accumulate_grad_hook(see_part))

    def _see(self, name: str, gradient: torch.Tensor) -> None:
        if self._state.rotation == self._rotation:
            self._seen[name] |= gradient.any().to(self._seen[name].device)

    def after_step(self, *, is_last: bool = False) -> Finding | None:
        """The warning after the first steps; None before, and if there is nothing to report."""
        # A run that resumes between two rotations trains other weights from its first step.
        is_watched = self._state.rotation == self._rotation
        self._num_steps += is_watched and not is_last
        is_early = self._num_steps < WATCHED_STEPS and is_watched and not is_last
        if not self._hooks or not self._num_steps or is_early:
            return None
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        flags = self._state.ranks.sum(torch.stack([flag.float() for flag in self._seen.values()]))
        received = cast("list[float]", flags.tolist())
        missing = [name for name, got in zip(self._seen, received, strict=True) if not got]
        if self._state.adapter and self._num_steps == 1 and len(missing) < len(self._seen):
            return None  # see WATCHED_STEPS on first factors
        return self._finding(missing) if missing else None

    def _finding(self, missing: list[str]) -> Finding:
        steps = "the first step" if self._num_steps == 1 else f"the first {self._num_steps} steps"
        if has_zero_last_layer(self._state):
            model = self._state.config.model
            return Finding(
                f"{len(missing):,} of {len(self._seen):,} trained weights got no gradient in {steps}: the "
                f"final layer of {model.network_path} is all zeros, as in a network that was never trained.",
                f"Nothing is learned. Choose a trained base model in model.{model.network_key}.",
            )
        if len(missing) == len(self._seen):
            return Finding(
                f"None of {len(missing):,} trained weights got a gradient in {steps}: nothing is learned.",
                "Check that the base model is a trained one, and which parts lora.target_layers or "
                "training.trained_layer_keywords name.",
            )
        names = ", ".join(missing[:SHOWN]) + (", ..." if missing[SHOWN:] else "")
        return Finding(
            f"{len(missing):,} of {len(self._seen):,} trained weights got no gradient in {steps} and do "
            f"not change: {names}.",
            "Exclude them from lora.target_layers or training.trained_layer_keywords.",
        )


def has_zero_last_layer(state: TrainState) -> bool:
    """True if the layer that makes the velocity is all zeros: nothing before it gets a gradient."""
    model, family = state.model, family_of(state.model)
    layer = family.last_layer
    if family.names.has_diffusers_layers:
        (layer,) = family.names.to_diffusers(layer)
    names = {f"{layer}.weight", f"{layer}.base_layer.weight"}  # the second: within an adapter
    return any(
        not state.joined(weight.detach()).any() for name, weight in model.named_parameters() if name in names
    )
