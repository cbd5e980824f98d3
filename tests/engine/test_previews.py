"""Guidance begins at the step that `first_n_steps_wo_cfg` names, and neither before it nor after."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from flowloom.config.run import RunConfig
from flowloom.engine.build import build
from flowloom.engine.parallel.ranks import Ranks
from flowloom.engine.preview import SampleGenerator, SamplingParams


@pytest.fixture
def sample_generator(make_config: Callable[..., RunConfig]) -> SampleGenerator:
    return build(make_config(), Ranks()).sample_generator


def preview_of(
    sample_generator: SampleGenerator, sampler: str, steps: int, unguided: int
) -> NDArray[np.int64]:
    params = SamplingParams(
        64, 64, steps=steps, cfg=6.0, first_n_steps_wo_cfg=unguided, sampler=sampler, negative="blue bar"
    )
    (image,) = sample_generator.generate(["red, bar"], [5], params)
    return np.asarray(image).astype(np.int64)


@pytest.mark.parametrize(
    ("sampler", "steps", "unguided", "passes"),
    [
        ("euler", 3, 1, 1 + 2 + 2),
        ("dpmpp_2m", 3, 1, 1 + 2 + 2),
        # Two evaluations a step, but for Heun's last one, which is Euler's.
        ("heun", 3, 1, 2 + 4 + 2),
        ("heun", 3, 2, 2 + 2 + 2),
        ("midpoint", 3, 1, 2 + 4 + 4),
        ("midpoint", 3, 2, 2 + 2 + 4),
        ("heun", 3, 0, 4 + 4 + 2),
        ("heun", 3, 3, 2 + 2 + 1),
        ("heun", 3, -1, 2 + 2 + 1),
    ],
)
def test_no_evaluation_of_an_unguided_step_is_guided(
    sample_generator: SampleGenerator, sampler: str, steps: int, unguided: int, passes: int
) -> None:
    """A guided evaluation is two passes of the network, another one is one."""
    counted: list[None] = []
    sample_generator.model.register_forward_pre_hook(lambda *_: counted.append(None))
    preview_of(sample_generator, sampler, steps, unguided)
    assert len(counted) == passes


def test_the_first_guided_step_does_not_look_back_at_unguided_ones(sample_generator: SampleGenerator) -> None:
    """DPM-Solver++'s first step is Euler's, so is its last; with nothing to look back at, so are all four."""
    assert (
        np.abs(
            preview_of(sample_generator, "dpmpp_2m", 4, 2) - preview_of(sample_generator, "euler", 4, 2)
        ).max()
        <= 1
    )
    assert (
        np.abs(
            preview_of(sample_generator, "dpmpp_2m", 4, 0) - preview_of(sample_generator, "euler", 4, 0)
        ).max()
        > 1
    )
