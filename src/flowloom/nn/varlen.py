"""Samples with texts of different lengths, without computing masked tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import overload

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

OVERHEAD_TOKENS = {"cpu": 130, "cuda": 500}
"""Cost of one more pass through the network, in tokens, by device.

On a CPU measured with the small network of the benchmarks; on GPUs estimated: the released network starts
some 2,500 kernels a pass, in the time of 500 of its tokens at 13 GFLOP each.
"""


def predict(  # noqa: PLR0913 -- the network's five inputs, and the rule
    model: nn.Module,
    latents: Tensor,
    noise_level: Tensor,
    texts: Sequence[Tensor] | Tensor,
    image_ids: Tensor,
    guidance: Tensor | None = None,
    union: bool = False,
) -> Tensor:
    """The network's prediction (B, L, D), each sample seeing exactly its own text.

    Samples of similar text lengths go through together: without any mask where the lengths are equal.

    Args:
        latents: (B, L, D).
        noise_level: (B,) or, one for all, (1,).
        texts: B tensors (T_i, C), or one tensor (B, T, C) of which every sample sees all T tokens. They may
            have any number format, as encoders and caches give them, and are cast to that of `latents`.
        image_ids: (L, 3).
        guidance: like `noise_level`; None is 0.
        union: let every sample see as many tokens as the longest text has, as FLOW does. Shorter texts are
            filled up with zeros; to fill them with T5's states of padding, give one tensor.
    """
    texts = texts.to(latents.dtype) if isinstance(texts, Tensor) else [one.to(latents.dtype) for one in texts]
    if union or isinstance(texts, Tensor):
        text = texts if isinstance(texts, Tensor) else pad_sequence(texts, batch_first=True)
        return model(latents, noise_level, text, image_ids, None, guidance)
    overhead = OVERHEAD_TOKENS.get(latents.device.type, OVERHEAD_TOKENS["cuda"])
    groups = plan_groups([len(text) for text in texts], latents.shape[1], overhead)
    if len(groups) == 1 or getattr(model, "is_single_pass", False):
        # Ranks that share one network's weights have other texts, but must make equally many passes.
        return model(latents, noise_level, *_padded(texts, image_ids), guidance)
    predictions = {}
    for group in groups:
        own = _padded([texts[i] for i in group], image_ids)
        found = model(_of(group, latents), _of(group, noise_level), *own, _of(group, guidance))
        predictions.update(zip(group, found, strict=True))
    return torch.stack([predictions[i] for i in range(len(texts))])


def _padded(texts: Sequence[Tensor], image_ids: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """The text (B, T, C), the image's positions, and the mask (B, T) of what is text unless everything is."""
    lengths = [len(text) for text in texts]
    text = pad_sequence(list(texts), batch_first=True)
    if min(lengths) == max(lengths):
        return text, image_ids, None
    is_text = [one.new_ones(len(one), dtype=torch.bool) for one in texts]
    return text, image_ids, pad_sequence(is_text, batch_first=True)


@overload
def _of(group: Sequence[int], values: Tensor) -> Tensor: ...
@overload
def _of(group: Sequence[int], values: None) -> None: ...
def _of(group: Sequence[int], values: Tensor | None) -> Tensor | None:
    if values is None or len(values) == 1:
        return values
    # A tensor of indices would have to be sent to the device, and the CPU waits for that.
    return torch.stack([values[i] for i in group])


def plan_groups(lengths: Sequence[int], image_tokens: int, overhead_tokens: int) -> list[list[int]]:
    """Indices of samples that go through the network together, at the least cost.

    A group costs its size times (image tokens + its longest text), and the overhead of a pass. In the best
    plan groups are neighbours in the order of length, so cutting that order is a shortest path.

    Args:
        lengths: text tokens of each sample.
        image_tokens: image tokens of each sample.
        overhead_tokens: the cost of one more group.
    """
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    # Samples of equal length stay together, so a group ends where the length changes.
    total = len(order)
    cuts = [i for i in range(1, total + 1) if i == total or lengths[order[i]] != lengths[order[i - 1]]]
    # For each cut the least cost of the samples before it, and where their last group starts.
    plans = {0: (0, 0)}
    for stop in cuts:
        longest = image_tokens + lengths[order[stop - 1]]
        plans[stop] = min(
            (cost + (stop - start) * longest + overhead_tokens, start) for start, (cost, _) in plans.items()
        )
    groups: list[list[int]] = []
    stop = total
    while stop:
        start = plans[stop][1]
        groups.append(order[start:stop])
        stop = start
    return groups[::-1]
