"""Every optimizer keeps the same promises; the list is read from the schema's union."""

from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from pydantic import TypeAdapter

from flowloom.config.run import Optimizer
from flowloom.errors import ConfigError
from flowloom.optimizers.base import OptimizerSpec

# torch.compile's front end, which torchao imports at its first step.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.*` is deprecated:DeprecationWarning")

KINDS = sorted(spec.model_fields["kind"].default for spec in get_args(get_args(Optimizer)[0]))
CHOICES = [{"kind": kind} for kind in KINDS] + [
    {"kind": "adamw_lowbit", "bits": 4},
    {"kind": "adamw_lowbit", "bits": "fp8"},
    {"kind": "adamw_bf16", "moments": "fp32"},
]


def spec_of(choice: dict[str, object]) -> OptimizerSpec:
    return TypeAdapter(Optimizer).validate_python(choice)


class Quadratic:
    """A bowl with its lowest point at `target`, big enough (64 x 128) to be held in few bits."""

    def __init__(self, dtype: torch.dtype):
        generator = torch.Generator().manual_seed(0)
        self.target = torch.randn(64, 128, generator=generator)
        self.weight = torch.nn.Parameter(torch.zeros(64, 128, dtype=dtype))
        self.bias = torch.nn.Parameter(torch.zeros(128, dtype=dtype))

    @property
    def groups(self) -> list[dict[str, object]]:
        return [{"params": [self.weight], "weight_decay": 0.01}, {"params": [self.bias], "weight_decay": 0.0}]

    def loss(self) -> torch.Tensor:
        return (self.weight.float() + self.bias.float() - self.target).square().mean()

    def train(self, optimizer: torch.optim.Optimizer, steps: int) -> list[float]:
        losses = []
        for _ in range(steps):
            optimizer.zero_grad()
            loss = self.loss()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return losses


DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
EVERY = pytest.mark.parametrize("choice", CHOICES, ids=lambda choice: "-".join(map(str, choice.values())))


def test_the_schema_offers_these_optimizers() -> None:
    assert KINDS == ["adamw", "adamw8bit", "adamw_bf16", "adamw_lowbit"]


@EVERY
@DTYPES
def test_steps_downhill(choice: dict[str, object], dtype: torch.dtype) -> None:
    bowl = Quadratic(dtype)
    losses = bowl.train(spec_of(choice).build(bowl.groups, lr=0.05), 60)
    assert losses[-1] < (0.25 if choice.get("bits") == 4 else 0.1) * losses[0]
    assert sorted(losses[:20], reverse=True) == losses[:20]


@EVERY
@DTYPES
def test_continues_bit_for_bit_from_a_saved_state(
    choice: dict[str, object], dtype: torch.dtype, tmp_path: Path
) -> None:
    whole, first, second = Quadratic(dtype), Quadratic(dtype), Quadratic(dtype)
    expected = whole.train(spec_of(choice).build(whole.groups, lr=0.01), 12)

    optimizer = spec_of(choice).build(first.groups, lr=0.01)
    losses = first.train(optimizer, 5)
    saved = {"optimizer": optimizer.state_dict(), "weights": [first.weight.data, first.bias.data]}
    torch.save(saved, tmp_path / "state.pt")

    torch.manual_seed(1234)  # a new process has another global stream
    resumed = spec_of(choice).build(second.groups, lr=0.01)
    loaded = torch.load(tmp_path / "state.pt", weights_only=True)
    # The engine keeps each parameter's state, not the groups: their settings come from the run's config.
    resumed.load_state_dict(resumed.state_dict() | {"state": loaded["optimizer"]["state"]})
    second.weight.data.copy_(loaded["weights"][0])
    second.bias.data.copy_(loaded["weights"][1])

    assert losses + second.train(resumed, 7) == expected
    assert torch.equal(second.weight, whole.weight)
    assert torch.equal(second.bias, whole.bias)


