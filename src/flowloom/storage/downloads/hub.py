"""List the files of a repository on the Hugging Face hub."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, Literal, cast
from urllib.parse import quote, urljoin

from flowloom.errors import SourceError
from flowloom.storage.base import shown
from flowloom.storage.downloads.request import DownloadClient, get
from flowloom.storage.ssrf import origin_of

MAX_PAGE = 2**23
"""Bytes of JSON, about 40,000 files."""
MAX_FILES = 100_000
_NEXT = re.compile(r'<([^>]+)>;\s*rel="next"')
RepoType = Literal["models", "datasets"]


@dataclass(frozen=True)
class HubFile:
    """One file of a repository."""

    name: str
    size: int
    """In bytes."""
    sha256: str | None
    """Only of large files."""


def files_of(client: DownloadClient, repo_type: RepoType, repo: str, revision: str) -> list[HubFile]:
    """Every file of a repository at a branch, tag or commit.

    Raises:
        NotFound, Denied, SourceError: no such repository, no access, or an unexpected response.
    """
    hub = client.hub.rstrip("/")
    url = f"{hub}/api/{repo_type}/{repo}/tree/{quote(revision, safe='')}?recursive=true"
    files: list[HubFile] = []
    while url:
        entries, url = _page(client, url)
        files += [_file(entry) for entry in entries if entry.get("type") == "file"]
        if len(files) > MAX_FILES:
            raise SourceError(f"{repo}: more than {MAX_FILES:,} files. Name one of its folders.")
    return files


def commit_of(client: DownloadClient, repo_type: RepoType, repo: str, revision: str) -> str:
    """The current commit of a branch or tag.

    Raises:
        NotFound, Denied, SourceError: as `files_of`.
    """
    url = f"{client.hub.rstrip('/')}/api/{repo_type}/{repo}/revision/{quote(revision, safe='')}"
    content, _ = _json(client, url)
    commit: Any = cast("dict[str, Any]", content).get("sha") if isinstance(content, dict) else None
    if not isinstance(commit, str) or not re.fullmatch(r"[0-9a-f]{40,64}", commit):
        raise SourceError(f"{shown(url)}: the response has no commit. Check HF_ENDPOINT.")
    return commit


def _page(client: DownloadClient, url: str) -> tuple[list[dict[str, Any]], str]:
    """The entries of a page, and the URL of the next page."""
    content, following = _json(client, url)
    if not isinstance(content, list):
        raise SourceError(f"{shown(url)}: the response is not a list of files. Check HF_ENDPOINT.")
    following = urljoin(url, following) if following else ""
    if following and origin_of(following) != origin_of(client.hub):
        raise SourceError(f"{shown(url)}: its list continues at another host, {shown(following)}.")
    entries = cast("list[Any]", content)
    return [entry for entry in entries if isinstance(entry, dict)], following


def _json(client: DownloadClient, url: str) -> tuple[Any, str]:
    from urllib3.exceptions import HTTPError

    try:
        response, _ = get(client, url, {})
        content = json.loads(response.read(MAX_PAGE))
    except (HTTPError, ValueError):
        raise SourceError(f"{shown(url)}: the response is not JSON, or is incomplete.") from None
    following = _NEXT.search(response.headers.get("Link", ""))
    return content, following[1] if following else ""


def _file(entry: dict[str, Any]) -> HubFile:
    large = entry.get("lfs")
    oid: Any = cast("dict[str, Any]", large).get("oid") if isinstance(large, dict) else None
    size = entry.get("size")
    return HubFile(
        name=str(entry.get("path")),
        size=size if isinstance(size, int) else 0,
        sha256=oid if isinstance(oid, str) else None,
    )
