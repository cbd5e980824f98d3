"""Access that is denied during a run: it waits for new keys, or saves and ends; rows are never to blame."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flowloom.cli.lint import lint
from flowloom.config.run import RunConfig
from flowloom.engine.__main__ import run_engine
from flowloom.engine.fill_cache import fill, prune
from flowloom.errors import StoreDenied, StoreDown
from flowloom.run.directory import RunDir
from flowloom.run.events import read_events
from flowloom.storage.base import StorageSection
from flowloom.storage.open import open_source
from tests.engine.processes import run_ranks
from tests.fakes.faulty import Faulty
from tests.fakes.seaweed import Seaweed

pytestmark = pytest.mark.slow

STEPS = 30
SLOWLY = {"batch_size": 2, "prefetch_factor": 1, "uncond_percentage": 0.1}
BRIEFLY = {"patience_minutes": 0.02, "tries": 2, "read_ahead_mib": 0.01}


@pytest.fixture
def stored(synthetic_data: Path, tmp_path: Path, storage: StorageSection) -> str:
    """The images in the store."""
    address = f"s3://loom/{tmp_path.name}"
    store = open_source(address, storage)
    for path in synthetic_data.glob("*.png"):
        store.write(path.name, path)
    return address


@pytest.fixture
def expected(make_run: Callable[..., RunDir]) -> dict[int, float]:
    """The losses of a run that reads the same images from a folder."""
    run_dir = make_run("undisturbed", dataloader=SLOWLY, limits={"max_steps": STEPS})
    run_engine(run_dir)
    return losses(run_dir)


def losses(run_dir: RunDir) -> dict[int, float]:
    """The loss of each step; a step made twice must have given the same one both times."""
    found: dict[int, float] = {}
    for event in read_events(run_dir.events_jsonl):
        assert event["kind"] != "skipped", event
        if event["kind"] == "step":
            assert found.setdefault(event["step"], event["loss"]) == event["loss"]
    assert found
    return found


def after_step(step: int, act: Callable[[], object]) -> Callable[[dict[str, Any]], None]:
    def hear(event: dict[str, Any]) -> None:
        if event["kind"] == "step" and event["step"] == step:
            act()

    return hear


def assert_saved_and_failed(run_dir: RunDir, error: str, message: str) -> None:
    """The last event says so, and the step before it has a checkpoint."""
    events = list(read_events(run_dir.events_jsonl))
    step = max(losses(run_dir))
    assert [event["kind"] for event in events[-2:]] == ["saved", "failed"]
    assert events[-1]["error"] == error
    assert message in events[-1]["message"]
    assert "it continues from there" in events[-1]["hint"]
    assert 2 <= step < STEPS
    assert run_dir.latest_checkpoint() == run_dir.checkpoint_dir(step)


@pytest.mark.parametrize("fault", ["denied", "expired", "unknown key"])
def test_losses_are_equal_when_access_comes_back(
    make_run: Callable[..., RunDir],
    expected: dict[int, float],
    stored: str,
    storage: StorageSection,
    faulty: Faulty,
    fault: str,
) -> None:
    run_dir = make_run(
        "run",
        dataloader=SLOWLY | {"image_folder_path": stored},
        storage=storage.model_dump() | {"endpoint": faulty.url, "tries": 2, "read_ahead_mib": 0.01},
        limits={"max_steps": STEPS},
    )
    messages: list[str] = []

    def hear(event: dict[str, Any]) -> None:
        if event["kind"] == "step" and event["step"] == 2:
            faulty.plan = lambda *_: fault
        if event["kind"] == "warning":
            messages.append(event["message"])
            faulty.plan = lambda *_: None

    run_engine(run_dir, hear)
    assert losses(run_dir) == expected
    assert len(messages) == 2
    assert f"{stored} denies access (40" in messages[0]
    assert f"{stored} grants access again" in messages[1]


def test_revoked_keys_end_the_run_with_a_checkpoint_and_new_ones_continue_it(
    make_run: Callable[..., RunDir],
    expected: dict[int, float],
    stored: str,
    storage: StorageSection,
    seaweed: Seaweed,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The store itself revokes them."""
    credentials = tmp_path / "credentials"
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(credentials))

    def give(key: str) -> None:
        seaweed.give_keys(key, f"{key}-secret")
        credentials.write_text(f"[loom]\naws_access_key_id = {key}\naws_secret_access_key = {key}-secret\n")

    give("run-1")
    run_dir = make_run(
        "run",
        dataloader=SLOWLY | {"image_folder_path": stored},
        storage=storage.model_dump() | BRIEFLY | {"profile": "loom"},
        limits={"max_steps": STEPS},
    )
    with pytest.raises(StoreDenied, match="access denied") as caught:
        run_engine(run_dir, after_step(2, lambda: seaweed.revoke_keys("run-1")))
    assert "Renew the keys, then 'flowloom resume" in caught.value.hint
    assert_saved_and_failed(run_dir, "StoreDenied", "access denied for 0.02 minutes (403 InvalidAccessKeyId)")
    with pytest.raises(StoreDenied, match="Check the keys"):
        run_engine(run_dir)
    give("run-2")
    run_engine(run_dir)
    assert losses(run_dir) == expected


