"""FLUX.2's pipelines at tiny random sizes: klein with Qwen3, dev with Mistral 3."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.convert_slow_tokenizer import bytes_to_unicode

from flowloom.import_warnings import quiet_imports
from flowloom.models.families.flux2 import FAMILY
from flowloom.models.family import Conditioning, Grid
from tests.families.tiny import TinyImages

with quiet_imports():
    from diffusers import (
        AutoencoderKLFlux2,
        FlowMatchEulerDiscreteScheduler,
        Flux2KleinPipeline,
        Flux2Pipeline,
        Flux2Transformer2DModel,
    )
    from transformers import (
        Mistral3Config,
        Mistral3ForConditionalGeneration,
        Qwen2Tokenizer,
        Qwen3Config,
        Qwen3ForCausalLM,
    )

TEXT: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 256,
}
QWEN_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
MISTRAL_TEMPLATE = (
    "{% for message in messages %}[{{ message.role }}]"
    "{% for part in message.content %}{{ part.text }}{% endfor %}[end]{% endfor %}"
)


def make_tokenizer(template: str, side: str) -> Any:
    """A tokenizer of bytes."""
    pieces = [*bytes_to_unicode().values(), "<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    tokenizer = Qwen2Tokenizer(vocab=vocabulary, merges=[], padding_side=side)
    tokenizer.add_special_tokens({"additional_special_tokens": [*pieces[-2:], "<think>", "</think>"]})
    tokenizer.chat_template = template
    return tokenizer


def make_transformer(*, is_dev: bool) -> Flux2Transformer2DModel:
    """FLUX.2's network with random weights, as wide as its latents."""
    return Flux2Transformer2DModel(
        in_channels=128,
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=32,
        num_attention_heads=4,
        joint_attention_dim=96,
        timestep_guidance_channels=32,
        axes_dims_rope=(8, 8, 8, 8),
        guidance_embeds=is_dev,
    )


def make_autoencoder() -> AutoencoderKLFlux2:
    """FLUX.2's autoencoder, with latents that are not normalised yet."""
    vae = AutoencoderKLFlux2(
        block_out_channels=(8, 8, 8, 16),
        decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        sample_size=64,
    )
    statistics: Any = vae.bn
    statistics.running_mean.uniform_(-0.2, 0.2)
    statistics.running_var.uniform_(0.2, 1.5)
    return vae


def make_encoder(*, is_dev: bool) -> Any:
    """The language model, one layer deeper than what is read of it."""
    if not is_dev:
        return Qwen3ForCausalLM(Qwen3Config(**TEXT, num_hidden_layers=28))
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = TEXT | {"model_type": "mistral", "num_hidden_layers": 31}
    vision |= {"model_type": "pixtral", "head_dim": 8, "image_size": 32, "patch_size": 16}
    return Mistral3ForConditionalGeneration(Mistral3Config(text_config=text, vision_config=vision))


def make_flux2_pipeline(*, is_dev: bool) -> Any:
    """The pipeline of klein or of dev."""
    tokenizer = make_tokenizer(*((MISTRAL_TEMPLATE, "left") if is_dev else (QWEN_TEMPLATE, "right")))
    with torch.random.fork_rng():
        torch.manual_seed(4)
        parts: dict[str, Any] = {
            "vae": make_autoencoder().eval(),
            "text_encoder": make_encoder(is_dev=is_dev).eval(),
            "transformer": make_transformer(is_dev=is_dev).eval(),
        }
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift=3.0)
    pipeline = (Flux2Pipeline if is_dev else Flux2KleinPipeline)(
        **parts, scheduler=scheduler, tokenizer=tokenizer
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def released_autoencoder(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state of diffusers' autoencoder of four levels, by Black Forest Labs' names."""
    renamed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        new = name
        for level in range(4):
            new = new.replace(f"encoder.down_blocks.{level}.resnets", f"encoder.down.{level}.block")
            new = new.replace(
                f"encoder.down_blocks.{level}.downsamplers.0", f"encoder.down.{level}.downsample"
            )
            new = new.replace(f"decoder.up_blocks.{level}.resnets", f"decoder.up.{3 - level}.block")
            new = new.replace(f"decoder.up_blocks.{level}.upsamplers.0", f"decoder.up.{3 - level}.upsample")
        for theirs, ours in (
            ("mid_block.resnets.0", "mid.block_1"), ("mid_block.resnets.1", "mid.block_2"),
            ("mid_block.attentions.0.group_norm", "mid.attn_1.norm"),
            ("mid_block.attentions.0.to_q", "mid.attn_1.q"), ("mid_block.attentions.0.to_k", "mid.attn_1.k"),
            ("mid_block.attentions.0.to_v", "mid.attn_1.v"),
            ("mid_block.attentions.0.to_out.0", "mid.attn_1.proj_out"),
            ("conv_norm_out", "norm_out"), ("conv_shortcut", "nin_shortcut"),
        ):  # fmt: skip
            new = new.replace(theirs, ours)
        new = f"encoder.{new}" if new.startswith("quant_conv") else new
        new = f"decoder.{new}" if new.startswith("post_quant_conv") else new
        renamed[new] = tensor[:, :, None, None] if ".attn_1." in new and tensor.ndim == 2 else tensor
    return renamed


class TinyFlux2(TinyImages):
    """See TinyPipeline."""

    family = FAMILY

    def __init__(self, *, is_dev: bool):
        self.is_dev, self.max_length = is_dev, 224 if is_dev else 56
        self.model: dict[str, Any] = {"t5_max_length": self.max_length}
        self.guidance = 2.5 if is_dev else 1.0

    def make(self, t5_path: Path, folder: Path) -> Any:
        return make_flux2_pipeline(is_dev=self.is_dev)

    def texts(self, pipeline: Any, captions: Sequence[str]) -> list[Conditioning]:
        states, _ = pipeline.encode_prompt(list(captions), max_sequence_length=self.max_length)
        return [{"states": one} for one in states]

    def velocity(
        self, network: Any, x: Tensor, noise_level: Tensor, texts: Sequence[Conditioning], grid: Grid
    ) -> Tensor:
        states = torch.stack([text["states"] for text in texts])
        return network(
            hidden_states=x,
            encoder_hidden_states=states,
            timestep=noise_level,
            img_ids=Flux2KleinPipeline._prepare_latent_ids(torch.empty(len(x), 1, *grid)),
            txt_ids=Flux2KleinPipeline._prepare_text_ids(states),
            guidance=torch.ones_like(noise_level) if self.is_dev else None,
            return_dict=False,
        )[0]

    def latents(
        self, pipeline: Any, prompt: str, tokens: Tensor, size: tuple[int, int], steps: int
    ) -> Tensor:
        planes = super().latents(pipeline, prompt, tokens, size, steps)
        patches, statistics = pipeline._patchify_latents(planes), pipeline.vae.bn
        mean, variance = (x.view(-1, 1, 1) for x in (statistics.running_mean, statistics.running_var))
        return pipeline._pack_latents((patches - mean) / torch.sqrt(variance + 1e-4))

    def noise(self, tokens: Tensor, size: tuple[int, int]) -> Tensor:
        return tokens.transpose(1, 2).unflatten(2, (size[1] // 16, size[0] // 16))

    def arguments(self) -> dict[str, Any]:
        return {"guidance_scale": self.guidance, "max_sequence_length": self.max_length}
