"""The GPU benchmarks' arithmetic, on a network that a CPU can hold."""

import pytest
import torch

from benchmarks import narrow_products
from benchmarks.full_step import SMALL
from benchmarks.gpu import Work, measure, mfu, random_network, training_step


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("method", ["lora", "full", "sample"])
def test_every_kind_of_work_runs_and_reports_a_share_of_the_peak(method: str, dtype: torch.dtype):
    torch.manual_seed(0)
    model = random_network(SMALL, torch.device("cpu"), dtype)
    work = Work(method, pixels=64, batch_size=2, recompute="all", text_tokens=9)
    measured = mfu(work, 0.4, model, peak=1e14, repeats=1)
    assert measured.correct
    assert measured.ratio
    assert 0 < measured.ratio < 1
    assert measured.detail["samples_per_s"] > 0


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_streamed_step_has_the_loss_of_the_resident_one(method: str):
    losses = []
    for is_streamed in (False, True):
        torch.manual_seed(0)
        model = random_network(SMALL, torch.device("cpu"), torch.float32)
        work = Work(method, 64, 2, "all", text_tokens=9, is_streamed=is_streamed, is_fused=method == "full")
        step = training_step(work, model, torch.device("cpu"))
        losses.append([float(step()), float(step())])
    # In a full fine-tune the optimizers differ, and the second loss with them.
    assert losses[0][: 2 if method == "lora" else 1] == losses[1][: 2 if method == "lora" else 1]
    assert losses[0][0] != losses[0][1]


def test_narrow_products_are_measured_after_their_errors():
    measured = narrow_products.measure(torch.device("cpu"), (24, 64, 128), lambda layer: layer)
    assert measured.correct
    assert measured.ratio
    assert set(measured.detail["seconds"]) == {"bf16", "int8", "int8, not compiled"}
    assert 0 < measured.detail["relative_error"]["int8"] < 0.02


@pytest.mark.skipif(torch.cuda.is_available(), reason="would measure")
def test_without_an_accelerator_nothing_is_claimed():
    measured = measure(Work("lora", 512, batch_size=8), target=0.36)
    assert measured.passed is None
    assert measured.detail == {"skipped": "no accelerator"}
