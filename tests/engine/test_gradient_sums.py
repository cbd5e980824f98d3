"""Gradients of several ranks are summed during the backward pass, as exactly as after it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

from flowloom.engine.parallel import gradients
from flowloom.engine.parallel.ranks import Ranks, join_ranks, leave_ranks
from tests.engine.processes import run_on_ranks

BUCKET_BYTES = 200


class Layers(nn.Module):
    """Layers of two number formats, of which one is never used."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.unused, self.first = nn.Linear(8, 3), nn.Linear(8, 8)
            self.second, self.last = nn.Linear(8, 8).bfloat16(), nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.second(self.first(x).bfloat16()).float())


def losses(model: Layers, rank: int, number: int) -> list[torch.Tensor]:
    """Of two micro-batches on the first rank and one on the second; in update 1 the second has none."""
    draw = torch.Generator().manual_seed(10 * number + rank)
    count = (2, 0 if number == 1 else 1)[rank]
    return [model(torch.randn(4, 8, generator=draw)).square().sum() for _ in range(count)]


def gradients_of_updates(ranks: Ranks, *, overlaps: bool) -> dict[str, Any]:
    """Gradients and norms of three updates, and the buckets on their way at the end of each backward pass."""
    model = Layers()
    summed = gradients.SummedGradients(ranks, model.parameters())
    found: dict[str, Any] = {"sent": []}
    for number in range(3):
        for micro, loss in enumerate(parts := losses(model, ranks.rank, number), start=1):
            summed.backward(loss, is_last=overlaps and micro == len(parts))
        found["sent"].append(len(summed._sent))  # pyright: ignore[reportPrivateUsage]
        found[f"norm {number}"] = summed.finish(0.5)
        found |= {f"{number} {name}": p.grad for name, p in model.named_parameters()}
        model.zero_grad(set_to_none=True)
    summed.close()
    parts = losses(model, 0, 0)
    parts[0].backward()
    assert not summed._sent  # pyright: ignore[reportPrivateUsage]
    return found


def gradients_by_torch(ranks: Ranks) -> dict[str, Any]:
    """Every gradient summed alone, after the backward pass, and clipped by torch."""
    model = Layers()
    found: dict[str, Any] = {}
    for number in range(3):
        for loss in losses(model, ranks.rank, number):
            loss.backward()
        for parameter in model.parameters():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            dist.all_reduce(parameter.grad)
        found[f"norm {number}"] = nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        found |= {f"{number} {name}": p.grad for name, p in model.named_parameters()}
        model.zero_grad(set_to_none=True)
    return found


def work_of_rank(folder: str) -> int:
    torch.set_num_threads(1)
    gradients.BUCKET_BYTES = BUCKET_BYTES
    ranks = join_ranks("cpu")
    overlapped, after = (gradients_of_updates(ranks, overlaps=overlaps) for overlaps in (True, False))
    torch.save((overlapped, after, gradients_by_torch(ranks)), Path(folder) / f"{ranks.rank}.pt")
    leave_ranks(ranks)
    return 0


@pytest.mark.slow
def test_overlapped_sums_equal_those_after_the_backward_pass_bit_for_bit(tmp_path: Path) -> None:
    """With weights and ranks without a gradient, two number formats, and after the hooks are removed."""
    assert run_on_ranks(work_of_rank, [str(tmp_path)], 2) == 0
    of_ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    for rank, (overlapped, after, by_torch) in enumerate(of_ranks):
        assert after.pop("sent") == [0, 0, 0]
        # All but the bucket of the unused weights.
        assert overlapped.pop("sent") == [3, 0 if rank else 3, 3]
        assert overlapped.keys() == after.keys() == by_torch.keys() == of_ranks[0][2].keys()
        for name, expected in by_torch.items():
            assert torch.equal(overlapped[name], expected), name
            assert torch.equal(after[name], expected), name
            assert torch.equal(of_ranks[0][2][name], expected), name
    assert not of_ranks[0][0]["0 unused.weight"].any()
    assert of_ranks[0][0]["1 first.weight"].any()


def test_buckets_hold_every_weight_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gradients, "BUCKET_BYTES", 100)
    formats = [torch.float32, torch.bfloat16]
    parameters = [nn.Parameter(torch.ones(4 * (i % 5 + 1), dtype=formats[i % 2])) for i in range(20)]
    buckets = list(gradients.in_buckets(parameters))
    assert sorted(id(p) for bucket in buckets for p in bucket) == sorted(map(id, parameters))
    places = {id(parameter): place for place, parameter in enumerate(parameters)}
    for bucket in buckets:
        found = [places[id(parameter)] for parameter in bucket]
        assert found == sorted(found, reverse=True)
        assert len({parameter.dtype for parameter in bucket}) == 1
        assert sum(parameter.nbytes for parameter in bucket[:-1]) < 100
