"""`python -m flowloom.launchers.record_end RUN_DIR STATUS LOG`: the last command of a job's script.

If the ranks were killed, or never started because a node did not join, it records a failure.
"""

from __future__ import annotations

import sys
from pathlib import Path

from flowloom.launchers.jobs import cause_in, read_record, record_failure
from flowloom.run.directory import RunDir


def main() -> None:
    """Record a failure of the job, if there was one."""
    path, status, log = sys.argv[1:]
    run_dir = RunDir(path)
    if record := read_record(run_dir):
        record_failure(run_dir, record, f"The job ended with status {status}. {cause_in(Path(log))}".rstrip())


if __name__ == "__main__":
    main()
