"""Classifier-free guidance (Ho & Salimans 2022, arXiv:2207.12598)."""

from __future__ import annotations

from torch import Tensor


def guided(positive: Tensor, negative: Tensor, cfg_scale: float, *, keeps_norms: bool = False) -> Tensor:
    """The velocity moved away from `negative`: v_neg + cfg_scale * (v_pos - v_neg).

    Args:
        keeps_norms: scale each token (the last dimension) to its norm in `positive`.
    """
    moved = negative + cfg_scale * (positive - negative)
    if not keeps_norms:
        return moved
    return moved * (_norm(positive) / _norm(moved))


def _norm(x: Tensor) -> Tensor:
    return x.square().sum(dim=-1, keepdim=True).sqrt()


def uses_cfg(step: int, cfg_scale: float, first_n_steps_wo_cfg: int) -> bool:
    """True if sampling step `step`, counted from 0, needs the negative pass.

    The first n steps go without, -1 means all of them; at scale 1 guidance changes nothing.
    """
    return cfg_scale != 1 and 0 <= first_n_steps_wo_cfg <= step
