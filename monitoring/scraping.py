"""Where raw numbers come from: the `MetricSource` seam, its HTTP scraper, and its twin in memory."""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

import httpx

from monitoring import dialects, outbound
from monitoring.addresses import Approved
from monitoring.credentials import NOBODY, Access
from monitoring.prometheus import LARGEST_BYTES, Clock, Keep, NotPrometheus, Snapshot, parse


class ScrapeFailed(Exception):
    """A target gave no usable numbers; the message is what a person reads beside it."""


class TooLarge(ScrapeFailed):
    """It answered with more than is read."""


class MetricSource(Protocol):
    """Gives the raw numbers of an address. Safe to call from several threads at once."""

    def read(self, url: str, *, at: float, timeout_seconds: float | None = None, keep: Keep | None = None) -> Snapshot:
        """What `url` shows, of which `keep` says what is kept. Raises ScrapeFailed.

        It is asked at `at` (unix seconds); the snapshot has the time of the answer.
        """
        ...


def open_client(timeout_seconds: float, approved: Approved | None = None) -> httpx.Client:
    """The client for all that is measured: approved hosts only (by default the database's)."""
    return outbound.open_client(
        timeout_seconds=timeout_seconds,
        approved=approved,
        headers={"accept": "text/plain;version=0.0.4, application/openmetrics-text;version=1.0.0;q=0.5"},
    )


@functools.cache
def _boot() -> str:
    """What tells one run of this machine from another; empty where there is nothing that does."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def clock() -> Clock | None:
    """The time by a clock that nobody sets: it is the same for all processes of a machine until it boots again."""
    return Clock(_boot(), time.monotonic()) if _boot() else None


def fetch(
    client: httpx.Client,
    url: str,
    *,
    timeout_seconds: float,
    params: Mapping[str, str] | None = None,
    access: Access = NOBODY,
) -> tuple[httpx.Response, bytes, float]:
    """An answer (whatever its status), its body, and after how many seconds it began. Raises ScrapeFailed.

    It is bounded in size and time, however slowly it drips.
    """
    if not url.startswith(("http://", "https://")):
        raise ScrapeFailed(f"{url} is not an http or https address.")
    began = time.monotonic()
    deadline = began + timeout_seconds
    try:
        headers = dict(access.headers)
        with client.stream("GET", url, params=params, headers=headers, timeout=timeout_seconds) as response:
            answered = time.monotonic() - began
            if response.headers.get("content-encoding", "identity") != "identity":
                raise ScrapeFailed("It answered compressed although plain text was asked for.")
            body = bytearray()
            for chunk in response.iter_raw():
                body += chunk
                if len(body) > LARGEST_BYTES:
                    raise TooLarge(f"The metrics are larger than {LARGEST_BYTES // 1024 // 1024} MB.")
                # The client's timeout is per read; a body that drips must end too.
                if time.monotonic() > deadline:
                    raise ScrapeFailed(f"The metrics took longer than {timeout_seconds:g} s.")
    except httpx.TimeoutException as error:
        raise ScrapeFailed(f"It did not answer within {timeout_seconds:g} s.") from error
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        words = str(error).rstrip(".")[:400] or type(error).__name__
        raise ScrapeFailed(f"It can't be reached: {words}.") from error
    except RuntimeError as error:  # the client was closed because the round is over
        raise ScrapeFailed(f"It did not answer within {timeout_seconds:g} s.") from error
    if response.status_code in (401, 403):
        # Without its words: it may repeat what it was sent.
        what = "It refuses the credentials" if access.secrets else "It wants credentials"
        setting = "metrics.bearer_token_env, or username and password_env"
        raise ScrapeFailed(f"{what} (status {response.status_code}). See {setting}, in the manifest.")
    return response, bytes(body), answered


class Scraper:
    """Reads Prometheus text over HTTP from approved hosts (by default the database's), bounded in time and size."""

    def __init__(self, *, timeout_seconds: float = 5.0, approved: Approved | None = None) -> None:
        self.timeout_seconds = timeout_seconds
        self.client = open_client(timeout_seconds, approved)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.client.close()

    def read(
        self,
        url: str,
        *,
        at: float,
        timeout_seconds: float | None = None,
        keep: Keep | None = None,
        access: Access = NOBODY,
    ) -> Snapshot:
        asked = clock()
        response, body, answered = fetch(
            self.client, url, timeout_seconds=timeout_seconds or self.timeout_seconds, access=access
        )
        if response.status_code != 200:
            raise ScrapeFailed(f"It answered with status {response.status_code}.")
        openmetrics = "openmetrics" in response.headers.get("content-type", "")
        snapshot = understand(body.decode(errors="replace"), at=at + answered, openmetrics=openmetrics, keep=keep)
        return replace(snapshot, clock=asked and replace(asked, seconds=asked.seconds + answered))


# One at a time: a hundred threads that parse would keep the interpreter from those that still read, whose time limits
# would be over while their answers are there.
_parsing = threading.Lock()


def understand(text: str, *, at: float, openmetrics: bool = False, keep: Keep | None = None) -> Snapshot:
    """The part of an exposition that signals are made of. Raises ScrapeFailed."""
    try:
        with _parsing:
            return parse(text, at=at, openmetrics=openmetrics, keep=keep or dialects.allowlist(None))
    except NotPrometheus as error:
        raise ScrapeFailed(str(error)) from error


@dataclass
class MemorySource:
    """The twin without a network: `texts` holds what each address answers; any other address can't be reached."""

    texts: Mapping[str, str] = field(default_factory=dict)

    def read(self, url: str, *, at: float, timeout_seconds: float | None = None, keep: Keep | None = None) -> Snapshot:
        if url not in self.texts:
            raise ScrapeFailed("It can't be reached: nothing listens there.")
        return understand(self.texts[url], at=at, keep=keep)
