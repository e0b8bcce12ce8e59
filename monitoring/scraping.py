"""Where raw numbers come from: the `MetricSource` seam, its HTTP scraper, and its twin in memory."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Protocol, Self

import httpx

from monitoring import derive, outbound
from monitoring.addresses import Approved
from monitoring.prometheus import LARGEST_BYTES, NotPrometheus, Snapshot, parse


class ScrapeFailed(Exception):
    """A target gave no usable numbers; the message is what a person reads beside it."""


class MetricSource(Protocol):
    """Gives the raw numbers of an address. Safe to call from several threads at once."""

    def read(self, url: str, *, at: float) -> Snapshot:
        """The snapshot of `url`, dated `at` (unix seconds). Raises ScrapeFailed."""
        ...


class Scraper:
    """Reads Prometheus text over HTTP from approved hosts (by default the database's), bounded in time and size."""

    def __init__(self, *, timeout_seconds: float = 5.0, approved: Approved | None = None) -> None:
        self.timeout_seconds = timeout_seconds
        self.client = outbound.open_client(
            timeout_seconds=timeout_seconds,
            approved=approved,
            headers={"accept": "text/plain;version=0.0.4, application/openmetrics-text;version=1.0.0;q=0.5"},
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.client.close()

    def read(self, url: str, *, at: float) -> Snapshot:
        if not url.startswith(("http://", "https://")):
            raise ScrapeFailed(f"{url} is not an http or https address.")
        deadline = time.monotonic() + self.timeout_seconds
        try:
            with self.client.stream("GET", url) as response:
                if response.status_code != 200:
                    raise ScrapeFailed(f"It answered with status {response.status_code}.")
                body = bytearray()
                for chunk in response.iter_raw():
                    body += chunk
                    if len(body) > LARGEST_BYTES:
                        raise ScrapeFailed(f"The metrics are larger than {LARGEST_BYTES // 1024 // 1024} MB.")
                    # The client's timeout is per read; a body that drips must end too.
                    if time.monotonic() > deadline:
                        raise ScrapeFailed(f"The metrics took longer than {self.timeout_seconds:g} s.")
                kind = response.headers.get("content-type", "")
        except httpx.TimeoutException as error:
            raise ScrapeFailed(f"It did not answer within {self.timeout_seconds:g} s.") from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            words = str(error).rstrip(".")[:400] or type(error).__name__
            raise ScrapeFailed(f"It can't be reached: {words}.") from error
        return understand(body.decode(errors="replace"), at=at, openmetrics="openmetrics" in kind)


def understand(text: str, *, at: float, openmetrics: bool = False) -> Snapshot:
    """The part of an exposition that signals are made of. Raises ScrapeFailed."""
    try:
        return parse(text, at=at, openmetrics=openmetrics, wanted=derive.wanted)
    except NotPrometheus as error:
        raise ScrapeFailed(str(error)) from error


@dataclass
class MemorySource:
    """The twin without a network: `texts` holds what each address answers; any other address can't be reached."""

    texts: Mapping[str, str] = field(default_factory=dict)

    def read(self, url: str, *, at: float) -> Snapshot:
        if url not in self.texts:
            raise ScrapeFailed("It can't be reached: nothing listens there.")
        return understand(self.texts[url], at=at)
