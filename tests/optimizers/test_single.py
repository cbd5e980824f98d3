"""Updating one weight at a time gives what an update of all weights gives, bit for bit."""

from __future__ import annotations

import pytest
import torch

from flowloom.optimizers.updates.single import CHUNK, SingleUpdates
from tests.optimizers.test_optimizers import CHOICES, EVERY, Quadratic, spec_of

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.*` is deprecated:DeprecationWarning")


@EVERY
def test_every_optimizer_can_update_its_weights_one_by_one(choice: dict[str, object]) -> None:
    dtype = torch.bfloat16 if choice["kind"] == "adamw_bf16" else torch.float32
    together, alone = Quadratic(dtype), Quadratic(dtype)
    expected = together.train(spec_of(choice).build(together.groups, lr=0.01), 4)
    optimizer = spec_of(choice).build(alone.groups, lr=0.01)
    updates, losses = SingleUpdates(optimizer), []
    for _ in range(4):
        loss = alone.loss()
        loss.backward()
        losses.append(loss.item())
        for weight in (alone.bias, alone.weight):  # the backward pass has another order than the groups
            updates.step(weight)
            assert weight.grad is None
    assert losses == expected
    assert torch.equal(alone.weight, together.weight)
    assert len(optimizer.state_dict()["state"]) == 2


@pytest.mark.parametrize("choice", [CHOICES[0], {"kind": "adamw8bit"}], ids=["adamw", "adamw8bit"])
@pytest.mark.parametrize("arriving", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_a_host_update_equals_torchs_with_converted_gradients(
    choice: dict[str, object], arriving: torch.dtype
) -> None:
    """In chunks, of which the last one is shorter."""
    generator = torch.Generator().manual_seed(1)
    weights = [torch.nn.Parameter(torch.ones(CHUNK + 2**17 + 5)) for _ in range(2)]
    ours, theirs = weights
    ours_by, theirs_by = (
        spec_of(choice).build([{"params": [weight], "weight_decay": 0.01}], lr=0.01) for weight in weights
    )
    updates, target = SingleUpdates(ours_by), torch.empty(len(ours), dtype=arriving)
    for _ in range(3):
        gradient = torch.randn(len(ours), generator=generator).to(arriving)
        updates.step_from(ours, gradient, target)
        theirs.grad = gradient.float()
        theirs_by.step()
    assert torch.equal(ours, theirs)
    assert torch.equal(target, theirs.to(arriving))
    states = [optimizer.state_dict()["state"][0] for optimizer in (ours_by, theirs_by)]
    assert states[0].keys() == states[1].keys()
    for name, value in states[1].items():
        assert not isinstance(value, torch.Tensor) or torch.equal(states[0][name], value)
