"""Stores that fail, and machines that compete for a mirror: training continues, and one of them writes."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flowloom.engine import mirror_upload
from flowloom.engine.__main__ import run_engine
from flowloom.errors import Denied, NotFound, RunError
from flowloom.run.directory import RunDir
from flowloom.run.mirror import lease as leases
from flowloom.run.mirror import upload
from flowloom.run.mirror.lease import Lease, LeaseLostError
from tests.engine.mirrored import (
    Bucket,
    assert_same_run,
    events,
)
from tests.fakes.faulty import Faulty
from tests.fakes.seaweed import Seaweed

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("fault", ["down", "full", "expired"])
def test_training_goes_past_a_store_that_fails_and_the_upload_catches_up(
    make_run: Callable[..., RunDir],
    bucket: Bucket,
    unmirrored: RunDir,
    faulty: Faulty,
    fault: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(upload, "PERIOD_S", 0.05)
    monkeypatch.setattr(upload, "PAUSES_S", (0.05,))
    storage = bucket.storage.model_copy(update={"endpoint": faulty.url, "timeout_s": 2.0})
    run_dir = make_run("run", **bucket.sections(storage=storage.model_dump()))
    problems: list[dict[str, Any]] = []

    def hear(event: dict[str, Any]) -> None:
        if event["kind"] == "warning":
            problems.append(event)
        if event["kind"] == "saved" and event["step"] == 2:
            if fault == "down":
                faulty.down()
            faulty.plan = lambda _number, method, _path: fault if method in ("PUT", "POST") else None
            time.sleep(1.0)  # the upload of step 2 fails meanwhile
        if event["kind"] == "step" and event["step"] == 6:
            faulty.plan = lambda *_: None
            if fault == "down":
                faulty.up()

    run_engine(run_dir, hear)
    assert_same_run(unmirrored, run_dir)
    assert bucket.steps() == [2, 4, 6, 8]
    reason = {"down": "no connection", "full": "the bucket is full", "expired": "ExpiredToken"}[fault]
    assert reason in problems[0]["message"]
    assert problems[0]["message"].startswith("mirror: ")
    assert "the upload catches up" in problems[0]["hint"]
    assert "works again" in problems[1]["message"]
    assert len(problems) == 2


def test_the_end_waits_a_limited_time_and_reports_what_is_missing(
    make_run: Callable[..., RunDir], bucket: Bucket, faulty: Faulty, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirror_upload, "PATIENCE_S", 2.0)
    storage = bucket.storage.model_copy(update={"endpoint": faulty.url, "timeout_s": 1.0})
    run_dir = make_run("run", **bucket.sections(storage=storage.model_dump()))
    times: dict[str, float] = {}

    def hear(event: dict[str, Any]) -> None:
        times[event["kind"]] = time.monotonic()
        if event["kind"] == "step" and event["step"] == 7:
            faulty.down()

    run_engine(run_dir, hear)
    assert time.monotonic() - times["finished"] < 8
    warning = events(run_dir, "warning")[-1]
    assert "step_00000008" in warning["message"]
    assert "not uploaded within 3 s" in warning["message"]
    assert f"flowloom resume {run_dir.path}" in warning["hint"]
    faulty.up()
    # As the hint says: a resume on the same machine uploads the rest.
    run_engine(run_dir)
    assert bucket.steps() == [2, 4, 6, 8]


def test_a_second_machine_waits_for_the_lease_and_is_refused_while_the_first_trains(
    make_run: Callable[..., RunDir], bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "LEASE_S", 1.5)
    monkeypatch.setattr(leases, "RENEWED_EVERY_S", 0.2)
    monkeypatch.setattr(upload, "PERIOD_S", 0.1)
    run_dir = make_run("run", **bucket.sections())
    refused: list[str] = []

    def hear(event: dict[str, Any]) -> None:
        if event["kind"] == "step" and event["step"] == 2:
            with pytest.raises(RunError, match="trains this run now") as caught:
                bucket.restore(tmp_path / "second")
            refused.append(str(caught.value))

    run_engine(run_dir, hear)
    assert refused
    assert "may still train it" in bucket.said[0]
    assert not (tmp_path / "second" / "run").exists()


def test_the_first_machine_writes_no_more_after_another_took_over(
    make_run: Callable[..., RunDir], bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was cut off for longer than the lease, and comes back."""
    monkeypatch.setattr(leases, "RENEWED_EVERY_S", 0.0)
    monkeypatch.setattr(upload, "PERIOD_S", 0.05)
    run_dir = make_run("run", **bucket.sections())

    def hear(event: dict[str, Any]) -> None:
        if event["kind"] == "step" and event["step"] == 5:
            content = json.dumps({"owner": "other", "host": "other-machine", "beat": 900})
            bucket.store.write("lease.json", content.encode())
            time.sleep(0.5)

    run_engine(run_dir, hear)
    assert max(bucket.steps()) < 6
    assert events(run_dir, "finished")
    (warning,) = (e for e in events(run_dir, "warning") if "belongs to another" in e["message"])
    assert "other-machine" in warning["message"]
    assert "Training continues without the mirror" in warning["hint"]
    # A resume of the old directory is refused before anything is loaded.
    with pytest.raises(LeaseLostError, match="belongs to another run directory, on other-machine"):
        run_engine(run_dir)
    assert events(run_dir, "failed")[-1]["hint"].startswith("Continue that one: 'flowloom resume s3://")


