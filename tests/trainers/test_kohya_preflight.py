"""The needs of a run of sd-scripts are reported before it starts."""

from __future__ import annotations

import json
import re
import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from flowloom.run.directory import RunDir
from flowloom.trainers.base import Preset
from flowloom.trainers.checkouts import add_checkout
from flowloom.trainers.kohya.buckets import Buckets
from flowloom.trainers.kohya.config import Dataset, KohyaConfig
from flowloom.trainers.kohya.files import arguments_of
from flowloom.trainers.kohya.footprint import Weights, footprint, kept_files, kept_states
from flowloom.trainers.kohya.images import NO_CAPTION, OTHER_EXTENSION, Found, Reader
from flowloom.trainers.kohya.preflight import Asked, preflight
from flowloom.trainers.kohya.trainer import TRAINER
from tests.fakes.least_sd_scripts import let_it_take_everything
from tests.fakes.sd_scripts import CHECKOUT, HERE, PYTHON, needs_sd_scripts, prepare

Config = Callable[..., dict[str, Any]]


def paint(folder: Path, *sizes: tuple[int, int], caption: str = "a fox") -> Path:
    """Images of these sizes, each with a caption."""
    folder.mkdir(parents=True)
    for i, size in enumerate(sizes):
        Image.new("RGB", size).save(folder / f"{i:02d}.png")
        (folder / f"{i:02d}.txt").write_text(caption)
    return folder


def read(*datasets: dict[str, Any], seed: int = 42) -> Found:
    return Reader(seed, lambda ending: False).read([Dataset.model_validate(one) for one in datasets])


