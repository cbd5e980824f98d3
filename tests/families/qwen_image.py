"""Qwen-Image's pipelines at tiny random sizes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor, nn

from flowloom.import_warnings import quiet_imports
from flowloom.models.families.qwen_image import FAMILY
from flowloom.models.family import Conditioning, Grid
from flowloom.models.qwen_text import EDIT_TEMPLATE, TEMPLATE
from tests.families.tiny import TinyImages

with quiet_imports():
    from diffusers import (
        AutoencoderKLQwenImage,
        FlowMatchEulerDiscreteScheduler,
        QwenImagePipeline,
        QwenImageTransformer2DModel,
    )
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2Tokenizer

_SPECIAL = ("im_start", "im_end", "vision_start", "vision_end", "vision_pad", "image_pad", "video_pad")
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)


def make_tokenizer(*templates: str) -> Qwen2Tokenizer:
    """A tokenizer of bytes in which `templates` have as many tokens as with Qwen's own."""
    pairs = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(_WORDS), "isolated")
    letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    pairs.pre_tokenizer = pre_tokenizers.Sequence([split, letters])
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=900, initial_alphabet=alphabet, show_progress=False)
    pairs.train_from_iterator(templates, trainer)
    found = json.loads(pairs.to_str())["model"]
    merges: Any = [tuple(pair) for pair in found["merges"]]
    tokenizer = Qwen2Tokenizer(vocab=found["vocab"], merges=merges)
    tokenizer.add_special_tokens({"additional_special_tokens": [f"<|{name}|>" for name in _SPECIAL]})
    return tokenizer


def make_encoder(tokenizer: Any) -> Qwen2_5_VLForConditionalGeneration:
    """Qwen2.5-VL with random weights."""
    names = {"image_token_id": "image_pad", "video_token_id": "video_pad"}
    names |= {f"vision_{side}_token_id": f"vision_{side}" for side in ("start", "end")}
    ids = {key: tokenizer.convert_tokens_to_ids(f"<|{name}|>") for key, name in names.items()}
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "bos_token_id": None,
        "eos_token_id": None,
        "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e6},
    }
    vision = {"depth": 1, "hidden_size": 32, "num_heads": 2, "out_hidden_size": 32, "intermediate_size": 48}
    vision |= {"fullatt_block_indexes": [0]}
    return Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision, **ids))


def make_transformer(**settings: Any) -> QwenImageTransformer2DModel:
    """Qwen-Image's network with random weights, as wide as its latents."""
    return QwenImageTransformer2DModel(
        in_channels=64,
        out_channels=16,
        num_layers=3,
        attention_head_dim=16,
        num_attention_heads=4,
        joint_attention_dim=32,
        axes_dims_rope=(4, 6, 6),
        **settings,
    )


def make_scheduler() -> FlowMatchEulerDiscreteScheduler:
    """The release's sampler."""
    return FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True,
        base_shift=0.5,
        max_shift=0.9,
        base_image_seq_len=256,
        max_image_seq_len=8192,
        shift_terminal=0.02,
    )


def make_parts(*templates: str, **settings: Any) -> dict[str, Any]:
    """The parts of a pipeline; `settings` are the network's."""
    tokenizer = make_tokenizer(*templates)
    with torch.random.fork_rng():
        torch.manual_seed(4)
        return {
            "scheduler": make_scheduler(),
            "vae": AutoencoderKLQwenImage(base_dim=8, z_dim=16, num_res_blocks=1).eval(),
            "text_encoder": make_encoder(tokenizer).eval(),
            "tokenizer": tokenizer,
            "transformer": make_transformer(**settings).eval(),
        }


class TinyQwenImage(TinyImages):
    """See TinyPipeline."""

    family = FAMILY
    model: dict[str, Any] = {}
    guidance = 1.0

    def make(self, t5_path: Path, folder: Path) -> Any:
        return QwenImagePipeline(**make_parts(TEMPLATE))

    def texts(self, pipeline: Any, captions: Sequence[str]) -> list[Conditioning]:
        states, mask = pipeline.encode_prompt(list(captions))
        return [{"states": own[: int(seen.sum())]} for own, seen in zip(states, mask, strict=True)]

    def velocity(
        self, network: Any, x: Tensor, noise_level: Tensor, texts: Sequence[Conditioning], grid: Grid
    ) -> Tensor:
        longest = max(len(text["states"]) for text in texts)
        # Padding of another value: the mask alone keeps it out.
        states = [
            nn.functional.pad(text["states"], (0, 0, 0, longest - len(text["states"])), value=3.0)
            for text in texts
        ]
        mask = torch.stack([(torch.arange(longest) < len(text["states"])).long() for text in texts])
        return network(
            hidden_states=x,
            encoder_hidden_states=torch.stack(states),
            encoder_hidden_states_mask=mask,
            timestep=noise_level,
            img_shapes=[[(1, grid[0] // 2, grid[1] // 2)]] * len(x),
            return_dict=False,
        )[0]

    def arguments(self) -> dict[str, Any]:
        return {"true_cfg_scale": 1.0}


def make_edit_pipeline(*, is_first: bool = False, **settings: Any) -> Any:
    """Qwen-Image-Edit, the first or Plus; `settings` are the network's."""
    from diffusers import QwenImageEditPipeline, QwenImageEditPlusPipeline
    from transformers import processing_utils
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
    from transformers.models.qwen2_vl.processing_qwen2_vl import Qwen2VLProcessor

    parts = make_parts(TEMPLATE, EDIT_TEMPLATE, **settings)
    # The processor checks the class of a part for videos, which needs torchvision.
    module: Any = processing_utils.transformers_module
    module.VideoProcessorMixin = type(None)
    processor = Qwen2VLProcessor(Qwen2VLImageProcessorPil(), parts["tokenizer"], None)

    def with_positions(_encoder: Any, _args: Any, inputs: dict[str, Any]) -> Any:
        # Earlier versions of transformers found the images by their tokens; now the caller has to.
        is_image = inputs["input_ids"] == parts["text_encoder"].config.image_token_id
        return (), inputs | {"mm_token_type_ids": is_image.int()}

    parts["text_encoder"].register_forward_pre_hook(with_positions, with_kwargs=True)
    kind: Any = QwenImageEditPipeline if is_first else QwenImageEditPlusPipeline
    pipeline = kind(**parts, processor=processor)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def save_edit_pipeline(pipeline: Any, folder: Path) -> None:
    """Save the parts of `pipeline`; the processor has none for videos, with which it cannot be saved."""
    for name in ("vae", "text_encoder", "tokenizer", "transformer", "scheduler"):
        getattr(pipeline, name).save_pretrained(folder / name)
    (folder / "model_index.json").write_text(json.dumps({"_class_name": type(pipeline).__name__}))
