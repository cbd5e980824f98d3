"""Forward and backward with every block recomputed, a tenth of the activations: time over that without."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from benchmarks.passes import Inputs, forward_backward, network, random_inputs
from benchmarks.timing import Measured, interleaved
from flowloom.nn.chroma import Chroma
from flowloom.nn.recompute import Recompute
from flowloom.nn.varlen import predict

TARGET, MEMORY_TARGET = 1.4, 0.1
SAMPLES, TEXT_TOKENS = 2, 40


def run() -> Measured:
    """Ratio of times; correct when gradients are equal and activations kept are a tenth or less."""
    inputs = random_inputs([TEXT_TOKENS] * SAMPLES)
    keeps, recomputes = network(), network()
    recomputes.recompute = Recompute(len(recomputes.blocks()))
    kept_bytes, recomputed_bytes = (activation_bytes(model, inputs) for model in (keeps, recomputes))
    passes = [
        forward_backward(model, lambda model=model: predict(model, *inputs)) for model in (recomputes, keeps)
    ]
    for one_pass in passes:
        one_pass()
    difference = max(
        (a.grad - b.grad).abs().max().item()
        for a, b in zip(keeps.parameters(), recomputes.parameters(), strict=True)
        if a.grad is not None and b.grad is not None
    )
    seconds, seconds_keeping = interleaved(*passes)
    memory = recomputed_bytes / kept_bytes
    return Measured(
        ratio=seconds / seconds_keeping,
        target=TARGET,
        correct=difference < 1e-6 and memory <= MEMORY_TARGET,
        higher_is_better=False,
        detail={
            "activations": memory,
            "kept_mib": kept_bytes / 2**20,
            "recomputed_mib": recomputed_bytes / 2**20,
            "gradient_difference": difference,
        },
    )


def activation_bytes(model: Chroma, inputs: Inputs) -> int:
    """Bytes that a forward pass keeps for the backward pass, weights and inputs not counted."""
    known = {tensor.untyped_storage().data_ptr() for tensor in model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        predict(model, *inputs)
    return sum(storage.nbytes() for storage in kept.values())
