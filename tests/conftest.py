"""The tiny family: a Chroma, a VAE and a T5 with its tokenizer, on disk as the released ones are."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.fakes.faulty import faulty  # noqa: F401 -- a fixture
from tests.fakes.files import elsewhere, files  # noqa: F401 -- fixtures
from tests.fakes.hub import hub  # noqa: F401 -- a fixture
from tests.fakes.seaweed import seaweed, storage  # noqa: F401 -- fixtures

# Before torch is imported: tiny tensors on several threads spend their time waiting for one another, most of
# all where tests run side by side.
os.environ.setdefault("OMP_NUM_THREADS", "1")

SENTENCES = (
    "a red bar on white, number 1", "a green bar, number 2", "blue circle and yellow square, number 30",
    "the quick brown fox jumps over the lazy dog", "pack my box with five dozen liquor jugs",
    "a picture of a cat under a tree at night", "grinning face, sunflower, heavy black heart, rocket",
    "RED, GREEN, BLUE and YELLOW: numbers 4, 5, 6, 7, 8 and 9!", "portrait of an old man in a boat",
)  # fmt: skip


@pytest.fixture(scope="session", autouse=True)
def _no_files_of_this_user(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keeps the user's checkouts, secrets and caches out of the tests."""
    folder = tmp_path_factory.mktemp("user")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FLOWLOOM_TRAINERS", str(folder / "trainers.json"))
        patch.setenv("FLOWLOOM_SECRETS", str(folder / "secrets.json"))
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        yield


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options of these tests."""
    parser.addoption("--write-golden", action="store_true", help="write golden losses instead of comparing")
    parser.addoption("--exact-golden", action="store_true", help="compare golden losses to the last digit")


class TinyFamily(NamedTuple):
    """Paths of the files of the tiny networks."""

    chroma_path: Path
    vae_path: Path
    t5_path: Path
    """Folder with model.safetensors, config.json and spiece.model."""


@pytest.fixture(scope="session")
def tiny_chroma_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Chroma of nn/tiny.py's size with random weights, none of them zero."""
    import torch

    from flowloom.models.weights import save_weights
    from flowloom.nn.tiny import TINY, random_chroma_weights

    draw = torch.Generator().manual_seed(1)
    weights = {
        name: weight + 0.02 * torch.randn(weight.shape, generator=draw)
        for name, weight in random_chroma_weights(TINY, seed=1).items()
    }
    path = tmp_path_factory.mktemp("chroma") / "chroma.safetensors"
    save_weights(path, weights, {})
    return path


@pytest.fixture(scope="session")
def tiny_vae_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A FLUX-style autoencoder, 8 pixels a latent, with the released names."""
    import torch

    from flowloom.models.autoencoder import save_autoencoder
    from tests.fakes.tiny_pipelines import make_autoencoder

    with torch.random.fork_rng():
        torch.manual_seed(2)
        model = make_autoencoder()
    path = tmp_path_factory.mktemp("vae") / "ae.safetensors"
    save_autoencoder(path, model)
    return path


@pytest.fixture(scope="session")
def tiny_t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a T5 encoder's config.json and model.safetensors, and a real spiece.model."""
    import torch

    from flowloom.import_warnings import quiet_imports
    from flowloom.models.weights import save_weights
    from flowloom.nn.tiny import TINY

    with quiet_imports():
        from transformers import T5Config, T5EncoderModel
    folder = tmp_path_factory.mktemp("t5")
    vocabulary = write_tokenizer(folder / "spiece.model")
    settings = {
        "d_model": TINY.context_in_dim,
        "d_ff": 64,
        "d_kv": 16,
        "num_heads": 2,
        "num_layers": 2,
        "vocab_size": vocabulary,
        "feed_forward_proj": "gated-gelu",
    }
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = T5EncoderModel(T5Config(**settings))
    (folder / "config.json").write_text(json.dumps(settings))
    tensors = {name: tensor for name, tensor in model.state_dict().items() if "embed_tokens" not in name}
    save_weights(folder / "model.safetensors", tensors, {})
    return folder


def write_tokenizer(path: Path) -> int:
    """Train a sentencepiece model with T5's special ids; the size of its vocabulary."""
    from sentencepiece import SentencePieceProcessor, SentencePieceTrainer

    model = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES * 3),
        model_writer=model,
        vocab_size=120,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    path.write_bytes(model.getvalue())
    return SentencePieceProcessor(model_proto=model.getvalue()).vocab_size()


@pytest.fixture(scope="session")
def tiny_family(tiny_chroma_path: Path, tiny_vae_path: Path, tiny_t5: Path) -> TinyFamily:
    """All of them."""
    return TinyFamily(tiny_chroma_path, tiny_vae_path, tiny_t5)


@pytest.fixture(scope="session")
def tiny_flux1_dir(tiny_t5: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A diffusers folder with FLUX.1 dev at a tiny random size."""
    from tests.fakes.tiny_pipelines import make_flux1_pipeline

    folder = tmp_path_factory.mktemp("flux1")
    make_flux1_pipeline(tiny_t5, folder, is_dev=True)
    return folder / "pipeline"
