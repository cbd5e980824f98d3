"""`python -m flowloom.launchers.record_end RUN_DIR STATUS LOG [--requeue]`: the last command of a job.

If the ranks were killed, or never started because a node did not join, it records a failure. If the job
reached its time limit, it records that; with `--requeue` the exit status is 0 if it is to be queued again.
"""

from __future__ import annotations

import sys
from pathlib import Path

from flowloom.launchers.base import limit_file
from flowloom.launchers.jobs import cause_in, read_record, record_failure, record_time_limit
from flowloom.run.directory import RunDir


def main() -> int:
    """Record how the job ended; the exit status."""
    path, status, log, *options = sys.argv[1:]
    run_dir = RunDir(path)
    if limit_file(run_dir).exists():
        return 0 if record_time_limit(run_dir, is_requeued="--requeue" in options) else 1
    if record := read_record(run_dir):
        record_failure(run_dir, record, f"The job ended with status {status}. {cause_in(Path(log))}".rstrip())
    return 1


if __name__ == "__main__":
    sys.exit(main())
