"""Captioners of random weights, small enough to be made on the spot, as folders like the released ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from flowloom.import_warnings import quiet_imports

VOCABULARY = (
    "a an the picture of red green blue yellow big small old new cat dog fox tree house boat on in under "
    "with sky sea sun moon night day Describe this What does image paragraph one detail is shown "
    "user assistant you write captions photo : . , ?"
)
WORDS = tuple(VOCABULARY.split())
SPECIAL = ("<pad>", "<s>", "</s>", "<sep>", "<unk>", "<image>")
PAD, BOS, EOS, SEP, UNK, IMAGE = range(6)
SIDE, POSITIONS = 32, 60
CHAT = (
    "{% for message in messages %}{{ message.role }} : {% for part in message.content %}"
    "{% if part.type == 'image' %}<image>{% else %} {{ part.text }}{% endif %}{% endfor %} {% endfor %}"
    "{% if add_generation_prompt %}assistant : {% endif %}"
)
DECODER = {
    "sep_token_id": SEP,
    "encoder_hidden_size": 32,
    "initializer_range": 0.5,
    "max_position_embeddings": POSITIONS,
}
TEXT = {
    "vocab_size": len(SPECIAL) + len(WORDS),
    "bos_token_id": BOS,
    "eos_token_id": EOS,
    "pad_token_id": PAD,
}


def tokenizer(frame: str = "$A") -> Any:
    """One token a word, within the special ones of `frame`."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from tokenizers.processors import TemplateProcessing

    with quiet_imports():
        from transformers import PreTrainedTokenizerFast
    known = {word: i for i, word in enumerate((*SPECIAL, *WORDS))}
    words = Tokenizer(WordLevel(known, unk_token="<unk>"))
    words.pre_tokenizer = Whitespace()
    words.post_processor = TemplateProcessing(single=frame, special_tokens=[("<s>", BOS), ("<sep>", SEP)])
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        sep_token="<sep>",
        unk_token="<unk>",
        extra_special_tokens={"image_token": "<image>"},
        model_max_length=200,
    )


def write_blip(folder: Path) -> Path:
    """A BLIP."""
    with quiet_imports():
        from transformers import (
            BlipConfig,
            BlipForConditionalGeneration,
            BlipImageProcessorPil,
            BlipProcessor,
        )
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = BlipConfig(
        text_config=TEXT | sizes | DECODER,
        vision_config=sizes | {"image_size": SIDE, "patch_size": 16, "initializer_range": 0.5},
        projection_dim=32,
    )
    size = {"height": SIDE, "width": SIDE}
    processor = BlipProcessor(BlipImageProcessorPil(size=size), tokenizer("<s> $A <sep>"))
    return _save(folder, BlipForConditionalGeneration, config, processor)


def write_florence(folder: Path) -> Path:
    """A Florence-2."""
    with quiet_imports():
        from transformers import (
            CLIPImageProcessorPil,
            Florence2Config,
            Florence2ForConditionalGeneration,
            Florence2Processor,
        )
    dims = [8, 16, 16, 32]
    config = Florence2Config(
        vision_config={
            "embed_dim": dims, "depths": [1, 1, 1, 1], "num_heads": [2] * 4, "num_groups": [2] * 4,
            "window_size": 4, "projection_dim": 32, "drop_path_rate": 0.0,
        },
        text_config=TEXT | {
            "model_type": "bart", "d_model": 32, "encoder_layers": 1, "decoder_layers": 2,
            "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 48,
            "decoder_ffn_dim": 48, "max_position_embeddings": POSITIONS, "init_std": 0.5,
            "decoder_start_token_id": EOS,
            "forced_eos_token_id": None, "forced_bos_token_id": None,
        },
        image_token_id=IMAGE,
        **{key: TEXT[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")},  # pyright: ignore[reportArgumentType]
    )  # fmt: skip
    # The last of four halvings leaves one place; its token, and that of the whole.
    images = CLIPImageProcessorPil(
        size={"height": SIDE, "width": SIDE}, do_center_crop=False, image_seq_length=2
    )
    return _save(folder, Florence2ForConditionalGeneration, config, Florence2Processor(images, tokenizer()))


def write_chat(folder: Path, template: str | None = CHAT) -> Path:
    """A LLaVA."""
    with quiet_imports():
        from transformers import (
            CLIPImageProcessorPil,
            LlavaConfig,
            LlavaForConditionalGeneration,
            LlavaProcessor,
        )
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlavaConfig(
        vision_config={"model_type": "clip_vision_model", "image_size": SIDE, "patch_size": 16} | sizes,
        text_config=TEXT
        | sizes
        | {"model_type": "llama", "num_key_value_heads": 2, "initializer_range": 0.5},
        image_token_index=IMAGE,
        image_seq_length=4,
        vision_feature_layer=-1,
    )
    side = {"height": SIDE, "width": SIDE}
    images = CLIPImageProcessorPil(size=side, crop_size=side, do_center_crop=False)
    processor = LlavaProcessor(
        images, tokenizer(), patch_size=16, vision_feature_select_strategy="default",
        num_additional_image_tokens=1, chat_template=template,
    )  # fmt: skip
    return _save(folder, LlavaForConditionalGeneration, config, processor)


def _save(folder: Path, network: Callable[[Any], Any], config: Any, processor: Any) -> Path:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = network(config)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


KINDS: dict[str, Callable[[Path], Path]] = {
    "blip": write_blip,
    "florence2": write_florence,
    "chat": write_chat,
}
