"""`python -m flowloom.trainers.kohya.start RUN_DIR CHECKOUT COMMAND...`: copy from buckets, then run COMMAND.

COMMAND starts sd-scripts in its checkout. It replaces this process, so that the run has one process, which
also keeps the locks of the copied folders.
"""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack
from pathlib import Path

from flowloom.errors import FlowloomError
from flowloom.run.directory import RunDir
from flowloom.run.process import FAILED
from flowloom.storage.local_copy import watch_as_phases
from flowloom.streams import leave, settle_home
from flowloom.trainers.kohya.config import KohyaConfig
from flowloom.trainers.kohya.copies import make_copies
from flowloom.trainers.kohya.hooks import say


class Stopped(Exception):
    """A stop was requested; the next start continues the download."""


def main() -> int:
    """The exit status, if COMMAND is not started."""
    folder, checkout, *command = sys.argv[1:]
    run_dir = RunDir(Path(folder))

    def raise_if_stopped() -> None:
        if run_dir.take_control("stop"):
            raise Stopped

    with ExitStack() as locks:
        try:
            config = run_dir.read_config_as(KohyaConfig)
            held = make_copies(config, watch_as_phases(say, raise_if_stopped), locks)
        except Stopped:
            say("stopped")
            return 0
        except FlowloomError as error:
            # The log's last error is that of the run.
            sys.stderr.write(f"SourceError: {error}\n{error.hint}".rstrip() + "\n")
            return FAILED
        for lock in held:
            os.set_inheritable(lock.fileno(), True)
        say("phase", name="loading")
        os.chdir(checkout)
        return os.execv(command[0], command)


if __name__ == "__main__":
    settle_home()
    leave(main())
