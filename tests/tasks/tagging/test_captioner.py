"""Captioners of all kinds through the same run as the tagger, by small networks of random weights."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from flowloom.errors import WeightsError
from flowloom.models.captioners import Captioner, Question, load_captioner
from flowloom.tasks import ALL
from flowloom.tasks.caption import DEFAULT_PROMPT, CaptionConfig
from flowloom.tasks.tagging.captioner import CaptionWriter
from tests.fakes.captioners import KINDS, write_chat
from tests.fakes.images import encoded
from tests.tasks.tagging.conftest import Runs

KIND = pytest.mark.parametrize("kind", list(KINDS))
CPU = torch.device("cpu")


@pytest.fixture(scope="session")
def captioners(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of the small captioners, by kind."""
    root = tmp_path_factory.mktemp("captioners")
    return {kind: write(root / kind) for kind, write in KINDS.items()}


@pytest.fixture(scope="session")
def loaded(captioners: dict[str, Path]) -> dict[str, Captioner]:
    """The small captioners, by kind."""
    return {kind: load_captioner(folder, CPU, torch.float32) for kind, folder in captioners.items()}


def some_images() -> list[Any]:
    draw = np.random.default_rng(0)
    return [draw.integers(0, 255, (height, 40, 3), dtype=np.uint8) for height in (20, 40, 90)]


@KIND
def test_the_kind_follows_from_the_files(loaded: dict[str, Captioner], kind: str):
    assert loaded[kind].kind == kind


@KIND
def test_an_image_has_the_same_caption_in_any_batch(loaded: dict[str, Captioner], kind: str):
    images, question = some_images(), Question(prompt="what is shown ?", max_tokens=12)
    together = loaded[kind].describe(images, question, seed=0)
    alone = [loaded[kind].describe([image], question, seed=0)[0] for image in images]
    assert together == alone
    assert len(set(together)) > 1, "they depend on the pictures"


@KIND
def test_a_caption_has_no_more_tokens_than_asked(loaded: dict[str, Captioner], kind: str):
    short, long = (
        loaded[kind].describe(some_images(), Question(max_tokens=number), seed=0) for number in (3, 12)
    )
    assert all(len(text.split()) <= 4 for text in short)
    assert all(whole.startswith(part) for part, whole in zip(short, long, strict=True))


@KIND
def test_sampled_captions_follow_from_the_seed(loaded: dict[str, Captioner], kind: str):
    question = Question(max_tokens=12, temperature=2.0)
    one, again, other = (loaded[kind].describe(some_images(), question, seed) for seed in (1, 1, 2))
    assert one == again != other


@pytest.mark.parametrize("kind", ["blip", "florence2"])
def test_a_caption_ends_where_the_network_knows_no_further_place(loaded: dict[str, Captioner], kind: str):
    question = Question(prompt="a photo of", max_tokens=10_000)
    assert len(loaded[kind].describe(some_images(), question, seed=0)) == 3


def test_blip_continues_the_prompt(loaded: dict[str, Captioner]):
    texts = loaded["blip"].describe(some_images(), Question(prompt="a photo of", max_tokens=4), seed=0)
    assert all(text.startswith("a photo of") for text in texts)


def test_florence_is_prompted_by_its_task(loaded: dict[str, Captioner]):
    tasks = ("caption", "detailed_caption", "more_detailed_caption")
    questions = [Question(task=task, max_tokens=12) for task in tasks]
    answers = {tuple(loaded["florence2"].describe(some_images(), one, seed=0)) for one in questions}
    assert len(answers) == 3


def test_a_chat_model_gets_its_prompts_and_does_not_repeat_them(loaded: dict[str, Captioner]):
    chat = loaded["chat"]
    questions = [
        Question(prompt="describe this picture", max_tokens=8),
        Question(prompt="what is the dog ?", max_tokens=8),
        Question(prompt="what is the dog ?", system_prompt="you write captions", max_tokens=8),
    ]
    answers = [chat.describe(some_images(), question, seed=0) for question in questions]
    assert len({tuple(answer) for answer in answers}) == 3
    assert not any(text.startswith("user :") for answer in answers for text in answer)


@KIND
def test_captions_are_written_by_the_same_runs_as_tags(
    runs: Runs, captioners: dict[str, Path], image_dir: Path, kind: str
):
    config = {"data_path": str(image_dir), "model_path": str(captioners[kind]), "max_tokens": 6}
    before = sorted(image_dir.iterdir())
    shown = runs("caption", **config, preview=1)["preview"]
    assert sorted(image_dir.iterdir()) == before
    result = runs("caption", **config, trigger="mystyle")
    model = result["model"]
    assert (model["kind"], model["device"], model["dtype"]) == (kind, "cpu", "float32")
    assert list(model["sha256"]) == ["model.safetensors"]
    assert result["num_written"] == 3
    text = (image_dir / "blue.txt").read_text()
    assert text == f"mystyle, {shown[0]['after'][0]}\n"
    assert len(text.split()) > 1


def test_captions_become_prose_in_a_jsonl(runs: Runs, captioners: dict[str, Path], image_dir: Path):
    jsonl = image_dir / "set.jsonl"
    tags = {"caption_or_tags": "a, b", "is_tag_based": True}
    rows = [{"filename": f"{name}.png"} | tags for name in ("red", "blue")]
    jsonl.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = {"data_path": str(jsonl), "model_path": str(captioners["chat"]), "max_tokens": 6}
    runs("caption", **config, existing="append")
    appended = [json.loads(line) for line in jsonl.read_text().splitlines()]
    assert all(row["is_tag_based"] and row["caption_or_tags"].startswith("a, b ") for row in appended)
    runs("caption", **config, existing="replace")
    replaced = [json.loads(line) for line in jsonl.read_text().splitlines()]
    texts = [row["caption_or_tags"] for row in appended]
    assert [f"a, b {row['caption_or_tags']}" for row in replaced] == texts
    assert not any(row["is_tag_based"] for row in replaced)


