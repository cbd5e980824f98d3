"""What every optimizer part is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from flowloom.parts.base import Section

if TYPE_CHECKING:
    import torch


class OptimizerSpec(Section):
    """An optimizer and its own settings; `training.lr` and `training.weight_decay` come from FLOW's section."""

    max_grad_norm: Annotated[float, Field(gt=0)] | None = None
    """Clip the global gradient norm; null: never, as FLOW."""

    def build(self, groups: list[dict[str, object]], lr: float) -> torch.optim.Optimizer:
        """The optimizer over parameter `groups`, each `{"params": [...], "weight_decay": w}`.

        Raises:
            ConfigError: the device or the installation lacks what this optimizer needs.
        """
        raise NotImplementedError
