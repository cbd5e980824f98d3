"""Download models from the Hugging Face hub: files of a repository, into the cache of the hub's tools."""

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
    """A folder with the files of `repo` that match `patterns`, and their commit.

    Complete files are not downloaded again, incomplete ones are resumed, and existing ones are used without
    a network. HF_TOKEN in the environment gives access to private and gated repositories.

    Args:
        revision: a branch, tag or commit; None: the newest commit of main.
        models_dir: None: the cache of huggingface_hub.

    Raises:
        NotFound: no such repository or revision, or no matching file.
        Denied: a token is missing, the terms of use are not accepted, or the hub redirects to a private
            address.
        Unavailable: the hub cannot be reached, and the files are not on this machine.
    """
    import huggingface_hub
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    check_hub_addresses()
    # The base class of all errors of the HTTP client, which depends on the version of huggingface_hub.
    client_error: Any = HfHubHTTPError.__bases__[0]
    try:
        folder = huggingface_hub.snapshot_download(
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
        message = f"{repo}: accept its terms on the hub, and set HF_TOKEN to a token of that account."
        raise Denied(message) from error
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        named = f"{repo} at {revision}" if revision else repo
        raise NotFound(f"{named}: no such model on the hub, or HF_TOKEN has no access to it.") from error
    except LocalEntryNotFoundError as error:
        raise Unavailable(f"{repo}: {_unreached(error)}") from error
    except (client_error, OSError, ValueError) as error:
        raise SourceError(
            f"{repo} could not be downloaded: {str(error).strip() or type(error).__name__}"
        ) from error
    path = Path(folder)
    if not any(match for pattern in patterns for match in path.glob(pattern)):
        raise NotFound(f"{repo}: no file matches {', '.join(patterns)}.")
    return path, path.name


def _unreached(error: Exception) -> str:
    cause = error.__cause__ or error
    return (
        f"the hub cannot be reached ({cause or type(cause).__name__}), and the model is not on this machine. "
        "Copy its files into a folder, and set model_path to it."
    )
