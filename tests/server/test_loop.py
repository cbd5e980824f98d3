"""No request holds up the event loop: what waits for files, SQLite or processes does so in other threads."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from tests.server.every_route import REQUESTS, RUN
from tests.server.served import LIMIT_S, Served

pytestmark = pytest.mark.timing


def fill(home: Path, num_events: int, num_images: int, log_mib: int) -> None:
    """Files behind every route, as many and as large as is asked."""
    run = home / "runs" / "large"
    (run / "studio").mkdir(parents=True)
    (run / "run.json").write_text(json.dumps({"trainer": "flow", "config": {"limits": {"max_steps": 10**6}}}))
    rest = json.dumps({"kind": "step", "epoch": 0, "loss": 0.1, "lr": 1e-4, "grad_norm": 0.5, "step_s": 1.0})
    with (run / "events.jsonl").open("w") as file:
        file.writelines(f'{{"seq": {i}, "time": 1.0, "step": {i}, {rest[1:]}\n' for i in range(num_events))
    (run / "log.txt").write_bytes(b"a line of a log that goes on for a long time\n" * (log_mib * 2**20 // 45))
    (run / "result.json").write_text(json.dumps([{"file": f"{i}.png"} for i in range(num_images)]))
    note = '[%d, {"cuda:0": [50.0, 1000.0, 60.0, 300.0]}]\n'
    (run / "studio" / "gpu_usage.jsonl").write_text("".join(note % i for i in range(num_images)))
    fill_results(run, num_images // 10)
    fill_datasets(home / "data", num_images)
    (home / "models").mkdir()
    (home / "models" / "large.safetensors").write_bytes(weights(num_images // 2))
    for i in range(num_images // 300):
        (home / "runs" / f"small-{i}").mkdir()
        (home / "runs" / f"small-{i}" / "run.json").write_text('{"config": {}}')


def fill_results(run: Path, num: int) -> None:
    samples, saved = run / "samples" / "step_00000001", run / "checkpoints" / "step_00000001"
    for folder in (samples, saved):
        folder.mkdir(parents=True)
    for i in range(num):
        Image.new("RGB", (64, 64)).save(samples / f"{i:05}.png")
    samples_json = [{"file": f"{i:05}.png", "prompt": "a fox " * 20} for i in range(num)]
    (samples / "samples.json").write_text(json.dumps(samples_json))
    (saved / "adapter.safetensors").write_bytes(weights(num))


def weights(num: int) -> bytes:
    """A file of `num` tensors."""
    names = {
        f"blocks.{i}.weight": {"dtype": "F32", "shape": [1], "data_offsets": [4 * i, 4 * i + 4]}
        for i in range(num)
    }
    header = json.dumps(names).encode()
    return len(header).to_bytes(8, "little") + header + bytes(4 * num)


def fill_datasets(data: Path, num: int) -> None:
    fox = data / "fox"
    fox.mkdir(parents=True)
    Image.new("RGB", (64, 64)).save(fox / "000000.png")
    content = (fox / "000000.png").read_bytes()
    for i in range(1, num):
        (fox / f"{i:06}.png").write_bytes(content)
    row = '{{"filename": "fox/{0:06}.png", "caption_or_tags": "a fox, {0}", "width": 64, "height": 64}}\n'
    (data / "rows.jsonl").write_text("".join(row.format(i) for i in range(num)))
    (data / "away").mkdir()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A studio with small files."""
    home = tmp_path_factory.mktemp("loop") / "home"
    fill(home, num_events=3000, num_images=60, log_mib=1)
    with pytest.MonkeyPatch.context() as patch, Served(home) as served:
        patch.setenv("FLOWLOOM_SECRETS", str(home.parent / "secrets.json"))
        served.http.patch("/api/queue", json={"paused": True})
        yield served


LARGE = [url for method, _, url, _ in REQUESTS if method == "GET" and "{}" not in url]


def ask(served: Served, method: str, url: str, more: dict[str, Any]) -> httpx.Response:
    """The answer, of a stream without end the beginning: four parts, or what comes in a second."""
    began = time.monotonic()
    with served.http.stream(method, url, **more) as answer:
        for num, _ in enumerate(answer.iter_raw()):
            is_enough = num > 3 or time.monotonic() - began > 1
            if is_enough and "event-stream" in answer.headers["content-type"]:
                break
    return answer


def test_every_route_is_requested_here(served: Served):
    routes = {
        (method.upper(), path)
        for path, operations in served.app.openapi()["paths"].items()
        for method in operations
    }
    assert routes == {(method, path) for method, path, _, _ in REQUESTS}


def test_no_route_waits_for_a_file_or_a_process_in_the_loop(served: Served):
    upload, waits = "", dict[str, list[str]]()
    for method, path, url, more in REQUESTS:
        found: list[httpx.Response] = []
        url = url.format(upload) if url == "{}" else url
        seen = served.watch(lambda: found.append(ask(served, method, url, more)))  # noqa: B023
        upload = found[0].headers.get("location", upload)
        assert found[0].status_code < 500 or path.startswith("/api/hub"), (
            method,
            url,
            found[0].status_code,
        )
        if seen:
            waits[f"{method} {path}"] = seen
    assert not waits


def test_the_measurement_sees_calls_that_wait(served: Served):
    @served.app.get("/api/wrong")
    async def wrong() -> str:
        return Path(__file__).read_text()[:1]

    assert any("io.open" in each for each in served.watch(lambda: served.http.get("/api/wrong")))


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A studio with a million events, 100,000 images, a log of 100 MiB."""
    home = tmp_path_factory.mktemp("large") / "home"
    fill(home, num_events=1_000_000, num_images=100_000, log_mib=100)
    with Served(home) as served:
        yield served


@pytest.mark.slow
@pytest.mark.parametrize("url", LARGE)
def test_large_files_delay_no_other_request(large: Served, url: str):
    lag = large.lag_of(lambda: ask(large, "GET", url, {}))
    assert lag < LIMIT_S


@pytest.mark.slow
def test_clients_that_leave_during_a_long_replay_delay_no_other_request(large: Served):
    def come_and_go() -> None:
        for _ in range(50):
            with large.http.stream("GET", f"{RUN}/events") as answer:
                next(answer.iter_raw())
        time.sleep(0.5)

    lag = large.lag_of(come_and_go)
    assert lag < LIMIT_S
    began = time.monotonic()
    while threading.active_count() > 60:
        assert time.monotonic() < began + 10, "what reads for clients that have left ends"
        time.sleep(0.1)


@pytest.mark.slow
def test_fifty_clients_that_replay_a_million_events_leave_the_others_their_answers(large: Served):
    stop = threading.Event()

    def replay() -> None:
        with (
            httpx.Client(base_url=large.url, timeout=60) as client,
            client.stream("GET", f"{RUN}/events") as answer,
        ):
            for _ in answer.iter_raw():
                if stop.is_set():
                    return

    clients = [threading.Thread(target=replay) for _ in range(50)]
    for client in clients:
        client.start()
    try:
        large.http.get("/api/health").raise_for_status()
        times = sorted(elapsed(large, "/api/runs?limit=10") for _ in range(15))
        assert times[len(times) // 2] < 2.0, times
    finally:
        stop.set()
        for client in clients:
            client.join()


def elapsed(served: Served, url: str) -> float:
    began = time.monotonic()
    served.http.get(url).raise_for_status()
    return time.monotonic() - began
