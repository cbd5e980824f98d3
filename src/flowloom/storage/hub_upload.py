"""Checkpoints to the Hugging Face hub, in the background."""

from __future__ import annotations

import os
import queue
import shutil
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowloom.errors import ConfigError, Problem, SourceError, Unavailable
from flowloom.storage.hub_client import check_hub_addresses
from flowloom.storage.retry import with_retries

WAITS = (5.0, 30.0, 120.0, 600.0)
"""Seconds before each retry: outages of a minute are common, of an hour rare."""

NOT_UPLOADED = "state"
"""The folder of a checkpoint for exact resume: larger than the weights, and of use to this run only."""

PATIENCE_S, SLOWEST = 300.0, 2**20
"""At the end of a run: seconds to wait for uploads, and their expected bytes per second."""

FINAL = (400, 401, 403, 404, 413, 422)
"""Statuses that a retry does not change."""


@dataclass(frozen=True)
class Uploaded:
    """Result of an upload."""

    step: int
    url: str | None = None
    """Where it is, or null with an `error`."""
    error: str | None = None


class Uploader:
    """Uploads checkpoint folders one after the other in a separate thread; training never waits for it."""

    def __init__(
        self,
        repo_id: str,
        scratch_dir: Path,
        on_result: Callable[[Uploaded], None],
        *,
        is_private: bool = True,
        waits: Sequence[float] = WAITS,
        patience_s: float = PATIENCE_S,
    ):
        """
        Args:
            repo_id: "owner/name"; created if it does not exist. The environment has the token in HF_TOKEN
                and the address of another hub in HF_ENDPOINT.
            scratch_dir: folder for links to waiting files, on the file system of the checkpoints. Files that
                an earlier run left in it are uploaded first.
            on_result: called from the uploading thread.
            waits: seconds before the second, third ... attempt.
            patience_s: maximum wait of `close`, in addition to one second per MiB of the files.

        Raises:
            ConfigError: HF_TOKEN is not set.
        """
        token = os.environ.get("HF_TOKEN")
        if not token:
            message = "HF_TOKEN is not set. Put a token that may write to the repository into it."
            raise ConfigError("the configuration", [Problem("hub.repo_id", message)])
        from huggingface_hub import HfApi
        from huggingface_hub.utils import disable_progress_bars

        disable_progress_bars()
        check_hub_addresses()
        self.api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"), token=token, library_name="flowloom")
        self.repo_id = repo_id
        self.scratch_dir = scratch_dir
        self.on_result = on_result
        self.is_private = is_private
        self.waits = waits
        self.patience_s = patience_s
        self._waiting: queue.SimpleQueue[Path | None] = queue.SimpleQueue()
        self._is_closing = threading.Event()
        self._thread = threading.Thread(target=self._work, name="hub upload", daemon=True)
        for left_behind in sorted(scratch_dir.glob("step_*")):
            self._waiting.put(left_behind)
        self._thread.start()

    def submit(self, folder: Path) -> None:
        """Upload the checkpoint `folder`, named `step_` and a number, after the earlier ones.

        It may be deleted as soon as this returns.
        """
        kept, partial = self.scratch_dir / folder.name, self.scratch_dir / f".{folder.name}"
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(folder, partial, copy_function=_link, ignore=shutil.ignore_patterns(NOT_UPLOADED))
        shutil.rmtree(kept, ignore_errors=True)
        partial.rename(kept)
        self._waiting.put(kept)

    def close(self, wait: bool) -> list[Path]:
        """Stop after all submitted uploads, or now without `wait`; returns the folders that remain.

        The wait is limited, in case the hub does not respond: the next run uploads the rest.
        """
        self._waiting.put(None)
        if not wait:
            self._is_closing.set()
        num_bytes = sum(path.stat().st_size for path in self.scratch_dir.rglob("*") if path.is_file())
        self._thread.join(timeout=self.patience_s + num_bytes / SLOWEST if wait else 1.0)
        self._is_closing.set()
        return sorted(self.scratch_dir.glob("step_*"))

    def _work(self) -> None:
        while (folder := self._waiting.get()) is not None and not self._is_closing.is_set():
            result = self._upload(folder)
            if result.url or not self._is_closing.is_set():
                shutil.rmtree(folder, ignore_errors=True)
                self.on_result(result)

    def _upload(self, folder: Path) -> Uploaded:
        step = int(folder.name.removeprefix("step_"))
        try:
            url = with_retries(
                lambda: self._attempt(folder), self.waits, lambda seconds: not self._is_closing.wait(seconds)
            )
        except SourceError as error:
            return Uploaded(step, error=str(error))
        return Uploaded(step, url=url)

    def _attempt(self, folder: Path) -> str:
        """The URL of the uploaded folder.

        Raises:
            Unavailable: a retry may succeed.
            SourceError: a retry does not help.
        """
        from huggingface_hub.errors import HfHubHTTPError

        # The base class of all errors of the HTTP client, which depends on the version of huggingface_hub.
        client_error: Any = HfHubHTTPError.__bases__[0]
        try:
            return self._commit(folder)
        except (client_error, SourceError, OSError, RuntimeError, ValueError) as error:
            response: Any = getattr(error, "response", None)
            is_final = response is not None and response.status_code in FINAL
            raise (SourceError if is_final else Unavailable)(self._explained(folder, error)) from error

    def _commit(self, folder: Path) -> str:
        from huggingface_hub import CommitOperationAdd

        self.api.create_repo(self.repo_id, private=self.is_private, exist_ok=True)
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        additions = [
            CommitOperationAdd(
                path_in_repo=f"{folder.name}/{path.relative_to(folder).as_posix()}", path_or_fileobj=path
            )
            for path in files
        ]
        return self.api.create_commit(self.repo_id, additions, commit_message=f"Add {folder.name}").commit_url

    def _explained(self, folder: Path, error: BaseException) -> str:
        while error.__cause__ is not None:  # huggingface_hub wraps every error in "Error while uploading"
            error = error.__cause__
        return (
            f"{folder.name} was not uploaded to {self.repo_id}: {str(error).strip() or type(error).__name__} "
            "It is complete on this machine. Check HF_TOKEN and the network, then upload it by hand: "
            f"hf upload {self.repo_id} CHECKPOINT_DIR {folder.name}"
        )


def _link(source: str, target: str) -> None:
    """Hard-link the file, or copy it, so that it outlives its checkpoint."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
