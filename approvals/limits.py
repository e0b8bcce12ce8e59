"""How often something may be asked for: one counter per minute in Valkey, shared by all web processes."""

from __future__ import annotations

import functools
import logging
import time

import redis
from django.conf import settings

log = logging.getLogger(__name__)

TIMEOUT_SECONDS = 1.0  # what a request waits for Valkey at most


@functools.lru_cache(maxsize=4)
def _connected(url: str) -> redis.Redis:
    return redis.Redis.from_url(url, socket_timeout=TIMEOUT_SECONDS, socket_connect_timeout=TIMEOUT_SECONDS)


def valkey() -> redis.Redis:
    """The client of this process for short-lived numbers; its pool is shared by the threads."""
    return _connected(settings.REDIS_URL)


def seconds_to_wait(what: str, *, per_minute: int, at: float | None = None) -> int:
    """Count one use of `what`. 0 when it may go on, else the seconds until it may be tried again.

    `at` are unix seconds. Without Valkey nothing is limited: a limit must not be what takes the API down.
    """
    moment = time.time() if at is None else at
    minute = int(moment // 60)
    key = f"runerogue:uses:{what}:{minute}"
    try:
        with valkey().pipeline(transaction=False) as pipe:
            pipe.incr(key)
            pipe.expire(key, 120)
            used = int(pipe.execute()[0])
    except redis.RedisError as error:
        log.warning("Uses of %s can't be counted: %s", what, type(error).__name__)
        return 0
    return 0 if used <= per_minute else max(1, 60 * (minute + 1) - int(moment))
