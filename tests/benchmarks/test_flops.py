import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from flowloom.models.families.chroma import FAMILY
from flowloom.nn.chroma import CHROMA1, Chroma, ChromaParams

SMALL = ChromaParams(64, 128, 256, 4.0, 8, 2, 4, (4, 14, 14), 10_000, True, 64, 2, 256)


def counted(params: ChromaParams, image_tokens: int, text_tokens: int, *, backward: bool = False) -> int:
    """Operations that torch counts in one sample's forward pass, or in its training step, on no device."""
    with torch.device("meta"):
        model = Chroma(params)
        inputs = (
            torch.zeros(1, image_tokens, params.in_channels),
            torch.zeros(1),
            torch.zeros(1, text_tokens, params.context_in_dim),
            torch.zeros(image_tokens, 3),
        )
        with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(backward):
            prediction = model(*inputs)
            if backward:
                prediction.sum().backward()
    return counter.get_total_flops()


def test_the_formula_is_what_torch_counts_for_the_released_network():
    assert FAMILY.flops(CHROMA1, 1024, 65).forward == pytest.approx(counted(CHROMA1, 1024, 65), rel=2e-3)


@pytest.mark.parametrize(("image_tokens", "text_tokens"), [(64, 16), (256, 40)])
def test_the_formula_holds_at_other_sizes(image_tokens: int, text_tokens: int):
    assert FAMILY.flops(SMALL, image_tokens, text_tokens).forward == pytest.approx(
        counted(SMALL, image_tokens, text_tokens), rel=2e-3
    )


def test_a_backward_pass_costs_two_forward_passes():
    formula = FAMILY.flops(SMALL, 256, 40).full_training
    # torch counts the recomputation that attention's backward pass does; the formula leaves it out.
    assert formula == pytest.approx(counted(SMALL, 256, 40, backward=True), rel=0.06)
