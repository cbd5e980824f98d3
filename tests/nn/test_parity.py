"""Our Chroma computes what diffusers' does, forwards and backwards, in float32 to 1e-5."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.rival import twin
from flowloom.models.chroma_names import to_diffusers
from flowloom.nn.chroma import Chroma
from flowloom.nn.recompute import Recompute

# diffusers' Chroma uses a class that diffusers itself deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:`FluxPosEmbed` is deprecated:FutureWarning")
TOLERANCE = 1e-5


@pytest.fixture
def theirs(chroma: Chroma) -> Any:
    return twin(chroma)


def velocity(model: Any, inputs: dict[str, Tensor], mask: Tensor | None) -> Tensor:
    """diffusers' prediction; its mask must be boolean and cover text and image."""
    if mask is not None:
        mask = torch.cat((mask, mask.new_ones(inputs["latents"].shape[:2])), dim=1)
    return model(
        hidden_states=inputs["latents"],
        encoder_hidden_states=inputs["text"],
        timestep=inputs["noise_level"],
        img_ids=inputs["image_ids"],
        txt_ids=torch.zeros(inputs["text"].shape[1], 3),
        attention_mask=mask,
        return_dict=False,
    )[0]


def gradients(model: torch.nn.Module, prediction: Tensor) -> dict[str, Tensor]:
    """Of a loss that distinguishes all outputs; zeros where nothing arrives."""
    weights = torch.randn(prediction.shape, generator=torch.Generator().manual_seed(3))
    (prediction * weights).mean().backward()
    return {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in model.named_parameters()}


@pytest.mark.parametrize("checkpointed", [0, 5])
@pytest.mark.parametrize("masked", [False, True])
def test_prediction_and_every_gradient_are_those_of_diffusers(
    make_chroma: Callable[[], Chroma],
    theirs: Any,
    inputs: dict[str, Tensor],
    lengths_mask: Tensor,
    masked: bool,
    checkpointed: int,
):
    ours = make_chroma()
    ours.recompute = Recompute(checkpointed)
    mask = lengths_mask if masked else None
    found = ours(**inputs, text_mask=mask)
    expected = velocity(theirs, inputs, mask)
    assert expected.std() > 0.3
    assert (found - expected).abs().max() < TOLERANCE

    of_ours, of_theirs = to_diffusers(gradients(ours, found)), gradients(theirs, expected)
    assert of_ours.keys() == of_theirs.keys()
    for name, gradient in of_theirs.items():
        assert (of_ours[name] - gradient).abs().max() < TOLERANCE, name
    trained = [g for name, g in of_theirs.items() if not name.startswith("distilled_guidance_layer")]
    assert all(gradient.abs().max() > 100 * TOLERANCE for gradient in trained if gradient.ndim == 2)


def test_trimmed_text_is_masked_text(
    make_chroma: Callable[[], Chroma], inputs: dict[str, Tensor], lengths_mask: Tensor
):
    padded, trimmed = make_chroma(), make_chroma()
    mask = lengths_mask[:1].expand(3, -1)
    expected = padded(**inputs, text_mask=mask)
    found = trimmed(**inputs | {"text": inputs["text"][:, :4]})
    assert (found - expected).abs().max() < TOLERANCE
    of_padded, of_trimmed = gradients(padded, expected), gradients(trimmed, found)
    assert all((of_trimmed[name] - g).abs().max() < TOLERANCE for name, g in of_padded.items())
    unmasked = make_chroma()(**inputs)
    assert (unmasked - expected).abs().max() > 1e-2
