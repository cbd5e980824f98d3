"""The one rule for retries of a download and of an upload."""

import pytest

from flowloom.errors import SourceError, Unavailable
from flowloom.storage.retry import with_retries

WAITS_S = (1.0, 4.0)


class Transfer:
    """Brings `gains` bytes, one number per attempt, and fails each time until they are used up."""

    def __init__(self, *gains: int, retry_after_s: float = 0.0):
        self.gains = list(gains)
        self.retry_after_s = retry_after_s
        self.num_bytes = 0
        self.pauses: list[float] = []

    def attempt(self) -> str:
        if not self.gains:
            return "complete"
        self.num_bytes += self.gains.pop(0)
        raise Unavailable("broke off", retry_after_s=self.retry_after_s)

    def pause(self, seconds: float) -> bool:
        self.pauses.append(seconds)
        return True

    def run(self) -> str:
        return with_retries(self.attempt, WAITS_S, self.pause, lambda: self.num_bytes)


def test_pauses_grow_until_the_attempt_succeeds():
    transfer = Transfer(0, 0)
    assert transfer.run() == "complete"
    first, second = transfer.pauses
    assert 0.7 <= first <= 1.3
    assert 2.8 <= second <= 5.2


def test_retries_end_after_the_last_pause():
    transfer = Transfer(0, 0, 0)
    with pytest.raises(Unavailable):
        transfer.run()
    assert len(transfer.pauses) == len(WAITS_S)


def test_progress_begins_the_pauses_again():
    transfer = Transfer(0, 5, 0, 5, 0)
    assert transfer.run() == "complete"
    assert all(pause <= 1.3 for pause in transfer.pauses[1::2])


def test_a_server_may_ask_for_a_longer_pause():
    transfer = Transfer(0, retry_after_s=60.0)
    assert transfer.run() == "complete"
    assert transfer.pauses == [60.0]


def test_no_retry_after_a_pause_that_was_interrupted():
    transfer = Transfer(0, 0)
    with pytest.raises(Unavailable):
        with_retries(transfer.attempt, WAITS_S, lambda _: False)
    assert transfer.gains == [0]


def test_other_errors_are_not_retried():
    def attempt() -> None:
        raise SourceError("no such file")

    with pytest.raises(SourceError, match="no such file"):
        with_retries(attempt, WAITS_S, lambda _: pytest.fail("a pause"))
