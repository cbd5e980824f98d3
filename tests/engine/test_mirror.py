"""A run in a bucket survives its machine: it continues from there as if nothing had happened."""

from __future__ import annotations

import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from flowloom.cli.main import main
from flowloom.config.run import RunConfig
from flowloom.engine.__main__ import run_engine
from flowloom.errors import ConfigError
from flowloom.run.directory import RunDir
from flowloom.run.mirror.layout import manifest_name, read_manifest, verified
from flowloom.tasks.base import StopRequested
from tests.engine.mirrored import (
    SECTIONS,
    STEPS,
    Bucket,
    assert_same_run,
    events,
    train_until,
)
from tests.engine.processes import run_ranks
from tests.engine.test_resume import wait_for_first_step
from tests.fakes.faulty import Faulty
from tests.tasks.tagging.conftest import Runs

pytestmark = pytest.mark.slow


def test_a_killed_run_whose_disk_is_gone_continues_bit_for_bit(
    make_run: Callable[..., RunDir], bucket: Bucket, tmp_path: Path, short_leases: None
) -> None:
    """Twice: the second machine dies too. All weights are trained: large files are sent in parts."""
    whole = make_run("whole", **SECTIONS | {"lora": None})
    run_engine(whole)
    run_dir = make_run("run", **bucket.sections(lora=None))
    for machine, step in enumerate((2, 6)):
        process = train_until(run_dir, step + 1)
        bucket.wait_for(step)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        shutil.rmtree(run_dir.path)
        run_dir = bucket.restore(tmp_path / f"machine {machine}")
        assert run_dir.latest_checkpoint()
    run_engine(run_dir)
    assert_same_run(whole, run_dir)
    assert bucket.steps()[-1] == STEPS
    # Everything is in the store: a third machine has nothing left to train.
    third = bucket.restore(tmp_path / "third")
    assert events(third, "finished") == events(run_dir, "finished")
    assert third.latest_checkpoint() == third.checkpoint_dir(STEPS)


def test_a_signal_saves_and_mirrors_and_another_machine_continues_at_once(
    make_run: Callable[..., RunDir], bucket: Bucket, unmirrored: RunDir, tmp_path: Path
) -> None:
    run_dir = make_run("run", **bucket.sections(training={"save_every": 1000}))
    process = train_until(run_dir, 3)
    wait_for_first_step(run_dir, process)
    asked = time.monotonic()
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 0, process.output()
    assert time.monotonic() - asked < 20
    (stopped,) = events(run_dir, "stopped")
    (uploaded,) = events(run_dir, "uploaded")
    assert uploaded["step"] == stopped["step"]
    assert uploaded["url"] == f"{bucket.run_url}/checkpoints/step_{stopped['step']:08d}"
    shutil.rmtree(run_dir.path)
    # No wait: the lease was released. Two ranks continue what one began.
    again = bucket.restore(tmp_path / "other", ("training.save_every", "2"))
    assert again.latest_checkpoint() == again.checkpoint_dir(stopped["step"])
    assert bucket.said[-1].startswith(f"{bucket.run_url}: continuing from step")
    run_engine(again)
    assert_same_run(unmirrored, again)


def test_a_kill_during_an_upload_leaves_no_partial_checkpoint(
    make_run: Callable[..., RunDir],
    bucket: Bucket,
    unmirrored: RunDir,
    tmp_path: Path,
    faulty: Faulty,
    short_leases: None,
) -> None:
    """The last files of step 4 do not arrive."""
    seen: list[str] = []

    def plan(_number: int, method: str, path: str) -> str | None:
        is_state = method == "PUT" and "/step_00000004/state/" in path
        seen.extend([path] if is_state else [])
        return "slow" if is_state else None

    faulty.plan, faulty.slow_s = plan, 60.0
    storage = bucket.storage.model_copy(update={"endpoint": faulty.url, "timeout_s": 60.0})
    run_dir = make_run("run", **bucket.sections(storage=storage.model_dump()))
    process = train_until(run_dir, 5)
    bucket.wait_for(2)
    deadline = time.monotonic() + 60
    while not seen:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    faulty.down()
    shutil.rmtree(run_dir.path)
    assert 4 not in bucket.steps()
    assert {info.name for info in bucket.store.list("checkpoints/step_00000004")} == {
        "checkpoints/step_00000004/adapter.safetensors",
        "checkpoints/step_00000004/adapter_ema.safetensors",
    }
    newest = bucket.steps()[-1]
    again = bucket.restore(tmp_path / "other")
    assert again.latest_checkpoint() == again.checkpoint_dir(newest)
    run_engine(again)
    assert_same_run(unmirrored, again)
    assert bucket.steps() == [2, 4, 6, 8]


