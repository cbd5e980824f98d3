import io

from flowloom.engine.progress import MAX_SKIPPED_SHOWN, Progress, duration, step_line

STEP = {
    "kind": "step",
    "step": 1234,
    "epoch": 2,
    "loss_smooth": 0.43211,
    "lr": 1e-4,
    "samples_per_s": 12.34,
    "eta_s": 754.0,
}


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_the_line_says_step_loss_speed_and_time_left():
    assert (
        step_line(STEP) == "step   1,234   epoch 3   loss 0.4321   lr 1.00e-04   12.3 samples/s   12:34 left"
    )
    assert step_line(STEP | {"eta_s": None}).endswith("samples/s")


def test_a_terminal_has_one_moving_line_and_whole_lines_for_the_rest():
    terminal = Terminal()
    show = Progress(terminal)
    show(STEP)
    show(STEP | {"step": 1235})
    show({"kind": "saved", "dir": "checkpoints/step_00001235", "step": 1235})
    assert terminal.getvalue().count("\r") == 2
    assert terminal.getvalue().endswith("\x1b[K\nsaved      checkpoints/step_00001235\n")


def test_a_log_file_gets_a_line_now_and_then():
    log = io.StringIO()
    show = Progress(log)
    for step in range(50):
        show(STEP | {"step": step})
    assert log.getvalue().count("\n") == 1


def test_many_skipped_rows_do_not_flood_the_screen():
    log = io.StringIO()
    show = Progress(log)
    for line in range(100):
        show({"kind": "skipped", "line": line, "file": "a.png", "reason": "truncated"})
    assert log.getvalue().count("\n") == MAX_SKIPPED_SHOWN + 1


def test_durations_read_like_a_clock():
    assert [duration(seconds) for seconds in (5, 65, 3723.4)] == ["0:05", "1:05", "1:02:03"]
