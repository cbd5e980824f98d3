"""AdamW on bf16 weights that are rounded stochastically."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


def round_stochastically_(target: Tensor, values: Tensor, generator: torch.Generator) -> None:
    """Write float32 `values` into bf16 `target`, up or down at random, so that the mean is `values`.

    bf16 is the upper half of float32's bits. A uniform 16-bit number added to the lower half carries into
    the upper one with exactly the probability that the lower half stands for; the lower half is then
    left behind (Zamirai et al. 2020, arXiv:2010.06192). Uses `values` as scratch.
    """
    bits = values.contiguous().view(-1).view(torch.int32)
    noise = torch.empty_like(bits).random_(0, 1 << 16, generator=generator)
    upper_halves = bits.add_(noise).view(torch.bfloat16)[1::2]  # little-endian
    target.copy_(upper_halves.view(values.shape))


class StochasticAdamW(torch.optim.Optimizer):
    """AdamW whose bf16 weights (and bf16 moments) keep updates smaller than their last digit, on average.

    The noise depends only on the parameter's place and its number of updates: training resumed from a saved
    state is rounded as it would have been without the interruption. float32 weights are not rounded.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        betas: tuple[float, float],
        eps: float,
        moments_dtype: torch.dtype,
    ):
        self.moments_dtype = moments_dtype
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0})
        parameters = (parameter for group in self.param_groups for parameter in group["params"])
        # Kept, because a weight may be updated alone.
        self._places = {id(parameter): place for place, parameter in enumerate(parameters)}

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Update every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        generators: dict[torch.device, torch.Generator] = {}
        parameters = ((group, parameter) for group in self.param_groups for parameter in group["params"])
        for group, parameter in parameters:
            if parameter.grad is not None:
                device = parameter.device
                generator = generators.setdefault(device, torch.Generator(device))
                self._update(parameter, group, generator)
        return loss

    def _update(self, parameter: Tensor, group: dict[str, Any], generator: torch.Generator) -> None:
        """One parameter at a time: the float32 copies then take the memory of the largest one, not of all."""
        assert parameter.grad is not None
        state = self.state[parameter]
        if not state:
            state["step"] = torch.tensor(0.0)
            state["exp_avg"] = torch.zeros_like(parameter, dtype=self.moments_dtype)
            state["exp_avg_sq"] = torch.zeros_like(parameter, dtype=self.moments_dtype)
        state["step"] += 1
        step, (beta1, beta2) = int(state["step"]), group["betas"]
        # The CPU's generator reads 32 bits of a seed; an odd factor spreads the steps over all of them.
        generator.manual_seed((step * 0x9E3779B1 + self._places[id(parameter)]) % 2**32)
        gradient = parameter.grad.float()
        mean = state["exp_avg"].float().lerp_(gradient, 1 - beta1)
        square = state["exp_avg_sq"].float().mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        root = square.sqrt().div_((1 - beta2**step) ** 0.5).add_(group["eps"])
        weights = parameter.float() * (1 - group["lr"] * group["weight_decay"])
        weights.addcdiv_(mean, root, value=-group["lr"] / (1 - beta1**step))
        for target, values in (
            (parameter, weights),
            (state["exp_avg"], mean),
            (state["exp_avg_sq"], square),
        ):
            _store(target, values, generator)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a state; torch would round float32 moments to the dtype of a bf16 parameter."""
        super().load_state_dict(state_dict)
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        indices = [index for group in state_dict["param_groups"] for index in group["params"]]
        for parameter, index in zip(parameters, indices, strict=True):
            for name in ("exp_avg", "exp_avg_sq") if index in state_dict["state"] else ():
                saved = state_dict["state"][index][name]
                self.state[parameter][name] = saved.to(parameter.device, self.moments_dtype, copy=True)


def _store(target: Tensor, values: Tensor, generator: torch.Generator) -> None:
    if target.dtype is torch.bfloat16:
        round_stochastically_(target, values, generator)
    elif target is not values:
        target.copy_(values)
