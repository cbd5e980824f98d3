"""T5's tokenizer; it needs neither the network nor torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from flowloom.errors import WeightsError

PAD, EOS = 0, 1
"""T5's ids of the padding token and of the end of the text."""

Tokenize = Callable[[str], list[int]]
"""Ids of a caption, without the end of the text."""


def load_tokenizer(path: Path) -> tuple[Tokenize, int]:
    """The tokenizer in `path`, by spiece.model or else tokenizer.json, and its number of pieces.

    Raises:
        WeightsError: neither file is there, or it is not T5's kind.
    """
    path = Path(path)
    found = [path] if path.is_file() else [path / "spiece.model", path / "tokenizer.json"]
    file = next((candidate for candidate in found if candidate.is_file()), None)
    if file is None:
        raise WeightsError(
            f"{path}: neither spiece.model nor tokenizer.json is here. Copy T5's tokenizer to it."
        )
    return _from_json(file) if file.suffix == ".json" else _from_sentencepiece(file)


def _from_sentencepiece(path: Path) -> tuple[Tokenize, int]:
    try:
        from sentencepiece import SentencePieceProcessor
    except ImportError as error:
        raise WeightsError(
            f"{path}: needs the package sentencepiece. Install it with 'pip install sentencepiece', "
            "or put a tokenizer.json in place of this file."
        ) from error
    try:
        processor = SentencePieceProcessor(model_proto=path.read_bytes())
    except RuntimeError as error:
        raise WeightsError(f"{path}: not a complete sentencepiece model. Download it again.") from error
    _check_ids(path, processor.piece_to_id("<pad>"), processor.piece_to_id("</s>"))
    return lambda caption: processor.encode(_clean(caption)), processor.vocab_size()


def _from_json(path: Path) -> tuple[Tokenize, int]:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(path))
    _check_ids(path, tokenizer.token_to_id("<pad>"), tokenizer.token_to_id("</s>"))
    tokenizer.no_padding()
    tokenizer.no_truncation()

    def tokenize(caption: str) -> list[int]:
        return tokenizer.encode(_clean(caption), add_special_tokens=False).ids

    return tokenize, tokenizer.get_vocab_size()


def _check_ids(path: Path, pad: int | None, eos: int | None) -> None:
    if (pad, eos) != (PAD, EOS):
        raise WeightsError(
            f"{path}: <pad> and </s> are {pad} and {eos}, not {PAD} and {EOS}: not T5's tokenizer."
        )


def _clean(caption: str) -> str:
    # Tokenizers reject half of a surrogate pair, which JSON can spell.
    return caption.encode("utf-8", "replace").decode()
