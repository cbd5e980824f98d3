"""Lists the folders of a web server from its own index pages."""

from __future__ import annotations

import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

from flowloom.datasets.build.items import JUNK
from flowloom.datasets.build.sizes import LONGEST_HEAD
from flowloom.datasets.build.stores import Store
from flowloom.errors import DataError

MOST_PAGES = 100_000


@dataclass(frozen=True, slots=True)
class Link:
    """What a page names: its size and time are not known before it is asked for."""

    name: str
    size: int = LONGEST_HEAD
    etag: str | None = "by address"
    modified: None = None


class IndexPages:
    """What `store` serves below `url`, by the pages that Apache, nginx and Python's own server make."""

    def __init__(self, url: str, store: Store):
        self.url = f"{url.rstrip('/')}/"
        self._store = store

    def read(self, name: str) -> bytes:
        """All bytes of `name`."""
        return self._store.read(urllib.parse.quote(name))

    def read_range(self, name: str, start: int, length: int) -> bytes:
        """Some bytes of `name`."""
        return self._store.read_range(urllib.parse.quote(name), start, length)

    def write(self, name: str, content: bytes | Path) -> None:  # noqa: ARG002
        """Never: web servers are read.

        Raises:
            DataError: always.
        """
        raise DataError(
            f"{self.url}{name}: web servers cannot be written to. Upload to s3://, gs:// or az://."
        )

    def list(self, prefix: str) -> Iterator[Link]:
        """Every file that the pages lead to, folder after folder, never out of `url`.

        Raises:
            DataError: the server has no such pages.
        """
        waiting, seen = [prefix], {prefix}
        while waiting:
            folder = waiting.pop()
            if len(seen) > MOST_PAGES:
                raise DataError(f"{self.url}: more than {MOST_PAGES:,} folders; do its links go in circles?")
            for name in self._links(folder):
                if name in seen:
                    continue
                seen.add(name)
                if not name.endswith("/"):
                    yield Link(name)
                elif name.rstrip("/").rpartition("/")[2].lower() not in JUNK:
                    waiting.append(name)

    def _links(self, folder: str) -> Iterator[str]:
        """Names of the files and, with a slash, folders that the page of `folder` leads to."""
        page = self._store.read(urllib.parse.quote(folder))
        parser = _Hrefs()
        parser.feed(page.decode("utf-8", "replace"))
        if not parser.is_page:
            raise DataError(f"{self.url}{folder}: the server gives no page of links for it.")
        base = self.url + urllib.parse.quote(folder)
        for href in parser.hrefs:
            address, _, _ = urllib.parse.urljoin(base, href).partition("#")
            # Pages link to themselves in other orders: `?C=N;O=D`.
            if "?" not in address and address.startswith(base) and address != base:
                yield urllib.parse.unquote(address.removeprefix(self.url))


class _Hrefs(HTMLParser):
    """The addresses that a page links to."""

    def __init__(self) -> None:
        super().__init__()
        self.hrefs: list[str] = []
        self.is_page = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.is_page = self.is_page or tag in ("html", "a", "ul", "pre", "body")
        if tag == "a":
            self.hrefs += [value for name, value in attrs if name == "href" and value]