def test_a_store_that_stays_down_ends_the_run_with_a_checkpoint(
    make_run: Callable[..., RunDir],
    expected: dict[int, float],
    stored: str,
    storage: StorageSection,
    faulty: Faulty,
) -> None:
    run_dir = make_run(
        "run",
        dataloader=SLOWLY | {"image_folder_path": stored},
        storage=storage.model_dump() | BRIEFLY | {"endpoint": faulty.url},
        limits={"max_steps": STEPS},
    )
    with pytest.raises(StoreDown):
        run_engine(run_dir, after_step(2, faulty.down))
    assert_saved_and_failed(run_dir, "StoreDown", "down for 0.02 minutes")
    faulty.up()
    run_engine(run_dir)
    assert losses(run_dir) == expected


@pytest.mark.parametrize("fault", ["denied", "expired"])
def test_keys_that_open_nothing_end_the_run_before_any_row_is_blamed(
    make_run: Callable[..., RunDir], stored: str, storage: StorageSection, faulty: Faulty, fault: str
) -> None:
    faulty.plan = lambda *_: fault
    run_dir = make_run(
        "run",
        dataloader=SLOWLY | {"image_folder_path": stored},
        storage=storage.model_dump() | {"endpoint": faulty.url, "tries": 2},
    )
    with pytest.raises(StoreDenied, match="access denied"):
        run_engine(run_dir)
    kinds = [event["kind"] for event in read_events(run_dir.events_jsonl)]
    assert "skipped" not in kinds
    assert "warning" not in kinds
    assert run_dir.checkpoints() == []


def test_one_denied_image_is_skipped_and_named(
    make_run: Callable[..., RunDir], stored: str, storage: StorageSection, faulty: Faulty
) -> None:
    faulty.plan = lambda _number, _method, path: "denied" if path.endswith("/07.png") else None
    run_dir = make_run(
        "run",
        dataloader=SLOWLY | {"image_folder_path": stored},
        storage=storage.model_dump() | {"endpoint": faulty.url, "tries": 2},
        limits={"max_steps": None, "max_epochs": 1, "skipped_percentage": 0.1},
    )
    run_engine(run_dir)
    skipped = [event for event in read_events(run_dir.events_jsonl) if event["kind"] == "skipped"]
    assert [event["line"] for event in skipped] == [8]
    assert "access denied" in skipped[0]["reason"]


