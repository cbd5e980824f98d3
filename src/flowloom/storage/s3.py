"""Amazon S3 and compatible stores: `s3://bucket/prefix`."""

from __future__ import annotations

import configparser
import os
import re
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowloom.errors import Denied
from flowloom.storage.base import OnState, StorageSection
from flowloom.storage.egress import Egress, open_egress
from flowloom.storage.objects import Objects, client_options, connect_s, open_objects
from flowloom.storage.ssrf import Allowed

if TYPE_CHECKING:
    from obstore.store import S3Credential

_AMAZON = re.compile(r"https://([a-z0-9-]+\.)+amazonaws\.com(\.cn)?/?", re.IGNORECASE)
KEYS_GOOD_FOR = timedelta(minutes=10)
"""Time until the file of a profile is read again, because another program may renew its keys."""


def open_store(url: str, storage: StorageSection, on_state: OnState) -> Objects:
    """The bucket of `url`, with keys from `storage.profile`, the environment, AWS_PROFILE or `default`.

    Raises:
        Denied: the profile has no keys.
        SourceError: the URL has no bucket.
    """
    from obstore.store import S3Store

    name = _profile_name(storage)
    profile = read_profile(name) if name else {}
    endpoint = _endpoint(storage) or profile.get("endpoint_url")
    given: dict[str, Any] = {
        "region": storage.region
        or os.environ.get("AWS_REGION")
        or os.environ.get("AWS_DEFAULT_REGION")
        or profile.get("region", "us-east-1"),
        "virtual_hosted_style_request": storage.addressing == "virtual",
        "skip_signature": storage.anonymous,
    }
    if endpoint:
        given["endpoint"] = endpoint
    if name and "aws_access_key_id" in profile:
        given["credential_provider"] = lambda: credential(name)
    elif storage.profile and not storage.anonymous:
        raise _without_keys(storage.profile)
    egress = None if endpoint is None or _is_amazons(endpoint) else _egress(endpoint, storage)
    make = partial(S3Store, client_options=client_options(storage, endpoint, egress), **given)
    return open_objects(url, storage, on_state, make, egress)


def _is_amazons(endpoint: str) -> bool:
    """True if Amazon itself responds: its certificate proves it, and its redirects stay within Amazon."""
    return bool(_AMAZON.fullmatch(endpoint))


def _egress(endpoint: str, storage: StorageSection) -> Egress:
    return open_egress(endpoint, Allowed.for_stores().and_given(endpoint), connect_s(storage))


def _endpoint(storage: StorageSection) -> str | None:
    return storage.endpoint or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")


def _profile_name(storage: StorageSection) -> str | None:
    """Name of the profile; None if the keys are from the environment, or if there are none."""
    if storage.anonymous:
        return None
    if storage.profile:
        return storage.profile
    if os.environ.get("AWS_ACCESS_KEY_ID"):
        return None
    return os.environ.get("AWS_PROFILE") or "default"


def read_profile(name: str) -> dict[str, str]:
    """Settings of a profile in ~/.aws/credentials and ~/.aws/config, or the files in AWS's variables."""
    settings: dict[str, str] = {}
    files = (
        ("AWS_CONFIG_FILE", "~/.aws/config", name if name == "default" else f"profile {name}"),
        ("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials", name),
    )
    for variable, default, section in files:
        parser = configparser.RawConfigParser()
        path = Path(os.environ.get(variable) or default).expanduser()
        try:
            parser.read(path, encoding="utf-8")
        except (configparser.Error, UnicodeDecodeError):
            # The parser's message would quote the file.
            raise Denied(f"{path}: not an AWS profile file. Write it with 'aws configure'.") from None
        if parser.has_section(section):
            settings |= dict(parser.items(section))
    return settings


def credential(name: str) -> S3Credential:
    """The keys of a profile, read again.

    Raises:
        Denied: it has no keys.
    """
    profile = read_profile(name)
    try:
        return {
            "access_key_id": profile["aws_access_key_id"],
            "secret_access_key": profile["aws_secret_access_key"],
            "token": profile.get("aws_session_token"),
            "expires_at": datetime.now(UTC) + KEYS_GOOD_FOR,
        }
    except KeyError:
        raise _without_keys(name) from None


def _without_keys(name: str) -> Denied:
    return Denied(
        f"AWS profile {name!r} has no aws_access_key_id and aws_secret_access_key. For single sign-on, run "
        f"'aws configure export-credentials --profile {name} --format env' and put its lines into the shell."
    )