def test_large_images_are_scaled_down_first(captioners: dict[str, Path]):
    config = CaptionConfig.model_validate({"data_path": "unused", "max_side": 64})
    writer = CaptionWriter(captioners["chat"], config, {})
    assert writer.prepare(encoded(Image.new("RGB", (400, 100)), "PNG")).shape == (16, 64, 3)
    assert writer.prepare(encoded(Image.new("RGB", (30, 10)), "PNG")).shape == (10, 30, 3)
    assert writer._question.prompt == DEFAULT_PROMPT


LLAMA = (
    "{% for message in messages %}{{ message.role }} : {{ message.content | trim }} {% endfor %}"
    "{% if add_generation_prompt %}assistant : {% endif %}"
)
JOINED = LLAMA.replace("{{ message.content | trim }}", "{{ 'what ' + message.content }}")
PLACED = LLAMA.replace("{{ message.content | trim }}", "{{ '<image> ' + message.content }}")


@pytest.mark.parametrize(
    "template", [LLAMA, JOINED, PLACED], ids=["lists printed", "texts only", "own token"]
)
def test_templates_that_support_only_text_get_the_image_once(tmp_path: Path, template: str):
    captioner = load_captioner(write_chat(tmp_path / "texts", template), CPU, torch.float32)
    question = Question(prompt="describe this", system_prompt="", max_tokens=8)
    answers = captioner.describe(some_images(), question, seed=0)
    assert len(set(answers)) > 1
    assert [captioner.describe([one], question, seed=0)[0] for one in some_images()] == answers


def test_a_template_without_a_place_for_text_is_reported(tmp_path: Path):
    captioner = load_captioner(write_chat(tmp_path / "deaf", "hello :"), CPU, torch.float32)
    with pytest.raises(WeightsError, match="no place for an image"):
        captioner.describe(some_images(), Question(prompt="describe"), seed=0)


BAD = {
    "pickles": ({"model.safetensors": None, "pytorch_model.bin": b"\x80\x04."}, "Pickles are never opened"),
    "no configuration": ({"config.json": None}, "config.json: not readable"),
    "a configuration of something else": ({"config.json": b"[]"}, "has no model_type"),
    "a network of its own code": (
        {"config.json": b'{"model_type": "mine", "auto_map": {"AutoConfig": "evil.Config"}}',
         "evil.py": b"open('owned', 'w')\nclass Config: pass\n"},
        "transformers cannot load it",
    ),
    "damaged weights": ({"model.safetensors": b"\x08\0\0\0\0\0\0\0{}"}, "transformers cannot load it"),
    "no tokenizer": ({"tokenizer.json": None, "tokenizer_config.json": None}, "transformers cannot load it"),
}  # fmt: skip


@pytest.mark.parametrize(("files", "message"), BAD.values(), ids=list(BAD))
def test_wrong_files_are_reported_and_code_is_never_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, bytes | None], message: str
):
    folder = write_chat(tmp_path / "bad")
    monkeypatch.chdir(tmp_path)
    for name, content in files.items():
        if content is None:
            (folder / name).unlink()
        else:
            (folder / name).write_bytes(content)
    with pytest.raises(WeightsError, match=message):
        load_captioner(folder, CPU, torch.float32)
    assert not (tmp_path / "owned").exists()


def test_missing_weights_are_not_filled_with_random_numbers(tmp_path: Path):
    from safetensors.torch import load_file, save_file

    folder = write_chat(tmp_path / "part")
    weights = load_file(folder / "model.safetensors")
    weights.pop(next(name for name in weights if "multi_modal_projector" in name))
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(WeightsError, match="its weights are missing 1 tensors"):
        load_captioner(folder, CPU, torch.float32)


def test_a_model_that_needs_torchvision_says_so(tmp_path: Path):
    if importlib.util.find_spec("torchvision"):
        pytest.skip("torchvision is here")
    folder = write_chat(tmp_path / "qwen")
    (folder / "config.json").write_text('{"model_type": "qwen2_vl"}')
    about = json.loads((folder / "processor_config.json").read_text())
    (folder / "processor_config.json").write_text(json.dumps(about | {"processor_class": "Qwen2VLProcessor"}))
    kind = {"video_processor_type": "Qwen2VLVideoProcessor"}
    (folder / "video_preprocessor_config.json").write_text(json.dumps(kind))
    with pytest.raises(WeightsError, match="needs torchvision"):
        load_captioner(folder, CPU, torch.float32)


def test_a_model_that_does_not_chat_is_reported(tmp_path: Path):
    with pytest.raises(WeightsError, match="llava is neither BLIP nor Florence-2, and has no chat template"):
        load_captioner(write_chat(tmp_path / "mute", template=None), CPU, torch.float32)


@pytest.mark.slow
def test_a_captioning_run_is_a_process_without_noise(
    runs: Runs, captioners: dict[str, Path], image_dir: Path
):
    config = {"data_path": str(image_dir), "model_path": str(captioners["florence2"]), "max_tokens": 4}
    run_dir = runs.new("caption", **config)
    command = ALL["caption"].command(run_dir, resume=False).argv
    assert command[0] == sys.executable
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert len(list(image_dir.glob("*.txt"))) == 3
