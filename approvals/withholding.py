"""What the audit log must not hold: secrets, and personal data beyond user names.

The last line of defence against a programmer's mistake, which in a log that forgets nothing would stay for ever. What
is withheld is replaced, so that what happened is still recorded.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

WITHHELD = "[withheld]"
# Keys in any spelling (api-key, apiKey, API_KEY), with anything before and a plural behind.
_SECRET_KEY = re.compile(
    r"(?:^|[_.\s-])(?:password|passwd|passphrase|secret|token|otp|totp|credential|authorization|cookie|session|"
    r"(?:api|private|secret|signing|access|session)[_\s-]?key|pin|recovery[_\s-]?code|backup[_\s-]?code)s?$",
    re.IGNORECASE,
)
_HUMP = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
# What is said about a secret instead of it.
_HARMLESS = frozenset({"", "set", "changed", "removed", "rotated", "none", WITHHELD})
_DIGEST = re.compile(r"digest:[0-9a-f]{16}")
_PATTERNS = (
    (re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL), WITHHELD),
    (re.compile(r"\b(rr_[a-z0-9]{8})_[A-Za-z0-9_-]{20,}"), rf"\1_{WITHHELD}"),
    (
        re.compile(r"([a-z][a-z0-9+.-]{0,30}://[^\s/:@]{0,200}):[^\s/@]+@", re.IGNORECASE),
        rf"\1:{WITHHELD}@",
    ),
    (re.compile(r"(\b(?:Bearer|Basic))\s+[A-Za-z0-9._~+/=-]{12,}"), rf"\1 {WITHHELD}"),
    (re.compile(r"((?:password|passwd|secret|token|otp)\s*[=:]\s*)[^\s,;&\"']+", re.IGNORECASE), rf"\1{WITHHELD}"),
    (
        re.compile(r"[A-Za-z0-9._%+-]{1,200}@[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)+"),
        "[address withheld]",
    ),
)
# Without one of these no pattern finds anything: most texts hold none, and six searches cost more than this look.
_SIGNS = ("@", "-----begin", "rr_", "bearer", "basic", "pass", "secret", "token", "otp")


@lru_cache(maxsize=4096)
def is_secret(key: str) -> bool:
    """Whether what is kept under this key is a secret by its name."""
    return bool(_SECRET_KEY.search(_HUMP.sub("_", key)))


def in_text(text: str) -> str:
    """`text` without passwords, tokens, private keys and email addresses that can be recognised as such."""
    folded = text.casefold()
    if any(sign in folded for sign in _SIGNS):
        for pattern, instead in _PATTERNS:
            text = pattern.sub(instead, text)
    return text


def in_values(value: Any) -> Any:
    """The same for everything within a JSON value; what stands under the name of a secret is replaced wholly."""
    match value:
        case str():
            return in_text(value)
        case dict():
            return {key: _under(key, one) for key, one in value.items()}
        case list():
            return [in_values(one) for one in value]
        case _:
            return value


def _under(key: str, value: Any) -> Any:
    if value is None or isinstance(value, bool) or not is_secret(key):
        return in_values(value)
    is_harmless = isinstance(value, str) and (value.lower() in _HARMLESS or _DIGEST.fullmatch(value))
    return value if is_harmless else WITHHELD
