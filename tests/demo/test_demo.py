"""The demo: its data, judge and small networks, and a complete run in a minute."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from flowloom.cli.main import main
from flowloom.demo.captions import COLOURS, SHAPES, UNSEEN, caption_of
from flowloom.demo.grid import draw_grid
from flowloom.demo.images import Drawing, build, drawings
from flowloom.demo.judge import Verdict, example, judge
from flowloom.demo.plan import PLANS, fitting
from flowloom.demo.run import Terminal, demo, score
from flowloom.models.autoencoder import load_autoencoder
from flowloom.models.text_encoder import load_text_encoder
from flowloom.run.directory import RunDir
from flowloom.run.results import samples_of
from flowloom.server.allowed_roots import AllowedRoots
from flowloom.server.settings import Settings
from flowloom.tasks.demo import ASSETS, DEMO, SIZE

CPU = torch.device("cpu")
PAIRS = {f"{colour} {shape}": (colour, shape) for colour in COLOURS for shape in SHAPES}


@pytest.fixture(scope="module")
def found() -> list[Drawing]:
    return list(drawings())


@pytest.fixture(scope="module")
def plain(found: list[Drawing]) -> dict[str, Drawing]:
    """The drawings of the 26 pairs that Unicode has."""
    return {drawing.caption: drawing for drawing in found if drawing.caption in PAIRS}


def test_there_are_enough_images_and_each_pair_but_one_exists_once(
    found: list[Drawing], plain: dict[str, Drawing]
) -> None:
    assert len(found) >= 1500
    assert set(PAIRS) - set(plain) == {UNSEEN}
    captions = [drawing.caption for drawing in found]
    assert all(captions.count(caption) == 1 for caption in plain)


def test_captions_say_what_is_shown() -> None:
    assert caption_of("2764") == "red heart"
    assert caption_of("1F7E5") == "red square"
    assert caption_of("26AB") == "black circle"
    assert caption_of("1F469-200D-1F680") == "woman, rocket"
    assert caption_of("1F1E9-1F1EA") is None


@pytest.mark.parametrize("size", [64, 96])
def test_the_judge_is_right_on_every_real_image(plain: dict[str, Drawing], size: int) -> None:
    wrong = {
        c: judge(example(p.code, size)) for c, p in plain.items() if judge(example(p.code, size)) != PAIRS[c]
    }
    assert wrong == {}
    assert judge(example("26AA", size)) == ("white", "circle")


@pytest.mark.parametrize("change", ["blur", "noise", "shift", "vae"])
def test_the_judge_is_right_on_imperfect_images(plain: dict[str, Drawing], change: str) -> None:
    """Blurred, noisy, shifted, or encoded and decoded by the small VAE."""
    random = np.random.default_rng(0)
    vae = load_autoencoder(ASSETS / "ae.safetensors", CPU, torch.float32)
    right = 0
    for caption, drawing in plain.items():
        pixels = example(drawing.code, SIZE)
        if change == "blur":
            pixels = np.asarray(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(0.7)))
        elif change == "noise":
            pixels = (pixels + random.normal(0, 6, pixels.shape)).clip(0, 255).astype(np.uint8)
        elif change == "shift":
            pixels = np.roll(pixels, (2, -3), (0, 1))
        else:
            image = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
            with torch.no_grad():
                again = vae.decode(vae.encode(image)).clamp(-1, 1)
            pixels = ((again[0] + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
        right += judge(pixels) == PAIRS[caption]
    assert right >= 25


def test_the_judge_sees_nothing_in_other_images(found: list[Drawing]) -> None:
    """Most emoji, blank paper, grey and noise: no shape in a colour. An apple may pass for a red circle."""
    others = [drawing for drawing in found if drawing.caption not in PAIRS][::5]
    claims = [v for v in (judge(example(p.code, SIZE)) for p in others) if v.colour and v.shape]
    assert len(claims) <= 0.03 * len(others)
    noise = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3)).astype(np.uint8)
    for nothing in (noise, np.full_like(noise, 255), np.full_like(noise, 128), np.zeros_like(noise)):
        assert not (judge(nothing).colour and judge(nothing).shape)


def test_the_score_counts_colour_and_shape_together() -> None:
    red = Image.fromarray(example("1F534", SIZE))
    images = {("red", "circle", 1): red, ("red", "square", 1): red, ("blue", "circle", 1): red}
    counted = score(images)
    assert (counted.right, counted.right_colour, counted.total) == (1, 2, 3)
    assert Verdict("red", "circle") == judge(np.asarray(red))


def test_building_twice_renders_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = build(tmp_path / "data", 16)
    rows = [json.loads(line) for line in data.jsonl.read_text().splitlines()]
    assert len({row["filename"] for row in rows}) == data.num_images >= 1500
    with Image.open(data.folder / rows[0]["filename"]) as image:
        assert image.size == (16, 16)
    before = data.jsonl.stat().st_mtime_ns
    build(tmp_path / "data", 16)
    assert data.jsonl.stat().st_mtime_ns == before


def test_each_image_has_a_caption_file(tmp_path: Path, found: list[Drawing]) -> None:
    folder = build(tmp_path / "data", 16).folder
    written = {path.stem: path.read_text().strip() for path in folder.glob("*.txt")}
    assert written == {drawing.code: drawing.caption for drawing in found}


def test_the_small_vae_keeps_colours() -> None:
    """26 dB on images, and latents of about unit deviation in every channel."""
    vae = load_autoencoder(ASSETS / "ae.safetensors", CPU, torch.float32)
    codes = [drawing.code for drawing in drawings()][::40]
    images = torch.stack([torch.from_numpy(example(code, SIZE).copy()) for code in codes])
    images = images.permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        latents = vae.encode(images)
        decoded = vae.decode(latents).clamp(-1, 1)
    psnr = 10 * torch.log10(4 / (decoded - images).square().mean((1, 2, 3)))
    assert psnr.mean() > 24
    deviations = latents.std((0, 2, 3))
    assert 0.7 < deviations.min() < deviations.max() < 1.4


def test_the_small_text_encoder_knows_its_words() -> None:
    encoder = load_text_encoder(ASSETS / "t5", ASSETS / "t5/config.json", ASSETS / "t5", CPU, torch.float32)
    states = encoder.encode(["red heart", "blue heart", ""], 64)
    assert [len(s) for s in states][2] == 2
    assert encoder.count_tokens(["red heart"])[0] <= 5
    assert (states[0][:1] - states[1][:1]).abs().max() > 0.1


def test_the_goal_fits_the_machine() -> None:
    """Images get a quarter of the time: as many prompts and seeds as fit, and at least some."""
    assert [plan.num_images for plan in PLANS] == [81 + 27 + 9, 27 + 27 + 9, 9 + 9 + 3, 3 + 3]
    assert fitting(0.1, 600) == PLANS[0]
    assert fitting(150 / 117, 600) == PLANS[0]
    assert fitting(150 / 116, 600) == PLANS[1]
    assert fitting(1.5, 180) == PLANS[2]
    assert fitting(60.0, 180) == PLANS[3]
    for plan in PLANS:
        assert len(set(plan.asked)) == len(plan.asked) == len(plan.baseline) * len(plan.seeds)
    assert {(c, s) for c, s, _ in PLANS[0].asked} == set(PAIRS.values())


def test_the_grid_has_every_image_and_no_more() -> None:
    tile = Image.new("RGB", (SIZE, SIZE), "red")
    heights = []
    for plan in PLANS:
        sheet = draw_grid(dict.fromkeys(plan.asked, tile), [(p, tile) for p in plan.free], "headline")
        reds = (np.asarray(sheet) == (255, 0, 0)).all(axis=2).sum()
        assert reds == (len(plan.baseline) + len(plan.free)) * 80 * 80
        heights.append(sheet.height)
    assert heights == sorted(heights, reverse=True)


@pytest.fixture(scope="module")
def demo_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str], list[str]]:
    """A demo of a few seconds in a separate folder: its grid, lines, and progress lines."""
    said: list[str] = []
    moved: list[str] = []
    grid = demo(
        tmp_path_factory.mktemp("home") / "runs", 0.05, Terminal(lambda _: None, said.append, moved.append)
    )
    return grid, said, moved


@pytest.mark.slow
def test_the_demo_runs_to_its_end_and_reports_each_phase(demo_run: tuple[Path, list[str], list[str]]) -> None:
    """Images, the untrained network, training, the trained network, the grid, the next commands."""
    grid, said, moved = demo_run
    with Image.open(grid) as sheet:
        assert sheet.width > 600
    labels = [line.split()[0] for line in said if not line.startswith((" ", "slow", "note"))]
    assert labels == ["images", "model", "untrained", "goal", "training", "trained", "time", "next"]
    assert any("CC BY-SA" in line for line in said)
    assert any(" up" in line and line.startswith("next") for line in said)
    assert any(line.startswith("images ") and line.endswith("1,670 made") for line in moved)
    for name in ("untrained", "trained"):
        progress = [line for line in moved if line.startswith(f"{name} ")]
        assert progress
        assert "left" not in progress[-1], "all of them"


@pytest.mark.slow
def test_the_studio_can_use_a_demo_run(
    demo_run: tuple[Path, list[str], list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is in the folders of the studio's demo, and its paths are valid from every folder."""
    run_dir = RunDir.open(demo_run[0].parent)
    home = run_dir.path.parents[1]
    content = run_dir.read_run()
    assert content["trainer"] == "demo"
    named = content["config"]["model"]
    studio_run = RunDir.create("by-the-studio", home / "runs")
    DEMO.prepare({}, studio_run, "a test")
    assert {key: value for key, value in named.items() if key.endswith("_path")} == {
        key: value for key, value in studio_run.read_run()["config"]["model"].items() if key.endswith("_path")
    }
    folders = Settings(home).roots
    assert list(AllowedRoots(folders).path_problems(content["config"])) == [], (
        "it can be edited as a new training"
    )
    monkeypatch.chdir(tmp_path)
    steps = run_dir.latest_checkpoint()
    assert main(["resume", str(run_dir.path), "--limits.max_minutes", "0.1"]) == 0
    assert run_dir.latest_checkpoint() != steps