def test_a_damaged_checkpoint_falls_back_to_the_one_before(
    make_run: Callable[..., RunDir], bucket: Bucket, unmirrored: RunDir, tmp_path: Path
) -> None:
    run_dir = make_run("run", **bucket.sections())
    run_engine(run_dir)
    shutil.rmtree(run_dir.path)
    name = "checkpoints/step_00000008/adapter.safetensors"
    content = bytearray(bucket.store.read(name))
    content[-1] ^= 1
    bucket.store.write(name, bytes(content))
    bucket.store.write(manifest_name(6), b"{")
    again = bucket.restore(tmp_path / "other")
    assert again.latest_checkpoint() == again.checkpoint_dir(4)
    assert f"{name}: damaged: its checksum is wrong." in bucket.said[0]
    run_engine(again)
    assert_same_run(unmirrored, again)
    # Written again by the run that continued, and intact.
    for path, file in read_manifest(bucket.store, 8).items():
        assert verified(again.checkpoint_dir(8) / path, file)
        assert bucket.store.stat(f"checkpoints/step_00000008/{path}").size == file.size
    assert bucket.steps() == [2, 4, 6, 8]


def test_checkpoints_that_retention_removes_leave_the_store_too(
    make_run: Callable[..., RunDir], bucket: Bucket, tmp_path: Path
) -> None:
    keep = {"checkpoint": {"keep_last": 1, "keep_every": 4}}
    run_dir = make_run("run", **bucket.sections(**keep, limits={"max_steps": 6}))
    run_engine(run_dir)
    assert bucket.steps() == [4, 6]
    folders = {info.name.split("/")[1] for info in bucket.store.list("checkpoints")}
    assert folders == {"step_00000004", "step_00000004.json", "step_00000006", "step_00000006.json"}
    # Another machine has step 6 only, and still removes it there when step 8 is saved.
    again = bucket.restore(tmp_path / "other", ("limits.max_steps", "8"))
    assert [folder.name for folder in again.checkpoints()] == ["step_00000006"]
    run_engine(again)
    assert bucket.steps() == [4, 8]


