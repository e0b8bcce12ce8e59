"""Where raw numbers come from: the `MetricSource` seam, its HTTP scraper, and its twin in memory."""

from __future__ import annotations

import functools
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Protocol, Self

import httpx
from django.conf import settings

from monitoring import derive, outbound
from monitoring.addresses import Approved
from monitoring.privacy import pseudonym, safe_label
from monitoring.prometheus import LARGEST_BYTES, Labels, NotPrometheus, Snapshot, parse


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
        return without_people(parse(text, at=at, openmetrics=openmetrics, wanted=derive.wanted))
    except NotPrometheus as error:
        raise ScrapeFailed(str(error)) from error


def without_people(snapshot: Snapshot) -> Snapshot:
    """The same numbers under labels that may be stored.

    A series whose labels had to change gets a keyed hash of what they were: two people's series must stay two, or the
    restart of one would look like that of both.
    """
    values: dict[str, dict[Labels, float]] = {}
    for name, series in snapshot.values.items():
        values[name] = {_kept(labels): value for labels, value in series.items()}
    return replace(snapshot, values=values)


def _safe(label: str, value: str) -> str:
    if label in derive.STATUSES:
        return value if value.isdecimal() and len(value) == 3 else "other"
    if label in derive.METHOD_LABELS:
        return value if value in derive.METHODS else "other"
    return value if label in ("le", "pid", "created") else safe_label(value)


@functools.lru_cache(maxsize=50_000)
def _kept(labels: Labels) -> Labels:
    known = dict(labels)
    kept = {key: _safe(key, value) for key, value in known.items() if key in derive.LABELS}
    if kept == known:
        return labels
    # Without the bucket's bound, which is no part of what tells histograms apart.
    whole = "\0".join(f"{key}\1{value}" for key, value in labels if key != "le")
    return tuple(sorted({**kept, "series": pseudonym(whole, key=settings.SECRET_KEY)}.items()))


@dataclass
class MemorySource:
    """The twin without a network: `texts` holds what each address answers; any other address can't be reached."""

    texts: Mapping[str, str] = field(default_factory=dict)

    def read(self, url: str, *, at: float) -> Snapshot:
        if url not in self.texts:
            raise ScrapeFailed("It can't be reached: nothing listens there.")
        return understand(self.texts[url], at=at)
