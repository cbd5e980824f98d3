"""Guidance is FLOW's, and is not computed where it changes nothing."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flowloom.flow_matching.guidance import guided, uses_cfg


def test_guidance_moves_away_from_the_negative():
    positive, negative = torch.tensor([3.0]), torch.tensor([1.0])
    assert guided(positive, negative, 4.0).item() == 9.0
    assert guided(positive, negative, 1.0).item() == 3.0
    assert guided(positive, negative, 0.0).item() == 1.0


@pytest.mark.parametrize(
    ("first_n", "with_cfg"), [(0, [0, 1, 2, 3]), (2, [2, 3]), (4, []), (9, []), (-1, [])]
)
def test_the_first_steps_go_without(first_n: int, with_cfg: list[int]):
    assert [step for step in range(4) if uses_cfg(step, 4.0, first_n)] == with_cfg


@given(st.integers(0, 100), st.integers(-1, 100))
def test_scale_1_needs_no_negative_pass(step: int, first_n: int):
    assert not uses_cfg(step, 1.0, first_n)