def test_a_fork_leaves_the_mirror_alone(
    make_run: Callable[..., RunDir], bucket: Bucket, tmp_path: Path
) -> None:
    run_dir = make_run("run", **bucket.sections(limits={"max_steps": 4}))
    run_engine(run_dir)
    before = bucket.store.read("lease.json")
    fork = bucket.restore(tmp_path / "fork", ("mirror.url", f"{bucket.url}-fork"), ("limits.max_steps", "6"))
    run_engine(fork)
    assert bucket.store.read("lease.json") == before
    assert bucket.steps() == [2, 4]
    assert Bucket(f"{bucket.url}-fork", bucket.storage).steps() == [4, 6]
    # The original still continues.
    run_engine(run_dir)


def test_a_mirror_that_cannot_be_used_ends_the_run_before_anything_is_loaded(
    make_run: Callable[..., RunDir], bucket: Bucket, faulty: Faulty, monkeypatch: pytest.MonkeyPatch
) -> None:
    faulty.plan = lambda *_: "no bucket"
    storage = bucket.storage.model_copy(update={"endpoint": faulty.url})
    with pytest.raises(NotFound, match="the bucket does not exist") as caught:
        run_engine(make_run("no-bucket", **bucket.sections(storage=storage.model_dump())))
    assert "mirror.url" in caught.value.hint
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    run_dir = make_run("run", **bucket.sections())
    with pytest.raises(Denied, match="access denied"):
        run_engine(run_dir)
    assert not [e for e in events(run_dir, "phase") if e["name"] == "training"]


def test_a_new_run_does_not_overwrite_the_mirror_of_another(
    make_run: Callable[..., RunDir], bucket: Bucket
) -> None:
    run_dir = make_run("run", **bucket.sections(limits={"max_steps": 2}))
    run_engine(run_dir)
    shutil.rmtree(run_dir.path)
    with pytest.raises(LeaseLostError, match="belongs to another run directory"):
        run_engine(make_run("run", **bucket.sections()))
    assert bucket.steps() == [2]


def test_keys_that_are_revoked_and_renewed_in_the_profile(
    make_run: Callable[..., RunDir],
    bucket: Bucket,
    seaweed: Seaweed,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By the store itself."""
    credentials = tmp_path / "credentials"
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(credentials))
    monkeypatch.setattr(upload, "PERIOD_S", 0.05)
    monkeypatch.setattr(upload, "PAUSES_S", (0.05,))

    def give(key: str) -> None:
        seaweed.give_keys(key, f"{key}-secret")
        credentials.write_text(f"[loom]\naws_access_key_id = {key}\naws_secret_access_key = {key}-secret\n")

    give("mirror-1")
    storage = bucket.storage.model_dump() | {"profile": "loom"}
    run_dir = make_run("run", **bucket.sections(storage=storage))

    def hear(event: dict[str, Any]) -> None:
        if event["kind"] == "step" and event["step"] == 3:
            seaweed.revoke_keys("mirror-1")
            time.sleep(1.0)
        if event["kind"] == "step" and event["step"] == 7:
            give("mirror-2")

    run_engine(run_dir, hear)
    first, second = events(run_dir, "warning")
    assert "access denied (403 InvalidAccessKeyId)" in first["message"]
    assert "works again" in second["message"]
    assert bucket.steps() == [2, 4, 6, 8]


def test_two_clients_that_take_a_released_lease_at_once(bucket: Bucket) -> None:
    """The store decides: the second write is refused by its etag."""
    first, second = Lease(bucket.store, "first"), Lease(bucket.store, "second")
    first.take()
    first.release()
    holder = second._read()

    def read() -> Any:
        first._renewed_at = float("-inf")
        first.renew()
        second._read = lambda: Lease(bucket.store, "second")._read()
        return holder

    second._read = read
    with pytest.raises(LeaseLostError):
        second.take_over(lambda _: None)
