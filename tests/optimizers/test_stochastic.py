"""Stochastic rounding: right on average, and the same each time."""

import torch

from flowloom.optimizers.updates.stochastic import round_stochastically_


def rounded(values: torch.Tensor, seed: int) -> torch.Tensor:
    target = torch.empty_like(values, dtype=torch.bfloat16)
    round_stochastically_(target, values.clone(), torch.Generator().manual_seed(seed))
    return target


def test_the_mean_of_many_roundings_is_the_value() -> None:
    values = torch.tensor([1.001, -1.001, 3.14159, -2.71828e-5, 1e10, 0.3, -7e-30])
    many = values.repeat(200_000, 1)
    relative_error = rounded(many, seed=0).double().mean(0) / values.double() - 1
    # A rounding is off by at most 2^-7 of the value; the mean of 200,000 by 2^-7 / 2 / sqrt(200,000).
    assert relative_error.abs().max() < 4 * 2**-8 / 200_000**0.5
    nearest = values.to(torch.bfloat16).double() / values.double() - 1
    assert nearest.abs().max() > 10 * relative_error.abs().max()


def test_every_rounding_is_one_of_the_two_neighbours() -> None:
    values = torch.randn(10_000, generator=torch.Generator().manual_seed(1))
    bits = values.view(torch.int32)
    towards_zero = (bits & ~0xFFFF).view(torch.float32)
    away = ((bits & ~0xFFFF) + 0x10000).view(torch.float32)
    result = rounded(values, seed=2).float()
    assert ((result == towards_zero) | (result == away)).all()
    assert (result == away).any()
    assert (result == towards_zero).any()


def test_values_that_bf16_can_represent_are_unchanged() -> None:
    values = torch.randn(1000).to(torch.bfloat16)
    special = torch.tensor([0.0, -0.0, float("inf"), -float("inf"), 1.0], dtype=torch.bfloat16)
    for exact in (values, special):
        assert torch.equal(rounded(exact.float(), seed=3), exact)
    assert rounded(torch.tensor([float("nan")]), seed=3).isnan().all()


def test_any_shape_and_stride_is_rounded_in_place() -> None:
    for values in (torch.tensor(1.5), torch.randn(3, 5).T, torch.randn(2, 3, 7)[..., ::2]):
        exact = values.to(torch.bfloat16)
        assert torch.equal(rounded(exact.float(), seed=4), exact)
