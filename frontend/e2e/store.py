"""A real object store for the tests in a browser: `python store.py PICTURE`, from the repository's root.

Puts the picture and its caption into it, says where it listens as one line of JSON, and ends with its input.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from obstore.store import S3Store

from tests.fakes.seaweed import running_seaweed


def main(picture: Path) -> None:
    """What the module's docstring says."""
    with (
        tempfile.TemporaryDirectory(prefix="seaweed-", ignore_cleanup_errors=True) as folder,
        running_seaweed(Path(folder)) as seaweed,
    ):
        keys = {"access_key_id": seaweed.key, "secret_access_key": seaweed.secret}
        told = {"region": "us-east-1", "endpoint": seaweed.endpoint}
        store = S3Store(seaweed.bucket, client_options={"allow_http": True}, **keys, **told)
        store.put("fox/0.png", picture.read_bytes())
        store.put("fox/0.txt", b"a fox in the bucket")
        sys.stdout.write(json.dumps(keys | told | {"url": f"s3://{seaweed.bucket}/fox"}) + "\n")
        sys.stdout.flush()
        sys.stdin.read()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