@pytest.mark.parametrize("recovers", [True, False])
def test_a_cache_in_a_store_waits_for_access_or_ends_the_run_with_a_checkpoint(
    make_run: Callable[..., RunDir],
    make_config: Callable[..., RunConfig],
    expected: dict[int, float],
    tmp_path: Path,
    storage: StorageSection,
    faulty: Faulty,
    monkeypatch: pytest.MonkeyPatch,
    recovers: bool,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    cache = {"latents": "disk", "text": "disk", "dir": f"s3://loom/{tmp_path.name}/cache"}
    sections = {
        "dataloader": SLOWLY,
        "cache": cache,
        "storage": storage.model_dump() | BRIEFLY | {"endpoint": faulty.url},
    }
    fill(make_config(**sections))
    if recovers:
        sections["storage"] |= {"patience_minutes": 60.0}
    run_dir = make_run("run", **sections, limits={"max_steps": STEPS})
    messages: list[str] = []

    def hear(event: dict[str, Any]) -> None:
        if event["kind"] == "step" and event["step"] == 2:
            faulty.plan = lambda *_: "expired"
        if event["kind"] == "warning":
            messages.append(event["message"])
            if recovers:
                faulty.plan = lambda *_: None

    if not recovers:
        with pytest.raises(StoreDenied):
            run_engine(run_dir, hear)
        assert_saved_and_failed(run_dir, "StoreDenied", "ExpiredToken")
        faulty.plan = lambda *_: None
    run_engine(run_dir, hear)
    assert losses(run_dir) == expected
    assert "denies access (400 ExpiredToken)" in messages[0]


def test_a_fill_a_prune_and_a_lint_blame_no_row_either(
    make_config: Callable[..., RunConfig],
    synthetic_data: Path,
    stored: str,
    tmp_path: Path,
    storage: StorageSection,
    faulty: Faulty,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = make_config(
        dataloader=SLOWLY | {"image_folder_path": stored},
        cache={"latents": "disk", "dir": str(tmp_path / "cache")},
        storage=storage.model_dump() | BRIEFLY | {"endpoint": faulty.url},
    )
    begin = faulty.seen
    faulty.plan = lambda number, *_: "unknown key" if number > begin + 10 else None
    with pytest.raises(StoreDenied):
        fill(config)
    faulty.plan = lambda *_: None
    assert fill(config).skipped == []
    faulty.plan = lambda *_: "unknown key"
    assert "access denied" in prune([config]).unjudged
    monkeypatch.setenv("AWS_ENDPOINT_URL", faulty.url)
    with pytest.raises(StoreDenied):
        lint([str(synthetic_data / "data.jsonl"), "--images", stored])
    faulty.plan = lambda *_: None
    assert prune([config]).unjudged == ""


def test_two_ranks_save_when_one_is_denied(
    make_run: Callable[..., RunDir],
    stored: str,
    storage: StorageSection,
    seaweed: Seaweed,
    faulty: Faulty,
) -> None:
    """The other rank may have read all that it needs; both end at the same step."""
    sections = {
        "dataloader": SLOWLY | {"image_folder_path": stored, "batch_size": 4},
        "storage": storage.model_dump() | BRIEFLY | {"endpoint": faulty.url},
        "limits": {"max_steps": 16},
    }
    whole, run_dir = make_run("whole", **sections), make_run("run", **sections)
    assert on_two_ranks(whole, seaweed) == 0
    # Each epoch, each rank reads its half of 22 images: some are read, then all is denied.
    begin = faulty.seen
    faulty.plan = lambda number, *_: "unknown key" if number > begin + 40 else None
    assert on_two_ranks(run_dir, seaweed) != 0
    step = max(losses(run_dir))
    assert 1 <= step < 16
    assert run_dir.latest_checkpoint() == run_dir.checkpoint_dir(step)
    faulty.plan = lambda *_: None
    assert on_two_ranks(run_dir, seaweed) == 0
    assert losses(run_dir) == losses(whole)


def on_two_ranks(run_dir: RunDir, seaweed: Seaweed) -> int:
    return run_ranks(run_dir, 2, seaweed.environ)
