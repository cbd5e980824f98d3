"""Models from the Hugging Face hub: a few files of a repository, kept where the hub's own tools keep them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flowloom.errors import Denied, NotFound, SourceError, Unavailable
from flowloom.storage.hub_client import check_hub_addresses


def fetch_model(
    repo: str, revision: str | None, patterns: Sequence[str], models_dir: Path | None
) -> tuple[Path, str]:
    """A folder with the files of `repo` whose names fit `patterns`, and the commit that they are of.

    What is there already is not fetched again, and what was begun goes on. Without a network, what is there
    is taken. HF_TOKEN in the environment opens private and gated repositories.

    Args:
        revision: a branch, tag or commit; None: the newest of main.
        models_dir: None: the hub's own cache.

    Raises:
        NotFound: no such repository, revision, or none of the files.
        Denied: a token is needed, the terms of use have to be agreed to, or the hub redirects to a private
            address.
        Unavailable: the hub cannot be reached, and the files are not here.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    check_hub_addresses()
    # The first base of its errors is that of whichever HTTP client the hub's package uses.
    client_error: Any = HfHubHTTPError.__bases__[0]
    try:
        folder = snapshot_download(
            repo,
            revision=revision,
            allow_patterns=list(patterns),
            ignore_patterns=["*/*"],
            cache_dir=models_dir,
            endpoint=os.environ.get("HF_ENDPOINT"),
            token=os.environ.get("HF_TOKEN"),
            library_name="flowloom",
        )
    except GatedRepoError as error:
        message = f"{repo}: agree to its terms on the hub, and put a token of that account into HF_TOKEN."
        raise Denied(message) from error
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        named = f"{repo} at {revision}" if revision else repo
        raise NotFound(f"{named}: the hub has no such model, or HF_TOKEN does not open it.") from error
    except LocalEntryNotFoundError as error:
        raise Unavailable(f"{repo}: {_unreached(error)}") from error
    except (client_error, OSError, ValueError) as error:
        raise SourceError(
            f"{repo} could not be fetched: {str(error).strip() or type(error).__name__}"
        ) from error
    path = Path(folder)
    if not any(found for pattern in patterns for found in path.glob(pattern)):
        raise NotFound(f"{repo}: has none of {', '.join(patterns)}.")
    return path, path.name


def _unreached(error: Exception) -> str:
    cause = error.__cause__ or error
    return (
        f"the hub cannot be reached ({cause or type(cause).__name__}), and the model is not on this machine. "
        "Copy its files into a folder and name that by model_path."
    )
