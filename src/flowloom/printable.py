"""Remove credentials from everything that is printed: errors, logs, events, reports, responses and trackers.

Credentials never appear in them: no user or password of an address, no query of a web address (which is where
presigned ones keep their signatures), no token of a known form, no value of a key that is named for a secret.
"""

from __future__ import annotations

import re
from typing import Any

from flowloom.json_types import is_mapping, is_sequence

HIDDEN = "[hidden]"
_SECRET_WORDS = (
    "sig|signature|token|access_token|id_token|refresh_token|authorization|secret|password|passwd|pwd|"
    "api_?key|access_?key|access_?key_?id|account_?key|secret_?key|secret_?access_?key|credential|jwt|"
    r"x-(?:amz|goog)-(?:signature|credential|security-token)|awsaccesskeyid|googleaccessid|key-pair-id"
)
_ADDRESS = re.compile(r"""(?<![A-Za-z0-9+.-])[A-Za-z][A-Za-z0-9+.-]*://[^\s"'`<>\\{}|^]+""")
_USER = re.compile(
    # Up to the last @ before the path; or, where the password has a slash in it, up to the first @ behind it.
    # A port is no password: https://host:8080/a@b.png stays.
    r"""(://)(?:[^\s/"'\\?#]*@"""
    r"""|[^\s/@:"'\\\[]*:(?!\d{1,5}(?:[/\s"',;)?#]|$))[^\s"'\\@][^"'\\\n@]*@(?:[^\s/@"'\\]*@)*)"""
)
_CUT_OFF = re.compile(r"""(://[^\s/@:"'\\\[]*:)(?!\d{1,5}(?:\D|$))[^\s/"',;)\\]+""")
"""A password whose address was cut off before its @. An address of IPv6, in brackets, is none."""
_PARAMETER = re.compile(
    rf"""(?i)(?<![\w-])(?:({_SECRET_WORDS})=(?!\[)[^\s&;"'\\<>,]+|(key|auth|policy)=(?!\[)[^\s&;"'\\<>,]{{6,}})"""
)
_TOKEN = re.compile(
    r"\bhf_[A-Za-z0-9]{8,}|\b(?:AKIA|ASIA)[0-9A-Z]{16}\b|\bgh[opsur]_[A-Za-z0-9]{20,}|\bsk-[A-Za-z0-9_-]{20,}"
    r"|\beyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]*|(?<=Bearer )[\w.~+/=-]{8,}"
)
_SECRET_KEY = re.compile(
    r"(?i)(?:^|[._-])(?:token|secret|password|passwd|pwd|credentials?|authorization|auth|key|apikey|"
    r"(?:hf|api|auth|access|huggingface|wandb|hub|bearer)_?(?:tokens?|keys?)|access_key_id)$"
)
_SIGNS = ("://", "=", "_", "AK", "AS", "sk-", "eyJ", "Bearer ")
"""A text without any of these has nothing to hide."""


def printable(text: str) -> str:
    """`text` with every credential that it shows replaced by `[hidden]`."""
    if not any(sign in text for sign in _SIGNS):
        return text
    if "://" in text:
        text = _CUT_OFF.sub(rf"\1{HIDDEN}", _USER.sub(r"\1", text))
        text = _ADDRESS.sub(lambda found: _without_query(found[0]), text)
    return _TOKEN.sub(HIDDEN, _PARAMETER.sub(lambda found: f"{found[1] or found[2]}={HIDDEN}", text))


def _without_query(address: str) -> str:
    """An address as it may be printed; the marks that end a sentence stay."""
    if address[:4].lower() != "http":
        return address
    end = len(address.rstrip(".,:;!?)]"))
    head, mark, _ = address[:end].partition("?")
    head, sharp, _ = head.partition("#")
    return f"{head}{address[end:]}" if mark or sharp else address


def is_secret(key: str) -> bool:
    """True if a value under `key`, a name or a dotted path, is a credential by its name."""
    return bool(_SECRET_KEY.search(key))


def printable_value(key: str, value: Any) -> Any:
    """`value` of the key `key` as it may be printed: all texts in it, and nothing of a secret."""
    if is_mapping(value):
        return {name: printable_value(str(name), inner) for name, inner in value.items()}
    if is_sequence(value):
        return [printable_value(key, inner) for inner in value]
    if isinstance(value, str):
        return HIDDEN if value and is_secret(key) else printable(value)
    return value
