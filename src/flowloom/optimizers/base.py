"""Base classes of optimizers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from flowloom.schema import Section

if TYPE_CHECKING:
    import torch


class OptimizerSpec(Section):
    """An optimizer's own settings; `training.lr` and `training.weight_decay` come from FLOW's section."""

    is_elementwise: ClassVar[bool] = False
    """True if the update of an element depends on no other element: a part of a weight is then updated as it
    would be in the whole, and weights can be sharded."""

    max_grad_norm: Annotated[float, Field(gt=0)] | None = None
    """Clip the global gradient norm; null: never, as FLOW."""
    device: Literal["auto", "cpu"] = "auto"
    """cpu: keep the optimizer's states, and float32 copies of the trained weights, in host memory and update
    there. auto: on the device of the weights."""

    def build(self, groups: list[dict[str, object]], lr: float) -> torch.optim.Optimizer:
        """The optimizer over parameter `groups`, each `{"params": [...], "weight_decay": w}`.

        Its `state_dict` survives `torch.save` and `torch.load(weights_only=True)`, and training
        resumes from it bit for bit.

        Raises:
            ConfigError: the device or the installation does not support this optimizer.
        """
        raise NotImplementedError


class AdamSettings(Section):
    """Settings of every kind of Adam."""

    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    """Decay of the first and second moment."""
    eps: Annotated[float, Field(gt=0)] = 1e-8
    """Added to the root of the second moment."""