@pytest.fixture
def preflight_of(kohya_config: Config, least_checkout: Path, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """The report on the small Chroma run of the stand-in, `sections` merged over it."""
    whole = kohya_config(family="chroma")
    let_it_take_everything(least_checkout, "flux_train_network.py")
    (tmp_path / "pictures").rmdir()
    paint(tmp_path / "pictures", (512, 512), (512, 256), (600, 500))
    tensors = {
        f"{block}_blocks.{i}.{layer}.weight": np.zeros((8, 4), np.float16)
        for block, layer in (("double", "img_attn.qkv"), ("single", "linear1"))
        for i in range(4)
    }
    save_file(tensors, str(tmp_path / "base.safetensors"))
    save_file({"encoder.conv.weight": np.zeros((4, 4), np.float16)}, str(tmp_path / "ae.safetensors"))
    save_file({"shared.weight": np.zeros((10, 4), np.float16)}, str(tmp_path / "t5.safetensors"))

    def report(gpu_gib: float | None = 24, **sections: Any) -> dict[str, Any]:
        config = KohyaConfig.model_validate(whole | sections)
        return preflight(config, Asked(tmp_path / "runs", gpu_gib)).model_dump(mode="json")

    return report


SIZES = [
    (64, 64), (200, 90), (512, 512), (513, 511), (640, 480), (1000, 300), (300, 1000), (1024, 1024),
    (1023, 769), (1920, 1080), (1080, 1920), (4000, 3000), (8000, 100), (100, 8000), (37, 4096), (2048, 2048),
    (704, 1472), (31, 31), (333, 777), (1500, 1499),
]  # fmt: skip
TABLES: list[dict[str, Any]] = [
    {"resolution": 512},
    {"resolution": 512, "bucket_no_upscale": False},
    {"resolution": 1024, "bucket_no_upscale": False},
    {"resolution": 1024, "bucket_no_upscale": True, "bucket_reso_steps": 32},
    {"resolution": 768, "bucket_no_upscale": False, "bucket_reso_steps": 32, "max_bucket_reso": 1000},
    {"resolution": 500, "bucket_no_upscale": False, "bucket_reso_steps": 48, "min_bucket_reso": 100},
    {"resolution": 640, "enable_bucket": False},
]


@pytest.fixture
def sd_scripts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """The answer of the real sd-scripts."""
    monkeypatch.setenv("FLOWLOOM_TRAINERS", str(tmp_path / "trainers.json"))
    prepare(monkeypatch)
    add_checkout("kohya", CHECKOUT, PYTHON)

    def ask(**question: list[Any]) -> dict[str, Any]:
        path = tmp_path / "question.json"
        path.write_text(json.dumps({"places": [], "runs": []} | question))
        arguments = [str(PYTHON), str(HERE / "bucket_as_sd_scripts.py"), str(path)]
        done = subprocess.run(arguments, cwd=CHECKOUT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.rpartition("\nREAD ")[2])

    return ask


@needs_sd_scripts
@pytest.mark.slow
def test_every_image_is_put_into_the_bucket_of_sd_scripts(sd_scripts: Callable[..., dict[str, Any]]) -> None:
    tables = [Dataset.model_validate(table) for table in TABLES]
    questions = [{**table.model_dump(), "sizes": SIZES} for table in tables]
    for table, answer in zip(tables, sd_scripts(places=questions)["places"], strict=True):
        buckets = Buckets.of(table)
        for size, theirs in zip(SIZES, answer, strict=True):
            ours = buckets.place(*size)
            if theirs is None or 0 in theirs[0]:
                assert ours is None, (table, size)
            else:
                assert ours, (table, size)
                assert [list(ours.bucket), list(ours.resized)] == theirs, (table, size)


@needs_sd_scripts
@pytest.mark.slow
def test_repeats_regularisation_and_held_out_images_are_counted_as_sd_scripts_counts(
    sd_scripts: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    fox = paint(tmp_path / "fox", (300, 300), (400, 200), (200, 400), (512, 300), (700, 700), (900, 400))
    dog = paint(tmp_path / "dog", (256, 256), (300, 200), (640, 640))
    masks = paint(tmp_path / "masks", *[(64, 64)] * 3)
    (tmp_path / "told.json").write_text(json.dumps({str(fox / "00.png"): {"caption": "one"}}))
    fox_folder, dog_folder = {"image_dir": str(fox)}, {"image_dir": str(dog)}
    small = {"resolution": 256, "min_bucket_reso": 64}
    sets = [
        [{**small, "batch_size": 2, "subsets": [{**fox_folder, "num_repeats": 3}, dog_folder]}],
        [{**small, "subsets": [{**fox_folder, "num_repeats": 5}, {**dog_folder, "is_reg": True}]}],
        [{**small, "subsets": [{**dog_folder, "num_repeats": 2}, {**fox_folder, "is_reg": True}]}],
        [{**small, "batch_size": 3, "subsets": [fox_folder, fox_folder]}, {**small, "subsets": [dog_folder]}],
        [{**small, "bucket_no_upscale": False, "validation_split": 0.3, "subsets": [fox_folder, dog_folder]}],
        [{**small, "subsets": [{**dog_folder, "conditioning_data_dir": str(masks)}]}],
        [{**small, "subsets": [{**fox_folder, "metadata_file": str(tmp_path / "told.json")}]}],
    ]
    runs = []
    for i, datasets in enumerate(sets):
        run_dir = RunDir.create(f"run{i}", tmp_path)
        TRAINER.prepare({"family": "sd15", "datasets": datasets}, run_dir, "a test")
        runs.append({"run_dir": str(run_dir.path), "seed": 42, "script": "train_network.py"})
    for datasets, theirs in zip(sets, sd_scripts(runs=runs)["runs"], strict=True):
        ours = read(*datasets)
        rows = [
            sorted([*size, count] for (number, size), count in ours.rows.items() if number == i)
            for i in range(len(datasets))
        ]
        assert {
            "batches": ours.batches,
            "repeated": ours.repeated,
            "pictures": ours.num_images,
            "rows": rows,
        } == theirs, datasets


def test_steps_and_epochs_follow_from_buckets_batches_and_accumulation(
    preflight_of: Any, tmp_path: Path
) -> None:
    image_dir = str(tmp_path / "pictures")
    data = [{"resolution": 512, "batch_size": 2, "subsets": [{"image_dir": image_dir, "num_repeats": 3}]}]
    steps = {"max_train_steps": 10, "gradient_accumulation_steps": 2}
    report = preflight_of(datasets=data, training=steps)["data"]
    assert [(one["width"], one["height"], one["rows"], one["batches"]) for one in report["buckets"]] == [
        (512, 256, 3, 2),
        (512, 448, 3, 2),
        (512, 512, 3, 2),
    ]
    assert (report["rows"], report["batches"], report["steps_per_epoch"]) == (9, 6, 3)
    assert (report["steps"], report["epochs"]) == (10, 4)
    report = preflight_of(datasets=data, training={"max_train_epochs": 5, "max_train_steps": None})["data"]
    assert (report["steps"], report["epochs"]) == (5 * 6, 5)


def test_memory_and_disk_are_computed_from_the_headers(preflight_of: Any) -> None:
    report = preflight_of(training={"optimizer_type": "AdamW", "max_train_steps": 1000})
    trained, network = 8 * (8 + 4) * 16, 8 * 8 * 4
    assert report["memory"]["parts"] == {
        "network": 2 * network,
        "trained weights": 4 * trained,
        "gradients": 4 * trained,
        "optimizer": 8 * trained,
        "text encoders": 2 * 40,
    }
    assert report["memory"]["is_coarse"]
    assert any("activations" in each for each in report["memory"]["not_counted"])
    assert report["disk"]["checkpoint"] == 2 * trained
    assert report["disk"]["state"] == 12 * trained
    latents = (512 * 512 + 512 * 256 + 512 * 448) // 64 * 16 * 4
    assert report["disk"]["parts"]["latents"] == latents
    assert report["can_run"]
    assert report["problems"] == []


def test_a_run_that_does_not_fit_is_reported_with_keys_to_change(preflight_of: Any) -> None:
    report = preflight_of(gpu_gib=20_000 / 2**30, training={"optimizer_type": "AdamW"})
    assert (report["can_run"], report["memory"]["fits"]) == (False, False)
    changes = [(change["path"], change["value"]) for change in report["changes"]]
    assert changes[:2] == [
        ("memory.cache_text_encoder_outputs", True),
        ("training.optimizer_type", "AdamW8bit"),
    ]
    totals = [change["bytes"] for change in report["changes"]]
    assert totals == sorted(totals, reverse=True)


def test_blocks_that_wait_in_main_memory_are_not_on_the_card(preflight_of: Any) -> None:
    whole, swapped = preflight_of(), preflight_of(memory={"blocks_to_swap": 2})
    gone = whole["memory"]["parts"]["network"] - swapped["memory"]["parts"]["network"]
    assert gone == 3 * 8 * 4 * 2  # one double block, two single ones


def test_a_setting_that_would_end_sd_scripts_is_a_problem(preflight_of: Any, tmp_path: Path) -> None:
    image_dir = tmp_path / "pictures"
    (image_dir / "00.txt").write_text("")
    (image_dir / "01.txt").write_bytes(b"\xff\xfe")
    Image.new("RGB", (20, 20)).save(image_dir / "tiny.png")
    (image_dir / "broken.png").write_bytes(b"no picture at all, that is to say")
    report = preflight_of()
    assert not report["can_run"]
    messages = " ".join(problem["message"] for problem in report["problems"])
    for words in ("00.txt: is empty", "01.txt: is not UTF-8", "tiny.png has 20 x 20", "broken.png"):
        assert words in messages
    empty = tmp_path / "empty"
    empty.mkdir()
    [problem] = preflight_of(datasets=[{"subsets": [{"image_dir": str(empty)}]}])["problems"]
    assert problem["where"] == "datasets.0.subsets.0.image_dir"


def test_masks_without_images_and_images_without_masks_are_problems(tmp_path: Path) -> None:
    paint(tmp_path / "fox", (64, 64), (64, 64))
    masks = paint(tmp_path / "masks", (64, 64))
    (masks / "00.png").rename(masks / "other.png")
    subset = {"image_dir": str(tmp_path / "fox"), "conditioning_data_dir": str(masks)}
    problems = read({"subsets": [subset]}).problems
    assert ["no mask for 2" in problems[0].message, "no image for 1" in problems[1].message] == [True, True]


def test_a_setting_that_sd_scripts_accepts_silently_is_a_hint(preflight_of: Any, tmp_path: Path) -> None:
    image_dir = tmp_path / "pictures"
    (image_dir / "02.txt").unlink()
    Image.new("RGB", (90, 90)).save(image_dir / "03.Png")
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.new("RGB", (700, 500)).save(image_dir / "04.jpg", exif=turned)
    (image_dir / "04.txt").write_text("a fox")
    data = {"resolution": 1024, "bucket_no_upscale": False, "batch_size": 2}
    report = preflight_of(datasets=[{**data, "subsets": [{"image_dir": str(image_dir)}]}])
    hints = " ".join(report["hints"])
    for words in (
        "empty caption, ",
        "02.png (1)",
        "04.jpg",
        "smaller than their bucket",
        "have a single image",
    ):
        assert words in hints
    assert report["data"]["left_out"] == {".Png is not read by this sd-scripts": 1}
    assert report["can_run"]


@pytest.mark.parametrize("tokens", ["fox", None])
def test_captions_of_another_extension_are_pointed_out(
    preflight_of: Any, tmp_path: Path, tokens: str | None
) -> None:
    """Else a folder of .txt captions is trained on its class tokens alone, with a line in the log at most."""
    folder = paint(tmp_path / "10_fox", (512, 512), (512, 512))
    assert sorted(path.suffix for path in folder.iterdir()).count(".txt") == 2
    for extension, is_reported in ((".caption", True), (".txt", False)):
        subset = {"image_dir": str(folder), "caption_extension": extension, "class_tokens": tokens}
        remarks = read({"subsets": [subset]}).remarks
        files = remarks.get(OTHER_EXTENSION, [])
        assert len(files) == (2 if is_reported else 0)
        assert all(name.endswith(".txt") for name in files)
        assert NO_CAPTION not in remarks
    subset = {"image_dir": str(folder), "caption_extension": ".caption", "class_tokens": tokens}
    hints = " ".join(preflight_of(datasets=[{"subsets": [subset]}])["hints"])
    assert "caption_extension is another one" in hints


def test_weights_that_are_no_safetensors_are_not_guessed(preflight_of: Any, tmp_path: Path) -> None:
    (tmp_path / "base.safetensors").write_bytes(b"PK\x03\x04 a pickle, as the old ones are")
    report = preflight_of()
    assert (report["memory"], report["disk"]) == (None, None)
    assert "memory and disk space are unknown" in " ".join(report["hints"])
    assert report["data"]["rows"] == 3


def test_a_whole_network_is_counted_with_its_gradients_and_written_with_its_encoders(tmp_path: Path) -> None:
    tensors = {
        "model.diffusion_model.input_blocks.0.0.weight": np.zeros((10, 10), np.float16),
        "first_stage_model.decoder.conv_in.weight": np.zeros(3, np.float16),
        "cond_stage_model.transformer.x": np.zeros(7, np.float16),
    }
    save_file(tensors, str(tmp_path / "sd.safetensors"))
    config = KohyaConfig.model_validate(
        {
            "family": "sd15",
            "method": "full",
            "model": {"pretrained_model_name_or_path": str(tmp_path / "sd.safetensors")},
            "training": {"optimizer_type": "AdamW8bit", "full_bf16": True},
        }
    )
    taken = footprint(config, Weights.of(config))
    assert taken.memory == {
        "trained weights": 200,
        "gradients": 200,
        "optimizer": 200,
        "text encoders": 14,
    }
    assert taken.weights == 2 * 110


@pytest.mark.parametrize("every", [100, 250, None])
@pytest.mark.parametrize("last", [300, 1000, None])
@pytest.mark.parametrize("steps", [99, 1000, 2000])
def test_as_many_checkpoints_are_planned_for_as_exist_at_a_time(
    every: int | None, last: int | None, steps: int
) -> None:
    """Against the rule of sd-scripts, followed step by step."""
    there: set[int] = set()
    most = 0
    for step in range(every or steps + 1, steps + 1, every or steps + 1):
        there.add(step)
        most = max(most, len(there))
        if last and every:
            there.discard((step - last - 1) // every * every)
    saving = {"save_every_n_steps": every, "save_last_n_steps": last}
    planned = kept_files(KohyaConfig.model_validate({"saving": saving}), steps)
    # The last one, of the end, comes beside them.
    assert most + 1 <= planned <= most + 2


def test_every_checkpoint_of_kohya_stays_by_default_and_old_states_go() -> None:
    config = KohyaConfig.model_validate({"saving": {"save_every_n_steps": 250}})
    assert arguments_of(config, Path()).get("save_last_n_steps") is None
    assert arguments_of(config, Path())["save_last_n_steps_state"] == 1000
    assert kept_files(config, 10_000) == 40 + 1
    assert kept_states(config, 10_000) == 4 + 2 + 1
    without = KohyaConfig.model_validate({"saving": {"save_state": False}})
    assert kept_states(without, 10_000) == 0


def test_impossible_buckets_are_reported_with_the_configuration(
    kohya_config: Config, least_checkout: Path
) -> None:
    config = kohya_config()
    config["datasets"][0] |= {"min_bucket_reso": 640, "max_bucket_reso": 448}
    problems = {problem.where: problem.text for problem in TRAINER.check(config)}
    assert problems["datasets.0.min_bucket_reso"] == "is more than the resolution, 512."
    assert problems["datasets.0.max_bucket_reso"] == "is less than the resolution, 512."


RELEASED = {"chroma": (8_900_000_000, 3_500_000), "flux": (11_900_000_000, 4_700_000)}
"""Parameters of the released networks, and rows and columns of the layers that a LoRA adapts."""


@pytest.mark.parametrize(
    "preset", [one for one in TRAINER.presets() if "GB" in one.title], ids=lambda one: one.name
)
def test_a_preset_that_names_a_card_leaves_a_quarter_of_it_to_activations(preset: Preset) -> None:
    config = KohyaConfig.model_validate(preset.config)
    network, sides = RELEASED[config.family]
    parts = Counter({"network": network, "text encoders": 4_760_000_000, "vae": 84_000_000})
    taken = footprint(config, Weights(parts, sides, 0, Counter())).memory
    [size] = re.findall(r"(\d+) GB", preset.title)
    assert sum(taken.values()) < 0.75 * int(size) * 1e9
