"""A tagger's preprocessing and rules, by a real network whose answers can be worked out by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from flowloom.errors import ConfigError, WeightsError
from flowloom.tasks import ALL
from flowloom.tasks.tag import TagConfig
from flowloom.tasks.tagging.tags import Labels, TagRules, read_labels, widest_gap
from flowloom.tasks.tagging.wd14 import Wd14Tagger, to_square
from tests.fakes.images import encoded, turned
from tests.fakes.onnx_tagger import LABELS, value, write_tagger

Tag = Callable[..., dict[str, Any]]
PLAIN = "blue theme, ^_^, long hair, 1girl"


def config(**more: Any) -> TagConfig:
    return TagConfig(data_path="unused", **more)


def probability(logit: float) -> float:
    return 1 / (1 + math.exp(-logit))


def described(scores: dict[str, float], **rules: Any) -> str:
    """The tags for probabilities by name; others have none."""
    labels = Labels(tuple(one.name for one in LABELS), np.array([one.category for one in LABELS]))
    row = np.array([scores.get(label.name, 0.0) for label in LABELS], dtype=np.float32)
    return TagRules(labels, config(**rules)).describe(row).text


def test_the_network_sees_blue_first_and_levels_up_to_255(tagger: Path):
    one = Wd14Tagger(tagger, config(device="cpu"), {})
    image = encoded(Image.new("RGB", (16, 16), (51, 102, 255)), "PNG")
    (row,) = one.probabilities([one.prepare(image)])
    by_name = dict(zip((label.name for label in LABELS), row.tolist(), strict=True))
    assert by_name["blue_theme"] == pytest.approx(probability(6), abs=1e-5)
    assert by_name["green_theme"] == pytest.approx(probability(12 * 0.4 - 6), abs=1e-5)
    assert by_name["red_theme"] == pytest.approx(probability(12 * 0.2 - 6), abs=1e-5)


def test_images_are_in_the_middle_of_a_white_square():
    square = to_square(encoded(Image.new("RGB", (16, 8), "#0000ff"), "PNG"), 16, 1.0)
    assert square.shape == (16, 16, 3)
    assert square.dtype == np.float32
    assert (square[[0, 1, 2, 3, 12, 13, 14, 15]] == 255).all()
    assert (square[4:12] == [255, 0, 0]).all(), "blue first"


def test_transparent_areas_are_white():
    clear = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    assert (to_square(encoded(clear, "PNG"), 8, 1.0) == 255).all()


def test_preprocessing_is_that_of_the_published_app_to_the_last_level():
    draw = np.random.default_rng(3)
    image = Image.fromarray(draw.integers(0, 256, (61, 37, 4), dtype=np.uint8), "RGBA")
    white = Image.new("RGBA", image.size, (255, 255, 255))
    white.alpha_composite(image)
    square = Image.new("RGB", (61, 61), (255, 255, 255))
    square.paste(white.convert("RGB"), (12, 0))
    expected = np.asarray(square.resize((16, 16), Image.Resampling.BICUBIC), np.float32)[:, :, ::-1]
    assert np.array_equal(to_square(encoded(image, "PNG"), 16, 1.0), expected)


def test_images_are_upright():
    square = to_square(turned("JPEG", 6), 120, 1.0)
    assert square[10, 85].max() < 60, "the dark corner is at the upper right"
    assert square[10, 35].min() > 200


def test_large_images_are_as_if_they_were_scaled_at_once():
    gradient = Image.linear_gradient("L").resize((1200, 900)).convert("RGB")
    padded = Image.new("RGB", (1200, 1200), "white")
    padded.paste(gradient, (0, 150))
    expected = np.asarray(padded.resize((32, 32), Image.Resampling.BICUBIC), np.float32)
    found = to_square(encoded(gradient, "PNG"), 32, 2.0)
    inner = slice(6, 26)
    assert np.abs(found - expected)[inner].max() < 4


def test_a_network_for_one_image_at_a_time_gets_one_at_a_time(tmp_path: Path):
    folder = write_tagger(tmp_path / "single", batch=1)
    one = Wd14Tagger(folder, config(batch_size=8), {})
    images = [one.prepare(encoded(Image.new("RGB", (9, 9), c), "PNG")) for c in ("red", "blue", "lime")]
    assert one.probabilities(images).shape == (3, len(LABELS))


def test_tags_are_written_by_probability_with_spaces(tag: Tag, image_dir: Path):
    result = tag()
    assert (image_dir / "blue.txt").read_text() == f"{PLAIN}\n"
    assert (image_dir / "red.txt").read_text() == "fox (forest story), red theme, ^_^, long hair, 1girl\n"
    assert result["num_written"] == 3
    assert result["model"]["kind"] == "wd14"
    assert set(result["model"]["sha256"]) == {"model.onnx", "selected_tags.csv"}


ALL_OF_THEM = {
    "blue_theme": 0.9, "^_^": 0.8, "long_hair": 0.7, "1girl": 0.6, "green_theme": 0.2, "general": 0.6,
    "sensitive": 0.7, "fox_(forest_story)": 0.9, "wolf_(forest_story)": 0.5,
}  # fmt: skip


@pytest.mark.parametrize(
    ("rules", "text"),
    [
        ({}, "fox (forest story), blue theme, ^_^, long hair, 1girl"),
        ({"replace_underscores": False}, "fox_(forest_story), blue_theme, ^_^, long_hair, 1girl"),
        ({"general_threshold": 0.65}, "fox (forest story), blue theme, ^_^, long hair"),
        ({"general_threshold": 0.15, "characters": "off"}, "blue theme, ^_^, long hair, 1girl, green theme"),
        ({"character_threshold": 0.5, "characters": "last", "general_threshold": 0.85},
         "blue theme, fox (forest story), wolf (forest story)"),
        ({"general_mcut": True, "characters": "off"}, "blue theme, ^_^, long hair, 1girl"),
        ({"character_mcut": True, "general_threshold": 1}, "fox (forest story)"),
        ({"blacklist": ["Long hair", "blue_theme", "fox_(forest_story)"]}, "^_^, 1girl"),
        ({"first_tags": ["1girl"], "characters": "last", "max_tags": 2, "general_threshold": 0.5},
         "blue theme, ^_^, fox (forest story)"),
        ({"first_tags": ["1girl", "long hair"]}, "1girl, long hair, fox (forest story), blue theme, ^_^"),
        ({"expand_characters": True, "general_threshold": 1}, "fox, forest story"),
        ({"replacements": {"long hair": "hair_down", "1girl": ""}, "characters": "off"},
         "blue theme, ^_^, hair_down"),
        ({"rating": "first", "general_threshold": 1}, "rating:sensitive, fox (forest story)"),
        ({"rating": "last", "rating_prefix": "", "characters": "off", "general_threshold": 0.85},
         "blue theme, sensitive"),
        ({"order": "alphabet", "characters": "off"}, "1girl, ^_^, blue theme, long hair"),
        ({"order": "model", "characters": "off", "general_threshold": 0.1},
         "blue theme, green theme, ^_^, long hair, 1girl"),
    ],
)  # fmt: skip
def test_rules(rules: dict[str, Any], text: str):
    assert described(ALL_OF_THEM, **rules) == text


def test_the_widest_gap_is_the_threshold():
    assert widest_gap(np.array([0.1, 0.9, 0.2, 0.8], np.float32)) == pytest.approx(0.5)
    assert widest_gap(np.array([0.4], np.float32)) == 0.5


def test_characters_of_no_probability_are_none_by_the_widest_gap():
    assert described({"wolf_(forest_story)": 0.1}, character_mcut=True) == ""


BAD_FILES = {
    "not ONNX": ("model.onnx", b"<html>404</html>", "model.onnx: onnxruntime cannot open it"),
    "an empty file": ("model.onnx", b"", "model.onnx: onnxruntime cannot open it"),
    "a table of something else": (
        "selected_tags.csv",
        b"filename,text\na.png,hello\n",
        "selected_tags.csv:2",
    ),
    "another category": ("selected_tags.csv", b"tag_id,name,category,count\n1,x,7,3\n", "category 0, 4 or 9"),
    "no tag": ("selected_tags.csv", b"tag_id,name,category,count\n", "has no tags"),
    "no text": ("selected_tags.csv", b"\xff\xfe\x00", "not readable"),
    "another model's": ("selected_tags.csv", b"tag_id,name,category,count\n1,x,0,3\n", "names 1 tags"),
}


@pytest.mark.parametrize(("name", "content", "message"), BAD_FILES.values(), ids=list(BAD_FILES))
def test_wrong_model_files_are_reported(
    tag: Tag, tagger: Path, image_dir: Path, name: str, content: bytes, message: str
):
    (tagger / name).write_bytes(content)
    with pytest.raises(WeightsError, match=message.replace(".", r"\.")):
        tag()
    assert not list(image_dir.glob("*.txt"))


def test_a_network_for_another_purpose_is_reported(tmp_path: Path):
    folder = write_tagger(tmp_path / "wide", side=16)
    network = (folder / "model.onnx").read_bytes()
    square, oblong = value("input", ["N", 16, 16, 3]), value("input", ["N", 17, 16, 3])
    assert network.count(square) == 1
    (folder / "model.onnx").write_bytes(network.replace(square, oblong))
    with pytest.raises(WeightsError, match=r"not images as \(batch, side, side, 3\)"):
        Wd14Tagger(folder, config(), {})


def test_a_missing_device_is_reported(tagger: Path):
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("there is CUDA here")
    with pytest.raises(ConfigError, match="onnxruntime-gpu"):
        Wd14Tagger(tagger, config(device="cuda"), {})


def test_missing_model_files_are_reported_before_the_run(tmp_path: Path, image_dir: Path):
    (tmp_path / "empty").mkdir()
    problems = ALL["tag"].check({"data_path": str(image_dir), "model_path": str(tmp_path / "empty")})
    assert {str(problem) for problem in problems} == {
        f"model_path: {tmp_path / 'empty'} has no model.onnx.",
        f"model_path: {tmp_path / 'empty'} has no selected_tags.csv.",
    }


def test_labels_are_read_in_the_order_of_the_outputs(tagger: Path):
    labels = read_labels(tagger / "selected_tags.csv")
    assert labels.names == tuple(label.name for label in LABELS)
    assert labels.of(4).tolist() == [9, 10]