def test_events_in_segments_and_samples_arrive_unchanged(
    make_run: Callable[..., RunDir], bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("layout", "send", "upload"):
        monkeypatch.setattr(f"flowloom.run.mirror.{module}.SEGMENT_BYTES", 700)
    preview = {"inference_every": 4, "steps": 1, "prompts": ["bar"], "image_dim": [32, 32], "cfg": 1.0}
    run_dir = make_run("run", **bucket.sections(inference=preview))
    run_engine(run_dir)
    again = bucket.restore(tmp_path / "other")
    assert again.events_jsonl.read_bytes() == run_dir.events_jsonl.read_bytes()
    for path in (run_dir.path / "samples").rglob("*.*"):
        assert bucket.store.read(path.relative_to(run_dir.path).as_posix()) == path.read_bytes()
    secret = b"loom-test-s3cr3t-of-nobody"
    assert all(secret not in bucket.store.read(info.name) for info in bucket.store.list())


def test_paths_that_this_machine_does_not_have_are_named_and_replaced_by_flags(
    make_run: Callable[..., RunDir], bucket: Bucket, tmp_path: Path, synthetic_data: Path
) -> None:
    data = tmp_path / "data"
    shutil.copytree(synthetic_data, data)
    where = {"jsonl_metadata_path": str(data / "data.jsonl"), "image_folder_path": str(data)}
    run_dir = make_run("run", **bucket.sections(dataloader=where, limits={"max_steps": 2}))
    run_engine(run_dir)
    data.rename(tmp_path / "elsewhere")
    with pytest.raises(ConfigError) as caught:
        bucket.restore(tmp_path / "other")
    assert {problem.where for problem in caught.value.problems} == {
        "dataloader.jsonl_metadata_path",
        "dataloader.image_folder_path",
    }
    assert "give their paths here as flags" in caught.value.hint
    moved = tmp_path / "elsewhere"
    again = bucket.restore(
        tmp_path / "other",
        ("dataloader.jsonl_metadata_path", str(moved / "data.jsonl")),
        ("dataloader.image_folder_path", str(moved)),
        ("limits.max_steps", "4"),
    )
    run_engine(again)
    assert events(again, "finished")[-1]["step"] == 4
    assert [e["message"] for e in events(again, "warning")] == []


def test_the_command_resumes_from_the_bucket_with_two_ranks(
    make_run: Callable[..., RunDir],
    bucket: Bucket,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run_engine(make_run("run", **bucket.sections(limits={"max_steps": 4})))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AWS_ENDPOINT_URL", bucket.storage.endpoint or "")
    command = ["resume", bucket.run_url, "--runs-dir", "there", "--name", "fox", "--limits.max_steps", "6"]
    assert main([*command, "--download-only"]) == 0
    path = Path(capsys.readouterr().out.strip())
    assert path == Path("there/fox")
    assert run_ranks(RunDir(path), 2) == 0
    assert bucket.steps() == [2, 4, 6]
    assert main(command) == 2
    assert "exists already: resume it by 'flowloom resume there/fox'" in capsys.readouterr().err


def test_the_address_is_checked_and_may_be_written_shortly() -> None:
    assert RunConfig.model_validate({"mirror": "s3://bucket/runs"}).mirror.url == "s3://bucket/runs"
    for address in ("runs", "https://host/runs", "s3://key:secret@bucket/runs", "s3://"):
        with pytest.raises(ValueError, match="write s3://BUCKET/FOLDER"):
            RunConfig.model_validate({"mirror": {"url": address}})


def test_a_mirrored_run_is_sampled_and_exported_while_its_machine_trains(
    make_run: Callable[..., RunDir],
    bucket: Bucket,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    run_dir = make_run("run", **bucket.sections())
    run_engine(run_dir)
    before = {info.name: info.etag for info in bucket.store.list()}
    endpoint = ["--endpoint", bucket.storage.endpoint or ""]
    images = ["--prompt", "a fox", "--size", "32x32", "--steps", "2"]
    outs: list[bytes] = []
    for source in (bucket.run_url, str(run_dir.path)):
        out = tmp_path / f"images{len(outs)}"
        assert main(["sample", source, *images, *endpoint, "-o", str(out)]) == 0
        outs.append((out / "00.png").read_bytes())
    assert outs[0] == outs[1]
    (copied,) = (tmp_path / "cache" / "flowloom" / "runs").glob("*/run")
    assert [path.name for path in (copied / "checkpoints").iterdir()] == ["step_00000008"]
    assert not (copied / "checkpoints" / "step_00000008" / "state").exists(), "only a resume needs it"
    # An older checkpoint by its URL; the exported file is that of the run directory.
    comfy = ["--format", "comfy", *endpoint]
    for number, source in enumerate((bucket.run_url, str(run_dir.path))):
        checkpoint, out = f"{source}/checkpoints/step_00000004", str(tmp_path / f"{number}.safetensors")
        assert main(["export", checkpoint, *comfy, "-o", out]) == 0
    assert (tmp_path / "0.safetensors").read_bytes() == (tmp_path / "1.safetensors").read_bytes()
    assert {info.name: info.etag for info in bucket.store.list()} == before, "the lease, too"
    for wrong in ("/checkpoints/step_00000005", "-of-nobody"):
        assert main(["export", f"{bucket.run_url}{wrong}", *comfy, "-o", "x.safetensors"]) == 2
    assert "there is no complete checkpoint here" in (error := capsys.readouterr().err)
    assert "is not a mirrored run" in error


def test_the_studios_task_imports_a_run_beside_itself_and_it_continues(
    make_run: Callable[..., RunDir], bucket: Bucket, unmirrored: RunDir, tmp_path: Path
) -> None:
    run_dir = make_run("run", **bucket.sections(limits={"max_steps": 4}))
    run_engine(run_dir)
    shutil.rmtree(run_dir.path)
    tasks = Runs(tmp_path / "studio")
    access = {"url": bucket.run_url, "storage": {"endpoint": bucket.storage.endpoint}}
    with pytest.raises(ConfigError, match=r"model\.vae_path: .*nowhere"):
        tasks("run-import", **access, changes={"model": {"vae_path": "/nowhere"}})
    stopped = tasks.new("run-import", **access)
    stopped.request("stop")
    with pytest.raises(StopRequested):
        tasks.resume(stopped)
    assert not (tmp_path / "studio" / "run").exists()
    result = tasks(
        "run-import", **access, changes={"limits": {"max_steps": STEPS}, "training": {"save_every": 2}}
    )
    assert result == {"run": "run", "checkpoint": "step_00000004"}
    again = RunDir.open(tmp_path / "studio" / "run")
    assert again.read_run()["imported_from"] == bucket.run_url
    run_engine(again)
    assert_same_run(unmirrored, again)
