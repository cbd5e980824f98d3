"""Test of a token of another service, with the request that the service's own client uses."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

from flowloom.json_types import is_object
from flowloom.server.problems import ServiceError
from flowloom.storage.downloads.request import HUB

if TYPE_CHECKING:
    from urllib3 import BaseHTTPResponse

WANDB = "https://api.wandb.ai"
TIMEOUT_S = 15.0
MAX_RESPONSE = 2**20
"""Bytes."""
_REFUSED = (401, 403)


class ServiceUnreachable(ServiceError):
    status, code, title = 502, "service-unreachable", "The service could not be reached."


def hub_account(token: str) -> str | None:
    """The account name of `token` on the hub at HF_ENDPOINT; None if the token is not accepted.

    Raises:
        ServiceUnreachable: the hub did not respond as expected.
    """
    hub = (os.environ.get("HF_ENDPOINT") or HUB).rstrip("/")
    account = _send("GET", f"{hub}/api/whoami-v2", {"authorization": f"Bearer {token}"})
    return None if account is None else _name(hub, account, "name")


def wandb_account(key: str) -> str | None:
    """The same for Weights & Biases at WANDB_BASE_URL."""
    from urllib3 import make_headers

    wandb = (os.environ.get("WANDB_BASE_URL") or WANDB).rstrip("/")
    headers = make_headers(basic_auth=f"api:{key}")
    answer = _send("POST", f"{wandb}/graphql", headers, {"query": "query { viewer { username } }"})
    data = answer.get("data") if answer else None
    # For an unknown key, it returns no viewer.
    viewer = data.get("viewer") if is_object(data) else data
    return None if viewer is None else _name(wandb, viewer, "username")


def _send(method: str, url: str, headers: dict[str, str], content: Any = None) -> dict[str, Any] | None:
    """The JSON object of the response; None if access is denied."""
    from urllib3 import exceptions, request

    try:
        # No redirects: the token is for this host alone.
        response: BaseHTTPResponse = request(
            method,
            url,
            headers=headers,
            json=content,
            timeout=TIMEOUT_S,
            retries=False,
            redirect=False,
            preload_content=False,
        )
        body = response.read(MAX_RESPONSE)
    except (exceptions.HTTPError, OSError, ValueError):
        raise ServiceUnreachable(f"{url} does not respond.", "Check the network, then try again.") from None
    if response.status in _REFUSED:
        return None
    try:
        answer = json.loads(body)
    except ValueError:
        answer = None
    if response.status != 200 or not is_object(answer):
        hint = "Try again later, or check HF_ENDPOINT and WANDB_BASE_URL, if they are set."
        raise ServiceUnreachable(f"{url}: unexpected response with status {response.status}.", hint)
    return answer


def _name(service: str, found: Any, key: str) -> str:
    name = found.get(key) if is_object(found) else None
    if not isinstance(name, str):
        raise ServiceUnreachable(f"{service}: the response names no account.", "Check the service's address.")
    return name
