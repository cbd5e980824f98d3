"""No body of a request holds up the event loop, however it is made."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator

import pytest

from flowloom.server.bodies import MAX_VALUES
from tests.server.served import LIMIT_S, Served


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    home = tmp_path_factory.mktemp("bodies")
    (home / "data" / "fox").mkdir(parents=True)
    with Served(home) as served:
        yield served


def body(value: str, filled: str = "items", more: str = "", num_bytes: int = 4 * 2**20) -> bytes:
    """A request for an edit of captions, as large as is accepted, with `value` again and again."""
    operation = '"operation": {"kind": "add", "tags": ["snow"], "where": "end"}'
    around = f'{{{operation}, {more}"{filled}": []}}'
    num = (num_bytes - len(around)) // (len(value) + 1)
    return around.replace("[]", f"[{','.join([value] * num)}]").encode()


LARGEST = {
    "lists": (body("[]"), 413),
    "objects": (body("{}"), 413),
    "names": (body('"000001.png"'), 413),
    "long-names": (body(f'"{"x," * 300}"'), 200),
    "wrong-values": (body("1", num_bytes=2 * MAX_VALUES), 422),
    "long-numbers": (body("1" * 4300), 422),
    "digits": (body("1" * 4_000_000), 400),
    "unknown-fields": (
        json.dumps({"items": ["x"]} | {f"{i:06}": 1 for i in range(MAX_VALUES // 2 - 9)}).encode(),
        422,
    ),
    "commas-in-a-text": (json.dumps({"items": ["a, " * 1000] * 1300}).encode(), 422),
    "deep": (b'{"items":' + b"[" * (MAX_VALUES - 9), 400),
    "utf-16": (body("[]", num_bytes=2 * 2**20).decode().encode("utf-16"), 413),
}


@pytest.mark.parametrize("kind", LARGEST)
def test_no_body_of_a_request_holds_up_the_loop(served: Served, kind: str):
    content, status = LARGEST[kind]
    answers = set[int]()

    def send() -> None:
        headers = {"content-type": "application/json"}
        answer = served.http.post("/api/datasets/fox/edits/preview", content=content, headers=headers)
        assert answer.headers["content-type"].startswith("application/")
        assert len(answer.content) < 100_000
        answers.add(answer.status_code)

    assert served.lag_of(send) < LIMIT_S
    assert answers == {status}


@pytest.mark.parametrize("kind", ["computing", "sleeping"])
def test_the_measure_sees_a_loop_that_is_held_up(served: Served, kind: str):
    def hold_up() -> None:
        if kind == "sleeping":
            time.sleep(0.3)
        else:
            sum(range(20_000_000))

    async def wrong() -> None:
        hold_up()

    def ask_for_it() -> None:
        asyncio.run_coroutine_threadsafe(wrong(), served.server.servers[0].get_loop()).result()

    assert served.lag_of(ask_for_it) > LIMIT_S
