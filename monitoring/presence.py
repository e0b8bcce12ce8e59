"""How many people are at work here at the same time, without knowing who.

Sessions go into a HyperLogLog in Valkey as keyed hashes. The key is random and lives no longer than its window, so that
afterwards nobody can ask the sketch whether a session was in it; the sketch itself expires a window later.
"""

from __future__ import annotations

import hashlib
import logging
import secrets
import threading
import time
from datetime import datetime

import redis
from django.conf import settings

from approvals.limits import valkey
from monitoring import storing
from monitoring.derive import Reading
from monitoring.models import Service

log = logging.getLogger(__name__)

SHORTEST_WINDOW_SECONDS = 60
REST_SECONDS = 30.0  # without Valkey nobody is counted, and nobody waits for it with every request either


class _Seen:
    """What this process told Valkey already: a session is sent once per window."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.window = -1
        self.salt = b""
        self.hashes: set[bytes] = set()
        self.rests_until = 0.0


_seen = _Seen()


def window_seconds() -> int:
    return max(SHORTEST_WINDOW_SECONDS, int(settings.METRICS_COLLECTION_INTERVAL))


def _sketch(window: int) -> str:
    return f"runerogue:users:{window}"


def _salt_of(window: int, at: float) -> bytes:
    """The window's key, made by whichever process needs it first."""
    key = f"runerogue:users:{window}:salt"
    left_seconds = max(1, int((window + 1) * window_seconds() - at))
    with valkey().pipeline() as pipe:
        pipe.set(key, secrets.token_bytes(32), nx=True, ex=left_seconds)
        pipe.get(key)
        found = pipe.execute()[1]
    return bytes(found) if found else secrets.token_bytes(32)


def see(session_key: str, *, at: float) -> None:
    """Count the session in the window of `at` (unix seconds). Never raises for a Valkey that does not answer."""
    if time.monotonic() < _seen.rests_until:
        return
    window = int(at // window_seconds())
    try:
        with _seen.lock:
            if _seen.window != window:
                _seen.salt = _salt_of(window, at)
                _seen.window, _seen.hashes = window, set()
            mark = hashlib.blake2b(session_key.encode(), key=_seen.salt, digest_size=16).digest()
            if mark in _seen.hashes:
                return
            _seen.hashes.add(mark)
        with valkey().pipeline(transaction=False) as pipe:
            pipe.pfadd(_sketch(window), mark)
            pipe.expire(_sketch(window), 2 * window_seconds() + 60)
            pipe.execute()
    except redis.RedisError as error:
        _seen.rests_until = time.monotonic() + REST_SECONDS
        _seen.window = -1
        log.warning("Concurrent users are not counted for %.0f s: %s", REST_SECONDS, type(error).__name__)


def users(at: datetime) -> int | None:
    """How many distinct sessions were active in the last whole window before `at`, to about 1 %; None if unknown."""
    window = int(at.timestamp() // window_seconds())
    try:
        return int(valkey().pfcount(_sketch(window - 1)))
    except redis.RedisError:
        return None


def write_round(at: datetime) -> int:
    """`concurrent_users` of RuneRogue itself. Other services tell theirs by a gauge of their own."""
    own = Service.objects.active().filter(is_self=True).first()
    found = users(at)
    if own is None or found is None:
        return 0
    return storing.store([(own, Reading("concurrent_users", (), float(found)))], at=at)
