"""The load of the processors is that of the machine, whichever thread asks."""

from __future__ import annotations

import threading
import time

from flowloom.server.system import SystemMonitor


def test_a_busy_machine_is_busy_to_every_thread_that_asks():
    monitor, until = SystemMonitor({}), time.monotonic() + 4
    read: list[float] = []

    def burn() -> None:
        while time.monotonic() < until:
            sum(range(1000))

    burner = threading.Thread(target=burn)
    burner.start()
    for _ in range(3):
        reader = threading.Thread(target=lambda: read.append(monitor.read().cpu_percent))
        reader.start()
        reader.join()
        time.sleep(1.05)
    burner.join()
    assert all(0 < percent <= 100 for percent in read)
    assert len(read) == 3


def test_the_first_reading_is_no_zero_of_an_empty_interval():
    before = time.process_time()
    monitor = SystemMonitor({})
    while time.process_time() - before < 0.3:
        sum(range(1000))
    assert monitor.read().cpu_percent > 0
