"""The demo's data, its judge, its small networks, and the whole of it in a minute."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from flowloom.chores.demo import ASSETS, SIZE
from flowloom.demo.captions import COLOURS, SHAPES, UNSEEN, caption_of
from flowloom.demo.judge import Verdict, example, judge
from flowloom.demo.pictures import Picture, build, drawings
from flowloom.demo.run import demo, score
from flowloom.parts.families.autoencoder import load_autoencoder
from flowloom.parts.families.text_encoder import load_text_encoder

CPU = torch.device("cpu")
PAIRS = {f"{colour} {shape}": (colour, shape) for colour in COLOURS for shape in SHAPES}


@pytest.fixture(scope="module")
def found() -> list[Picture]:
    return list(drawings())


@pytest.fixture(scope="module")
def plain(found: list[Picture]) -> dict[str, Picture]:
    """The pictures of the 26 pairs that Unicode has."""
    return {picture.caption: picture for picture in found if picture.caption in PAIRS}


def test_there_are_enough_pictures_and_each_pair_but_one_is_there_once(
    found: list[Picture], plain: dict[str, Picture]
) -> None:
    assert len(found) >= 1500
    assert set(PAIRS) - set(plain) == {UNSEEN}
    captions = [picture.caption for picture in found]
    assert all(captions.count(caption) == 1 for caption in plain)


def test_captions_say_what_is_shown() -> None:
    assert caption_of("2764") == "red heart"
    assert caption_of("1F7E5") == "red square"
    assert caption_of("26AB") == "black circle"
    assert caption_of("1F469-200D-1F680") == "woman, rocket"
    assert caption_of("1F1E9-1F1EA") is None


@pytest.mark.parametrize("size", [64, 96])
def test_the_judge_is_right_on_every_real_picture(plain: dict[str, Picture], size: int) -> None:
    wrong = {
        c: judge(example(p.code, size)) for c, p in plain.items() if judge(example(p.code, size)) != PAIRS[c]
    }
    assert wrong == {}
    assert judge(example("26AA", size)) == ("white", "circle")


@pytest.mark.parametrize("change", ["blur", "noise", "shift", "vae"])
def test_the_judge_is_right_on_pictures_that_are_not_perfect(plain: dict[str, Picture], change: str) -> None:
    """Blurred, noisy, moved, or drawn again by the small VAE."""
    draw = np.random.default_rng(0)
    vae = load_autoencoder(ASSETS / "ae.safetensors", CPU, torch.float32)
    right = 0
    for caption, picture in plain.items():
        pixels = example(picture.code, SIZE)
        if change == "blur":
            pixels = np.asarray(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(0.7)))
        elif change == "noise":
            pixels = (pixels + draw.normal(0, 6, pixels.shape)).clip(0, 255).astype(np.uint8)
        elif change == "shift":
            pixels = np.roll(pixels, (2, -3), (0, 1))
        else:
            image = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
            with torch.no_grad():
                again = vae.decode(vae.encode(image)).clamp(-1, 1)
            pixels = ((again[0] + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
        right += judge(pixels) == PAIRS[caption]
    assert right >= 25


def test_the_judge_sees_nothing_in_other_pictures(found: list[Picture]) -> None:
    """Most emoji, blank paper, grey and noise: no shape in a colour. An apple may pass for a red circle."""
    others = [picture for picture in found if picture.caption not in PAIRS][::5]
    claims = [v for v in (judge(example(p.code, SIZE)) for p in others) if v.colour and v.shape]
    assert len(claims) <= 0.03 * len(others)
    noise = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3)).astype(np.uint8)
    for nothing in (noise, np.full_like(noise, 255), np.full_like(noise, 128), np.zeros_like(noise)):
        assert not (judge(nothing).colour and judge(nothing).shape)


def test_the_score_counts_colour_and_shape_together() -> None:
    red = Image.fromarray(example("1F534", SIZE))
    asked = {("red", "circle", 1): red, ("red", "square", 1): red, ("blue", "circle", 1): red}
    counted = score(asked)
    assert (counted.right, counted.right_colour, counted.total) == (1, 2, 3)
    assert Verdict("red", "circle") == judge(np.asarray(red))


def test_building_twice_draws_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = build(tmp_path / "data", 16)
    rows = [json.loads(line) for line in data.jsonl.read_text().splitlines()]
    assert len({row["filename"] for row in rows}) == data.num_pictures >= 1500
    with Image.open(data.folder / rows[0]["filename"]) as picture:
        assert picture.size == (16, 16)
    before = data.jsonl.stat().st_mtime_ns
    build(tmp_path / "data", 16)
    assert data.jsonl.stat().st_mtime_ns == before


def test_each_picture_has_its_caption_beside_it(tmp_path: Path, found: list[Picture]) -> None:
    folder = build(tmp_path / "data", 16).folder
    written = {path.stem: path.read_text().strip() for path in folder.glob("*.txt")}
    assert written == {picture.code: picture.caption for picture in found}


def test_the_small_vae_draws_colours_again() -> None:
    """26 dB on pictures, and latents of about unit deviation in every channel."""
    vae = load_autoencoder(ASSETS / "ae.safetensors", CPU, torch.float32)
    codes = [picture.code for picture in drawings()][::40]
    images = torch.stack([torch.from_numpy(example(code, SIZE).copy()) for code in codes])
    images = images.permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        latents = vae.encode(images)
        drawn = vae.decode(latents).clamp(-1, 1)
    psnr = 10 * torch.log10(4 / (drawn - images).square().mean((1, 2, 3)))
    assert psnr.mean() > 24
    deviations = latents.std((0, 2, 3))
    assert 0.7 < deviations.min() < deviations.max() < 1.4


def test_the_small_text_encoder_knows_its_words() -> None:
    encoder = load_text_encoder(ASSETS / "t5", ASSETS / "t5/config.json", ASSETS / "t5", CPU, torch.float32)
    states = encoder.encode(["red heart", "blue heart", ""], 64)
    assert [len(s) for s in states][2] == 2
    assert encoder.count_tokens(["red heart"])[0] <= 5
    assert (states[0][:1] - states[1][:1]).abs().max() > 0.1


@pytest.mark.slow
def test_the_demo_runs_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A few seconds of it: data, training, measuring, the grid."""
    said: list[str] = []
    events: list[Callable[..., object]] = []
    grid = demo(tmp_path, 0.05, events.append, said.append)
    with Image.open(grid) as sheet:
        assert sheet.width > 600
    assert any("untrained" in line for line in said)
    assert any("CC BY-SA" in line for line in said)