@pytest.mark.slow
def test_the_grid_is_among_the_samples_of_the_run(demo_run: tuple[Path, list[str], list[str]]) -> None:
    run_dir = RunDir.open(demo_run[0].parent)
    (found,) = [path for _, path in samples_of(run_dir) if path.name == "grid.png"]
    (record,) = json.loads((found.parent / "samples.json").read_text())
    assert record["file"] == "grid.png"
    with Image.open(found) as sheet:
        assert sheet.size == (record["width"], record["height"])


@pytest.mark.slow
def test_another_demo_uses_the_same_images_and_models(demo_run: tuple[Path, list[str], list[str]]) -> None:
    runs = demo_run[0].parents[1]
    kept = [runs.parent / "data/demo/data.jsonl", runs.parent / "models/demo/chroma.safetensors"]
    before = [path.stat().st_mtime_ns for path in kept]
    time.sleep(1.1)  # names of runs have seconds
    assert demo(runs, 0.02, Terminal(lambda _: None, lambda _: None)) != demo_run[0]
    assert [path.stat().st_mtime_ns for path in kept] == before
    assert not (runs / "demo-data").exists()


@pytest.mark.parametrize(
    ("load", "set_by_user", "expected"),
    [(100.0, None, "PASSIVE"), (100.0, "ACTIVE", "ACTIVE"), (0.0, None, "None")],
)
def test_threads_of_the_cpu_wait_without_spinning_on_a_busy_machine(
    load: float, set_by_user: str | None, expected: str
) -> None:
    code = f"import os; os.getloadavg = lambda: ({load}, 0, 0); os.cpu_count = lambda: 2; "
    code += (
        "from flowloom.cli.main import main; main(['--version']); print(os.environ.get('OMP_WAIT_POLICY'))"
    )
    environ = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    environ |= {"OMP_WAIT_POLICY": set_by_user} if set_by_user else {}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True
    )
    assert done.stdout.split()[-1] == expected
