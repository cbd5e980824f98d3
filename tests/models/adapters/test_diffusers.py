"""Our files in diffusers: exported, loaded by `ChromaPipeline.load_lora_weights`, the same result as ours."""

from pathlib import Path
from typing import Any

import pytest
import torch

from flowloom.flow_matching.guidance import guided
from flowloom.flow_matching.samplers import euler, schedule
from flowloom.models.adapters.formats import to_diffusers, to_kohya
from flowloom.models.weights import save_weights
from flowloom.nn.patches import image_ids

pytestmark = [
    pytest.mark.filterwarnings("ignore:`FluxPosEmbed` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Already found a `peft_config`:UserWarning"),
]


@pytest.fixture
def pipeline(make_network, make_pipeline):
    """A ChromaPipeline around our tiny weights."""
    return make_pipeline(make_network().state_dict())


def outputs(network, pipeline, inputs) -> tuple[torch.Tensor, torch.Tensor]:
    with torch.no_grad():
        theirs = pipeline.transformer(
            hidden_states=inputs.latents,
            encoder_hidden_states=inputs.text,
            timestep=inputs.noise_level,
            img_ids=inputs.image_ids,
            txt_ids=torch.zeros(6, 3),
            return_dict=False,
        )[0]
        return network(*inputs), theirs


def test_without_an_adapter_both_networks_agree(make_network, pipeline, inputs) -> None:
    torch.testing.assert_close(*outputs(make_network(), pipeline, inputs), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["lora", "dora", "lokr"])
@pytest.mark.parametrize("alpha", [4.0, 1.0, 7.0], ids=["alpha=rank", "alpha<rank", "alpha>rank"])
def test_an_exported_adapter_does_the_same_in_diffusers(
    kind, alpha, make_network, pipeline, inputs, attach_trained, tmp_path: Path
) -> None:
    network = make_network()
    adapter = attach_trained(network, kind, rank=4, alpha=alpha)
    path = tmp_path / "adapter.safetensors"
    save_weights(path, to_diffusers(adapter.state_dict(), adapter.metadata), {"format": "pt"})
    base = outputs(network, pipeline, inputs)[1]
    pipeline.load_lora_weights(str(path))
    ours, theirs = outputs(network, pipeline, inputs)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    assert (theirs - base).abs().max() > 0.05


def test_an_image_generated_by_the_pipeline_equals_ours(
    make_network, pipeline, inputs, attach_trained, tmp_path: Path
) -> None:
    network = make_network()
    adapter = attach_trained(network, "lora", rank=4, alpha=7.0)
    path = tmp_path / "adapter.safetensors"
    save_weights(path, to_diffusers(adapter.state_dict(), adapter.metadata), {"format": "pt"})
    pipeline.load_lora_weights(str(path))
    noise, prompt, negative = inputs.latents[:1], inputs.text[:1], inputs.text[1:, :2]

    def velocity(x: torch.Tensor, level: float) -> torch.Tensor:
        levels = torch.full((1,), level)
        return guided(network(x, levels, prompt, ids), network(x, levels, negative, ids), 3.0)

    ids = image_ids(6, 8)
    with torch.no_grad():
        ours = euler(velocity, noise, schedule(5, 12))
    theirs = pipeline(
        prompt_embeds=prompt,
        prompt_attention_mask=torch.ones(1, 6),
        negative_prompt_embeds=negative,
        negative_prompt_attention_mask=torch.ones(1, 2),
        latents=noise,
        height=48,
        width=64,
        num_inference_steps=5,
        guidance_scale=3.0,
        output_type="latent",
    ).images
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("alpha", [4.0, 7.0])
def test_diffusers_own_conversion_of_kohyas_names_agrees_with_ours(alpha: float) -> None:
    """At full width, the only one that its conversion knows; the outermost layers it drops are left out."""
    from diffusers import ChromaPipeline

    generator = torch.Generator().manual_seed(0)
    shapes = {
        "double_blocks.3.img_attn.qkv": (9216, 3072),
        "double_blocks.3.txt_mlp.2": (3072, 12288),
        "single_blocks.5.linear1": (21504, 3072),
        "single_blocks.5.linear2": (3072, 15360),
    }
    state = {}
    for layer, (rows, columns) in shapes.items():
        state[f"{layer}.lora_A.weight"] = torch.randn(4, columns, generator=generator)
        state[f"{layer}.lora_B.weight"] = torch.randn(rows, 4, generator=generator)
    meta = {"kind": "lora", "rank": 4, "alpha": alpha}
    ours = to_diffusers(state, meta)
    converted: Any = ChromaPipeline.lora_state_dict(to_kohya(state, meta))
    layers = {name.split(".lora_A")[0] for name in ours if "lora_A" in name}
    assert {name.split(".lora_")[0] for name in converted} == layers
    for layer in layers:
        a, b = f"{layer}.lora_A.weight", f"{layer}.lora_B.weight"
        scaled = ours[b][:50] @ ours[a]
        torch.testing.assert_close(converted[b][:50] @ converted[a], scaled, rtol=1e-4, atol=1e-4)
