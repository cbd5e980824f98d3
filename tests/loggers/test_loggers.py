"""Every tracker shows what a run says, survives a resume, and never learns a secret."""

import json
import struct
import sys
import time
from pathlib import Path
from typing import Any, get_args

import pytest
from PIL import Image
from pydantic import TypeAdapter

from flowloom.config.run import Logger as AnyLogger
from flowloom.errors import ConfigError, TrainingError
from flowloom.loggers.base import Logger, scalars

EVENTS = [
    {"seq": 0, "kind": "phase", "name": "training"},
    {
        "seq": 1,
        "kind": "step",
        "step": 1,
        "epoch": 0,
        "batch": 1,
        "loss": 0.75,
        "loss_smooth": 0.75,
        "lr": 1e-4,
        "grad_norm": None,
        "samples_per_s": 12.5,
        "loss_by_noise_level": [0.5, None, 1.0],
    },
    {"seq": 2, "kind": "validated", "step": 1, "weights": "ema", "loss": 0.5, "by_quantile": {"0.1": 0.25}},
    {"seq": 3, "kind": "sampled", "step": 1, "dir": "samples/step_00000001"},
    {"seq": 4, "kind": "warning", "message": "nothing to plot"},
    {"seq": 5, "kind": "step", "step": 2, "epoch": 0, "loss": 0.5, "loss_smooth": 0.7, "lr": 1e-4},
]
CONFIG = {"training": {"lr": 1e-4, "master_seed": 0}, "loggers": [{"kind": "wandb"}], "lora": None}
SECRET = "local-0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "my_run" / "samples" / "step_00000001"
    folder.mkdir(parents=True)
    Image.new("RGB", (8, 8), (250, 10, 10)).save(folder / "00.png")
    (folder / "samples.json").write_text(json.dumps([{"file": "00.png", "prompt": "a red heart", "seed": 0}]))
    return tmp_path / "my_run"


def open_logger(run_dir: Path, **choice: Any) -> Logger:
    return TypeAdapter(AnyLogger).validate_python(choice).build(run_dir, CONFIG)


def follow(run_dir: Path, events: list[dict[str, Any]] = EVENTS, **choice: Any) -> None:
    logger = open_logger(run_dir, **choice)
    for event in events:
        logger.log(event)
    logger.close()


def test_the_schema_offers_these_trackers() -> None:
    kinds = {spec.model_fields["kind"].default for spec in get_args(get_args(AnyLogger)[0])}
    assert kinds == {"tensorboard", "wandb", "aim"}


def test_values_that_are_not_there_make_no_point() -> None:
    names = scalars(EVENTS[1])
    assert names["train/loss"] == 0.75
    assert names["train/loss_by_noise_level/2"] == 1.0
    assert "train/grad_norm" not in names
    assert "train/loss_by_noise_level/1" not in names
    assert scalars(EVENTS[2]) == {"validation/ema/loss": 0.5, "validation/ema/loss_at_0.1": 0.25}
    assert scalars(EVENTS[4]) == {}