@EVERY
def test_follows_a_learning_rate_schedule(choice: dict[str, object]) -> None:
    bowl = Quadratic(torch.float32)
    optimizer = spec_of(choice).build(bowl.groups, lr=0.05)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0 if step < 3 else 0.0)
    for _ in range(3):
        bowl.train(optimizer, 1)
        schedule.step()
    before = bowl.weight.detach().clone()
    bowl.train(optimizer, 1)
    assert torch.equal(bowl.weight, before)


@EVERY
def test_the_engine_may_set_the_rate_as_a_plain_number(choice: dict[str, object]) -> None:
    bowl = Quadratic(torch.float32)
    optimizer = spec_of(choice).build(bowl.groups, lr=0.0)
    for group in optimizer.param_groups:
        group["lr"] = 0.05
    losses = bowl.train(optimizer, 5)
    assert losses[-1] < losses[0]


@EVERY
def test_decays_only_the_groups_that_ask_for_it(choice: dict[str, object]) -> None:
    decayed, kept = torch.nn.Parameter(torch.ones(4096)), torch.nn.Parameter(torch.ones(4096))
    groups = [{"params": [decayed], "weight_decay": 0.5}, {"params": [kept], "weight_decay": 0.0}]
    optimizer = spec_of(choice).build(groups, lr=0.1)
    decayed.grad, kept.grad = torch.zeros(4096), torch.zeros(4096)
    optimizer.step()
    torch.testing.assert_close(decayed.data, torch.full((4096,), 0.95))
    torch.testing.assert_close(kept.data, torch.ones(4096))


@pytest.mark.parametrize(
    ("choice", "bytes_a_parameter"),
    [
        ({"kind": "adamw"}, 8),
        ({"kind": "adamw8bit"}, 2),
        ({"kind": "adamw_lowbit", "bits": 8}, 2),
        ({"kind": "adamw_lowbit", "bits": 4}, 1),
        ({"kind": "adamw_lowbit", "bits": "fp8"}, 2),
        ({"kind": "adamw_bf16"}, 4),
    ],
    ids=str,
)
def test_states_take_the_promised_memory(choice: dict[str, object], bytes_a_parameter: int) -> None:
    weight = torch.nn.Parameter(torch.zeros(512, 1024))
    optimizer = spec_of(choice).build([{"params": [weight], "weight_decay": 0.0}], lr=0.01)
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    size = sum(bytes_of(value) for value in optimizer.state[weight].values())
    assert bytes_a_parameter <= size / weight.numel() < bytes_a_parameter * 1.1


def bytes_of(value: Any) -> int:
    if not isinstance(value, torch.Tensor):
        return 0
    if hasattr(value, "tensor_attrs"):  # torchao's: made of several plain ones
        return sum(bytes_of(getattr(value, name)) for name in value.tensor_attrs)  # pyright: ignore[reportAttributeAccessIssue]
    return value.nbytes


@pytest.mark.parametrize("kind", ["adamw_lowbit", "adamw_bf16"])
def test_bf16_weights_keep_updates_below_their_last_digit(kind: str) -> None:
    weight = torch.nn.Parameter(torch.ones(4096, dtype=torch.bfloat16))
    optimizer = spec_of({"kind": kind}).build([{"params": [weight], "weight_decay": 0.0}], lr=1e-4)
    for _ in range(50):  # 50 updates of 1e-4, each 1/78 of the last digit of 1
        weight.grad = torch.ones_like(weight)
        optimizer.step()
    assert 0.0045 < 1 - weight.double().mean().item() < 0.0055


def test_a_missing_feature_of_a_device_is_reported_with_a_hint() -> None:
    parameter = torch.nn.Parameter(torch.zeros(4, device="meta"))
    groups = [{"params": [parameter], "weight_decay": 0.0}]
    with pytest.raises(ConfigError, match="adamw_lowbit"):
        spec_of({"kind": "adamw8bit"}).build(groups, lr=0.1)
    with pytest.raises(ConfigError, match="bits 8"):
        spec_of({"kind": "adamw_lowbit", "bits": "fp8"}).build(groups, lr=0.1)
