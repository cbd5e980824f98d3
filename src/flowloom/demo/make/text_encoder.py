"""Make `assets/t5`: `python -m flowloom.demo.make.text_encoder`, a few minutes on one core.

A sentencepiece tokenizer and a T5 v1.1 encoder of 128 channels, trained as T5 is (Raffel et al. 2019,
arXiv:1910.10683): words of a caption are hidden, and a decoder, thrown away afterwards, names them.
"""

from __future__ import annotations

import io
import json
import random
import sys
from pathlib import Path

import sentencepiece
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from flowloom.demo.captions import COLOURS, SHAPES
from flowloom.demo.images import drawings
from flowloom.import_warnings import quiet_imports
from flowloom.models.weights import save_weights

with quiet_imports():
    from transformers import T5Config, T5ForConditionalGeneration

OUT = Path(__file__).parents[1] / "assets" / "t5"
VOCABULARY = 1200
STEPS = 1200
BATCH = 32
HIDDEN_SHARE = 0.3
PAD, END = 0, 1


def train_tokenizer(captions: list[str]) -> bytes:
    """A unigram tokenizer with T5's special pieces, as spiece.model."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*captions, *(caption.upper() for caption in captions[::7])] * 3),
        model_writer=model,
        vocab_size=VOCABULARY,
        model_type="unigram",
        pad_id=PAD,
        eos_id=END,
        unk_id=2,
        bos_id=-1,
        character_coverage=1.0,
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


def corrupted(ids: list[int], draw: random.Random, sentinels: list[int]) -> tuple[list[int], list[int]]:
    """A caption with some pieces replaced by sentinels, and the expected output of the decoder."""
    given, wanted, used = [], [], 0
    for piece in ids:
        if draw.random() < HIDDEN_SHARE and used < len(sentinels):
            given.append(sentinels[used])
            wanted += [sentinels[used], piece]
            used += 1
        else:
            given.append(piece)
    return [*given, END], [*wanted, END]


def batch_of(captions: list[list[int]], draw: random.Random, sentinels: list[int]) -> tuple[Tensor, Tensor]:
    """Padded inputs and targets (BATCH, T) for one step; targets are -100 where padded."""
    pairs = [corrupted(draw.choice(captions), draw, sentinels) for _ in range(BATCH)]
    given = pad_sequence([torch.tensor(a) for a, _ in pairs], batch_first=True, padding_value=PAD)
    wanted = pad_sequence([torch.tensor(b) for _, b in pairs], batch_first=True, padding_value=-100)
    return given, wanted


def main() -> None:
    """Train both and write the folder."""
    torch.manual_seed(0)
    draw = random.Random(0)
    captions = [drawing.caption for drawing in drawings()]
    captions += [f"{colour} {shape}" for colour in COLOURS for shape in SHAPES] * 10
    tokenizer_model = train_tokenizer(captions)
    tokenizer = sentencepiece.SentencePieceProcessor(model_proto=tokenizer_model)
    pieces = [tokenizer.encode(caption) for caption in captions]
    sentinels = list(range(VOCABULARY, VOCABULARY + 8))
    config = T5Config(
        vocab_size=VOCABULARY + len(sentinels),
        d_model=128,
        d_kv=32,
        d_ff=256,
        num_layers=3,
        num_decoder_layers=1,
        num_heads=4,
        dropout_rate=0.0,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
        decoder_start_token_id=PAD,
    )
    model = T5ForConditionalGeneration(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, STEPS)
    for step in range(1, STEPS + 1):
        given, wanted = batch_of(pieces, draw, sentinels)
        loss = model(input_ids=given, attention_mask=given != PAD, labels=wanted).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 100 == 0:
            sys.stdout.write(f"step {step} loss {loss.item():.3f}\n")
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / "spiece.model").write_bytes(tokenizer_model)
    encoder = model.encoder.state_dict()
    tensors = {f"encoder.{name}": tensor.half() for name, tensor in encoder.items()}
    save_weights(OUT / "model.safetensors", tensors, {"format": "pt"})
    written = config.to_dict() | {"architectures": ["T5EncoderModel"], "is_encoder_decoder": False}
    (OUT / "config.json").write_text(json.dumps(written, indent=1) + "\n")


if __name__ == "__main__":
    main()