def test_tensorboard_shows_curves_and_samples(run_dir: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    follow(run_dir, kind="tensorboard", first_step=100)
    seen = EventAccumulator(str(run_dir / "tensorboard")).Reload()
    assert [(point.step, point.value) for point in seen.Scalars("train/loss")] == [(101, 0.75), (102, 0.5)]
    assert seen.Scalars("validation/ema/loss")[0].step == 101
    image = seen.Images("samples/00")[0]
    assert (image.step, image.width, image.height) == (101, 8, 8)


def test_tensorboard_continues_after_a_resume(run_dir: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    follow(run_dir, EVENTS[:5], kind="tensorboard")
    follow(run_dir, EVENTS[5:], kind="tensorboard", images=False)
    seen = EventAccumulator(str(run_dir / "tensorboard")).Reload()
    assert [point.step for point in seen.Scalars("train/loss")] == [1, 2]


def wandb_records(path: Path) -> list[Any]:
    """The content of the file of an offline run for `wandb sync`: protobufs in LevelDB's log format."""
    from wandb.proto import wandb_internal_pb2

    data = path.read_bytes()
    records, position = [], 7  # after the file's own header
    while position + 7 <= len(data):
        _, size, kind = struct.unpack_from("<IHB", data, position)
        assert kind == 1, "a record cut in pieces: keep the test's run below 32 KiB"
        records.append(wandb_internal_pb2.Record.FromString(data[position + 7 : position + 7 + size]))  # pyright: ignore[reportAttributeAccessIssue]
        position += 7 + size
    return records


def wandb_history(folder: Path) -> list[dict[str, Any]]:
    """The rows that an offline run leaves for `wandb sync`."""
    path = next(folder.glob("run-*.wandb"))
    end = time.monotonic() + 60
    # wandb's own process may close the file a little after `finish` returned.
    while not (records := wandb_records(path)) or records[-1].WhichOneof("record_type") != "exit":
        assert time.monotonic() < end, "the file has no end"
        time.sleep(0.1)
    histories = (record.history.item for record in records if record.WhichOneof("record_type") == "history")
    return [
        {(item.key or "/".join(item.nested_key)): json.loads(item.value_json) for item in items}
        for items in histories
    ]


@pytest.mark.slow
def test_wandb_offline_writes_curves_and_samples(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    monkeypatch.setenv("HF_TOKEN", f"hf_{SECRET}")
    follow(run_dir, kind="wandb", mode="offline", project="p", first_step=100)
    (folder,) = (run_dir / "wandb").glob("offline-run-*")
    rows = wandb_history(folder)
    assert [(row["step"], row["train/loss"]) for row in rows if "train/loss" in row] == [
        (101, 0.75),
        (102, 0.5),
    ]
    assert [row["validation/ema/loss"] for row in rows if "validation/ema/loss" in row] == [0.5]
    assert [row["samples/00/caption"] for row in rows if "samples/00/caption" in row] == ["a red heart"]
    assert list(folder.rglob("*.png"))
    assert not files_with(SECRET, run_dir)


@pytest.mark.slow
def test_wandb_offline_keeps_its_run_id_over_a_resume(run_dir: Path) -> None:
    follow(run_dir, EVENTS[:2], kind="wandb", mode="offline")
    first = (run_dir / "wandb" / "run_id").read_text()
    follow(run_dir, EVENTS[5:], kind="wandb", mode="offline")
    assert (run_dir / "wandb" / "run_id").read_text() == first
    assert len(list((run_dir / "wandb").glob(f"offline-run-*-{first.strip()}*"))) == 2


def files_with(text: str, folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and text.encode() in path.read_bytes()]


def test_wandb_online_without_a_key_names_the_variable(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    with pytest.raises(ConfigError, match="WANDB_API_KEY"):
        open_logger(run_dir, kind="wandb")


def test_wandb_disabled_writes_nothing(run_dir: Path) -> None:
    follow(run_dir, kind="wandb", mode="disabled")
    assert not list((run_dir / "wandb").glob("*run-*"))


def test_a_missing_package_is_named_with_a_hint(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("aim", "wandb", "torch.utils.tensorboard"):
        monkeypatch.setitem(sys.modules, package, None)
    for kind in ("aim", "wandb", "tensorboard"):
        with pytest.raises(ConfigError, match=rf"pip install 'flowloom\[{kind}\]'"):
            open_logger(run_dir, kind=kind, **({"mode": "offline"} if kind == "wandb" else {}))


def test_aim_shows_curves_and_samples_and_continues_after_a_resume(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", f"hf_{SECRET}")
    aim = pytest.importorskip("aim")
    follow(run_dir, EVENTS[:5], kind="aim", experiment="hearts", first_step=100)
    follow(run_dir, EVENTS[5:], kind="aim", experiment="hearts", first_step=100)
    from aim.storage.context import Context  # pyright: ignore[reportMissingImports]

    (run_hash,) = aim.Repo(str(run_dir)).list_all_runs()
    run = aim.Run(run_hash, repo=str(run_dir), system_tracking_interval=None)
    curves = {metric.name: metric.data.view("val").items_list() for metric in run.metrics()}
    assert curves["train/loss"] == ([101, 102], [[0.75, 0.5]])
    assert curves["validation/ema/loss"] == ([101], [[0.5]])
    assert run["config"]["training"]["lr"] == 1e-4
    assert run.experiment == "hearts"
    ((_, (image, *_)),) = run.get_image_sequence("samples/00", Context({})).data.items()
    assert image.caption == "a red heart"
    assert image.to_pil_image().size == (8, 8)
    run.close()
    assert not files_with(SECRET, run_dir)


def test_a_tracker_that_fails_says_so_as_a_training_error(run_dir: Path) -> None:
    logger = open_logger(run_dir, kind="tensorboard")
    (run_dir / "samples" / "step_00000001" / "00.png").write_bytes(b"not a picture")
    with pytest.raises(TrainingError, match="tensorboard"):
        logger.log(EVENTS[3])
    logger.close()
