"""8-bit matrix products of a frozen base: close to wide ones in both directions, and trainable over."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from flowloom.config.run import RunConfig
from flowloom.models.adapters.adapter import attach
from flowloom.models.quantized import quantized_linears
from flowloom.models.scaled_linear import (
    Float8Linear,
    Float8ProductLinear,
    Int8ProductLinear,
    ScaledLinear,
)
from tests.models.adapters.test_adapter import train

KINDS = {"int8": Int8ProductLinear, "fp8": Float8ProductLinear}
BOUND = {"int8": 0.015, "fp8": 0.045}
"""Relative error of normal numbers: half a step of 1/127 of the maximum, and half of float8's 2^-3."""
TARGETS = ["double_blocks", "single_blocks"]
EACH = pytest.mark.parametrize("kind", KINDS)


def error(found: Tensor, expected: Tensor) -> float:
    return ((found.float() - expected.float()).norm() / expected.float().norm()).item()


def layer(kind: str, rows: int = 192, columns: int = 256) -> tuple[nn.Linear, ScaledLinear]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        wide = nn.Linear(columns, rows)
        wide.weight.data *= torch.logspace(-2, 1, rows)[:, None]  # rows of very different sizes
    return wide, KINDS[kind](wide)


@EACH
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("shape", [(2, 37), (1,), (5, 1, 3)])
def test_outputs_and_input_gradients_are_close_to_the_wide_layers(
    kind: str, dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    wide, narrow = layer(kind)
    draw = torch.Generator().manual_seed(1)
    x = (torch.randn(*shape, 256, generator=draw) * 3).to(dtype)
    # One token much larger than the others must not cost them their digits: each row has a scale.
    x[0] *= 100
    gradient = torch.randn(*shape, 192, generator=draw).to(dtype)
    ours, theirs = x.clone().requires_grad_(), x.float().requires_grad_()
    found, expected = narrow(ours), wide(theirs)
    assert found.dtype == ours.dtype
    assert found.shape == expected.shape
    found.backward(gradient)
    expected.backward(gradient.float())
    assert ours.grad is not None
    assert theirs.grad is not None
    assert ours.grad.dtype == dtype
    for ours_, theirs_ in zip(found.reshape(-1, 192), expected.reshape(-1, 192), strict=True):
        assert error(ours_, theirs_) < 1.6 * BOUND[kind]
    assert 0 < error(ours.grad, theirs.grad) < BOUND[kind]


@EACH
def test_both_products_are_of_8_bit_numbers(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name = {"int8": "_int_mm", "fp8": "_scaled_mm"}[kind]
    original, calls = getattr(torch, name), []

    def counted(a: Tensor, b: Tensor, *rest: Any, **options: Any) -> Tensor:
        calls.append((a.dtype, b.dtype, tuple(a.shape), tuple(b.shape)))
        return original(a, b, *rest, **options)

    monkeypatch.setattr(torch, name, counted)
    _, narrow = layer(kind)
    saved: list[Tensor] = []
    x = torch.randn(2, 5, 256, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        output = narrow(x)
    output.sum().backward()
    codes = narrow.codes.dtype
    assert calls == [(codes, codes, (10, 256), (256, 192)), (codes, codes, (10, 192), (192, 256))]
    # The input is not needed: only the codes and their scales are kept.
    assert {(t.dtype, tuple(t.shape)) for t in saved} == {(codes, (192, 256)), (torch.float32, (192,))}


@EACH
def test_zeros_and_empty_inputs_have_no_nan(kind: str) -> None:
    _, narrow = layer(kind)
    x = torch.zeros(3, 256, requires_grad=True)
    narrow(x).sum().backward()
    assert torch.allclose(narrow(x), narrow.bias.expand(3, -1))
    assert x.grad is not None
    assert x.grad.isfinite().all()


@EACH
@pytest.mark.filterwarnings("ignore:.*should not be instantiated")  # torch's own, about itself
def test_a_compiled_layer_is_one_graph_with_equal_numbers(kind: str) -> None:
    _, narrow = layer(kind)
    compiled = torch.compile(narrow, backend="aot_eager", fullgraph=True, dynamic=True)
    for rows in (40, 56):
        ours, theirs = (torch.randn(rows, 256, generator=torch.Generator().manual_seed(rows)).requires_grad_()
                        for _ in range(2))  # fmt: skip
        found, expected = compiled(ours), narrow(theirs)
        found.sum().backward()
        expected.sum().backward()
        assert torch.equal(found, expected)
        assert ours.grad is not None
        assert theirs.grad is not None
        assert torch.equal(ours.grad, theirs.grad)


def losses_over(network: nn.Module, kind: str, adapter: str, inputs: Any, dtype: torch.dtype) -> list[float]:
    if kind != "wide":
        for name, linear in quantized_linears(network):
            network.set_submodule(name, {**KINDS, "8bit": Float8Linear}[kind](linear))
    return train(network, attach(network, adapter, 4, 4, TARGETS), inputs, dtype, steps=8)  # pyright: ignore[reportArgumentType]


@EACH
@pytest.mark.parametrize("adapter", ["lora", "dora", "lokr"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_an_adapter_learns_as_over_a_wide_base(
    kind: str, adapter: str, dtype: torch.dtype, make_network: Callable[[], nn.Module], inputs: Any
) -> None:
    expected = losses_over(make_network().to(dtype), "wide", adapter, inputs, dtype)
    found = losses_over(make_network().to(dtype), kind, adapter, inputs, dtype)
    assert found != expected
    assert found == pytest.approx(expected, rel={"int8": 0.01, "fp8": 0.03}[kind])
    assert found[-1] < 0.9 * found[0]


LORA8 = {"rank": 2, "alpha": 2, "base_model_quant_level": "8bit"}


@pytest.mark.parametrize("level", ["full", "4bit"])
def test_products_need_weights_in_8_bits(level: str) -> None:
    with pytest.raises(
        ValidationError, match=f"base_products: int8 needs lora.base_model_quant_level 8bit, not {level}"
    ):
        RunConfig.model_validate(
            {"lora": LORA8 | {"base_model_quant_level": level}, "method": {"base_products": "int8"}}
        )
