"""Secrets that must be used again, unreadable to who sees only the database.

Fernet (AES-128-CBC with HMAC-SHA256) under a key that HKDF (RFC 5869) derives from SECRET_KEY. What an earlier key
concealed is read as long as SECRET_KEY_FALLBACKS names that key.
"""

from __future__ import annotations

import base64
from functools import lru_cache

from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from django.conf import settings

# What HKDF binds the key to. The word is that of the first secrets; another one would make them unreadable.
LABEL = b"runerogue: secrets of contacts"


class Unreadable(Exception):
    """It was concealed under a key that is not known any more. The message says what to do."""


def conceal(text: str) -> str:
    """`text` as it is kept; another one each time. Nothing stays nothing."""
    return _keys().encrypt(text.encode()).decode() if text else ""


def reveal(kept: str) -> str:
    """The inverse of `conceal`. Raises Unreadable."""
    try:
        return _keys().decrypt(kept.encode()).decode() if kept else ""
    except InvalidToken:
        raise Unreadable(
            "Its secret can't be read: SECRET_KEY is another one than when it was set. Set the secret again, or name "
            "the former key in SECRET_KEY_FALLBACKS."
        ) from None


def _keys() -> MultiFernet:
    return MultiFernet([_key(given) for given in (settings.SECRET_KEY, *settings.SECRET_KEY_FALLBACKS)])


@lru_cache(maxsize=8)
def _key(secret_key: str) -> Fernet:
    derived = HKDF(algorithm=SHA256(), length=32, salt=None, info=LABEL)
    return Fernet(base64.urlsafe_b64encode(derived.derive(secret_key.encode())))
