"""Texts of different lengths in one batch cost no more than needed, and no sample sees another's text."""

from collections.abc import Iterator, Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from flowloom.nn.chroma import Chroma
from flowloom.nn.varlen import plan_groups, predict

LENGTHS = st.lists(st.integers(1, 30), min_size=1, max_size=6)


def cost(groups: Sequence[Sequence[int]], lengths: Sequence[int], image: int, overhead: int) -> int:
    return sum(len(group) * (image + max(lengths[i] for i in group)) + overhead for group in groups)


def every_grouping(items: list[int]) -> Iterator[list[list[int]]]:
    if not items:
        yield []
        return
    first, *others = items
    for groups in every_grouping(others):
        yield [[first], *groups]
        for i, group in enumerate(groups):
            yield [*groups[:i], [first, *group], *groups[i + 1 :]]


@given(LENGTHS, st.integers(0, 40), st.integers(0, 60))
def test_no_grouping_at_all_costs_less(lengths: list[int], image: int, overhead: int):
    groups = plan_groups(lengths, image, overhead)
    least = min(cost(g, lengths, image, overhead) for g in every_grouping(list(range(len(lengths)))))
    assert cost(groups, lengths, image, overhead) == least


@given(st.lists(st.integers(1, 512), max_size=64), st.integers(0, 4096), st.integers(0, 1000))
def test_each_sample_is_in_one_group(lengths: list[int], image: int, overhead: int):
    groups = plan_groups(lengths, image, overhead)
    assert sorted(i for group in groups for i in group) == list(range(len(lengths)))


def test_equal_lengths_stay_together_even_if_passes_are_free():
    assert plan_groups([7, 3, 7, 3, 3], 256, 0) == [[1, 3, 4], [0, 2]]


def texts(inputs: dict[str, Tensor], lengths: Sequence[int]) -> list[Tensor]:
    return [text[:length] for text, length in zip(inputs["text"], lengths, strict=True)]


def others(inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    return inputs["latents"], inputs["noise_level"], inputs["image_ids"]


@pytest.mark.parametrize("overhead", [0, 10, 10_000])
@pytest.mark.parametrize("lengths", [(4, 9, 1), (5, 5, 5), (9, 2, 9)])
def test_each_sample_sees_its_own_text(
    chroma: Chroma,
    inputs: dict[str, Tensor],
    lengths: Sequence[int],
    overhead: int,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setitem(predict.__globals__["OVERHEAD_TOKENS"], "cpu", overhead)
    latents, level, ids = others(inputs)
    own = texts(inputs, lengths)
    guidance = torch.tensor([0.0, 2.0, 4.0])
    found = predict(chroma, latents, level, own, ids, guidance)
    for i, text in enumerate(own):
        one = slice(i, i + 1)
        alone = chroma(latents[one], level[one], text[None], ids, guidance=guidance[one])[0]
        torch.testing.assert_close(found[i], alone, atol=1e-5, rtol=0)
    shared = predict(chroma, latents, level[:1], own, ids, guidance[:1])
    torch.testing.assert_close(shared[0], found[0], atol=1e-5, rtol=0)


def test_union_shows_everyone_the_longest_length(chroma: Chroma, inputs: dict[str, Tensor]):
    latents, level, ids = others(inputs)
    own = texts(inputs, (4, 7, 1))
    padded = torch.stack([torch.nn.functional.pad(text, (0, 0, 0, 7 - len(text))) for text in own])
    union = predict(chroma, latents, level, own, ids, union=True)
    torch.testing.assert_close(union, chroma(latents, level, padded, ids))
    torch.testing.assert_close(union, predict(chroma, latents, level, padded, ids))
    assert (union - predict(chroma, latents, level, own, ids)).abs().max() > 1e-2


def test_gradients_are_those_of_one_masked_pass(
    chroma: Chroma, inputs: dict[str, Tensor], lengths_mask: Tensor
):
    latents, level, ids = others(inputs)
    weights = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0))
    ragged = predict(chroma, latents, level, texts(inputs, (4, 9, 1)), ids)
    masked = chroma(**inputs, text_mask=lengths_mask)
    found, expected = (
        torch.autograd.grad((out * weights).mean(), [p for p in chroma.parameters() if p.requires_grad])
        for out in (ragged, masked)
    )
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
