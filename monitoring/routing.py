"""Which alerts are kept quiet by what, who is told of the others, and when: arithmetic on alerts, windows and steps."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from fnmatch import fnmatchcase
from types import MappingProxyType

# More services than this at once are one trouble, and one message about it.
MOST_GROUPS = 3
# 10 s, 20 s, … 15 min: about an hour and twenty minutes in all, which outlasts a restart and a certificate's renewal.
FIRST_RETRY_SECONDS = 10.0
LONGEST_RETRY_SECONDS = 900.0
MOST_ATTEMPTS = 12


class Kind(StrEnum):
    FIRING = "firing"
    RESOLVED = "resolved"
    PAGE = "page"  # from another part of the product, about something that is no rule's alert
    TEST = "test"


class Outbox(StrEnum):
    WAITING = "waiting"
    SENT = "sent"
    DEAD = "dead"  # given up; a person may try again
    CALLED_OFF = "called off"


@dataclass(frozen=True)
class Raised:
    """An alert as far as telling people is concerned. `is_own`: of RuneRogue itself."""

    id: int
    service_id: int
    name: str
    severity: str
    signal: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    is_firing: bool = True
    is_own: bool = False
    is_acknowledged: bool = False
    audible_since: datetime | None = None  # since when it fires and nothing keeps it quiet


@dataclass(frozen=True)
class Quiet:
    """A silence or maintenance window that is open. An empty field covers everything; labels are those it must have."""

    words: str
    service_id: int | None = None
    rule: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)

    def covers(self, alert: Raised) -> bool:
        return (
            self.service_id in (None, alert.service_id)
            and self.rule in ("", alert.name)
            and all(alert.labels.get(name) == value for name, value in self.labels.items())
        )


@dataclass(frozen=True)
class Inhibition:
    """While an alert named like `sources` fires, those named like `names` or on a signal like `signals` are not told.

    It reaches the alerts of its own service; `everywhere`, only from RuneRogue itself, those of every service.
    `same_labels`: only those of the same series. `source_labels`: the source has one of these values.
    """

    sources: tuple[str, ...]
    because: str
    names: tuple[str, ...] = ()
    signals: tuple[str, ...] = ()
    source_labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    everywhere: bool = False
    same_labels: bool = False

    def reaches(self, source: Raised, target: Raised) -> bool:
        if source.id == target.id or not source.is_firing or not _like(source.name, self.sources):
            return False
        if any(source.labels.get(name) not in values for name, values in self.source_labels.items()):
            return False
        if _like(target.name, self.sources):
            return False  # two of a kind would silence each other, and nobody would hear of either
        if self.everywhere:
            if not source.is_own:
                return False
        elif source.service_id != target.service_id:
            return False
        if self.same_labels and dict(source.labels) != dict(target.labels):
            return False
        return _like(target.name, self.names) or _like(target.signal, self.signals)


# The causes on the left are told; what follows from them is not. A rule that an operator adds takes part by its signal.
MEASURED = (
    "latency_*", "error_ratio", "requests_*", "apdex", "slow_ratio", "queries_per_request", "repeats_per_request",
    "database_share", "dependency_*", "concurrent_users", "cpu_percent", "memory_bytes", "threads", "open_fds",
)  # fmt: skip
BLIND = ("not-measured", "absent")
INHIBITIONS: tuple[Inhibition, ...] = (
    Inhibition(
        ("program-silent",),
        "RuneRogue's own collector or clock stands still, so that others are silent says nothing about them",
        source_labels={"program": ("collector", "beat", "rounds of the collector")},
        names=(*BLIND, "traffic-silent"),
        everywhere=True,
    ),
    Inhibition(
        BLIND,
        "its metrics can't be read, so its numbers are those of before",
        names=("traffic-silent", "latency-*", "error-*", "errors-*"),  # by name as well: a deleted rule has no signal
        signals=MEASURED,
    ),
    Inhibition(
        ("error-ratio", "error-budget-fast"),
        "requests fail at once or above the limit, and that is told",
        names=("errors-unusual", "error-budget-slow"),
        same_labels=True,
    ),
    Inhibition(
        ("latency-slow", "latency-budget-fast"),
        "it is over a fixed limit as well, and that is told",
        names=("latency-unusual", "latency-deviates", "latency-tail-deviates", "latency-budget-slow"),
        same_labels=True,
    ),
    Inhibition(
        ("latency-unusual",),
        "it is several times the usual, and that is told",
        names=("latency-deviates", "latency-tail-deviates"),
        same_labels=True,
    ),
    Inhibition(("disk-filling",), "the disk is nearly full already", names=("disk-full-soon",)),
)


def suppressed(
    alerts: Sequence[Raised],
    quiets: Sequence[Quiet],
    *,
    serving: Mapping[int, Set[str]] = MappingProxyType({}),
    table: Sequence[Inhibition] = INHIBITIONS,
) -> dict[int, str]:
    """Alert id → in words, what keeps it quiet. An alert that is not in it may be told.

    `serving`: by service, the releases that users get answers from. What one of several suffers explains nothing of
    the others.
    """
    found = {}
    for alert in alerts:
        if not alert.is_firing:
            continue
        quiet = next((quiet for quiet in quiets if quiet.covers(alert)), None)
        if quiet is not None:
            found[alert.id] = quiet.words
            continue
        for inhibition in table:
            sources = [one for one in alerts if inhibition.reaches(one, alert)]
            source = next((one for one in sources if _explains(one, alert, sources, serving)), None)
            if source is not None:
                found[alert.id] = f"Inhibited by {source.name}: {inhibition.because}."
                break
    return found


def _explains(source: Raised, target: Raised, sources: Sequence[Raised], serving: Mapping[int, Set[str]]) -> bool:
    """Whether what is said of the source's release holds for all that the target is about."""
    release = source.labels.get("release")
    if release is None or release == target.labels.get("release"):
        return True
    others = serving.get(source.service_id, frozenset())
    return others <= {one.labels.get("release") for one in sources}


@dataclass(frozen=True)
class Step:
    """One contact, told after so many minutes without an acknowledgement. `repeat_minutes` 0 means once."""

    contact_id: int
    after_minutes: float = 0.0
    repeat_minutes: float = 0.0
    critical_only: bool = False


@dataclass(frozen=True)
class Told:
    """A notice about one alert to one contact that was decided on before."""

    contact_id: int
    kind: Kind
    number: int
    at: datetime
    state: Outbox


@dataclass(frozen=True, order=True)
class Due:
    """Tell this contact of this alert; `number` counts how often it was told of this kind."""

    alert_id: int
    contact_id: int
    kind: Kind
    number: int


def due(alert: Raised, steps: Sequence[Step], told: Sequence[Told], *, at: datetime) -> list[Due]:
    """Who has to be told of `alert` at `at`. An alert that is kept quiet has no `audible_since`, and nobody is told."""
    if not alert.is_firing:
        return _due_resolved(alert, told)
    if alert.audible_since is None or alert.is_acknowledged:
        return []
    firing = [one for one in told if one.kind is Kind.FIRING]
    last = {one.contact_id: one for one in sorted(firing, key=lambda one: one.number)}
    steps = sorted((s for s in steps if not s.critical_only or alert.severity == "critical"), key=_in_order)
    found = []
    for step in steps:
        before = last.get(step.contact_id)
        if before is None:
            waited = at - alert.audible_since >= timedelta(minutes=step.after_minutes)
            earlier = [last.get(s.contact_id) for s in steps if s.after_minutes < step.after_minutes]
            # Nobody of the earlier steps can be reached: waiting for their acknowledgement is of no use.
            unheard = bool(earlier) and all(one is not None and one.state is Outbox.DEAD for one in earlier)
            if waited or unheard:
                found.append(Due(alert.id, step.contact_id, Kind.FIRING, 1))
        elif before.state is Outbox.WAITING:
            continue  # the last message has not reached them yet: another one would only queue behind it
        elif step.repeat_minutes and at - before.at >= timedelta(minutes=step.repeat_minutes):
            found.append(Due(alert.id, step.contact_id, Kind.FIRING, before.number + 1))
    return found


def _due_resolved(alert: Raised, told: Sequence[Told]) -> list[Due]:
    """Everyone who was told, or is about to be; not those whom no message ever reached."""
    reached = {one.contact_id for one in told if one.kind is Kind.FIRING and one.state in (Outbox.SENT, Outbox.WAITING)}
    done = {one.contact_id for one in told if one.kind is Kind.RESOLVED}
    return [Due(alert.id, contact, Kind.RESOLVED, 1) for contact in sorted(reached - done)]


def _in_order(step: Step) -> tuple[float, int]:
    return step.after_minutes, step.contact_id


@dataclass(frozen=True)
class Group:
    """What one contact is told in one message. Without a service it is about several."""

    contact_id: int
    kind: Kind
    service_id: int | None
    dues: tuple[Due, ...]

    @property
    def key(self) -> str:
        """The same for the same news, whoever works it out: receivers can drop a double by it."""
        text = "/".join(f"{one.alert_id}.{one.number}" for one in self.dues)
        return f"{self.kind}-{self.contact_id}-{hashlib.sha256(text.encode()).hexdigest()[:24]}"


def grouped(dues: Iterable[Due], service_of: Mapping[int, int]) -> list[Group]:
    """One group per contact, kind and service; one for all services when there are many. `service_of`: by alert."""
    by_contact: dict[tuple[int, Kind], dict[int, list[Due]]] = defaultdict(lambda: defaultdict(list))
    for one in sorted(dues):
        by_contact[one.contact_id, one.kind][service_of[one.alert_id]].append(one)
    found = []
    for (contact, kind), services in by_contact.items():
        if len(services) > MOST_GROUPS:
            everything = tuple(sorted(one for several in services.values() for one in several))
            found.append(Group(contact, kind, None, everything))
        else:
            found += [Group(contact, kind, service, tuple(several)) for service, several in services.items()]
    return found


def retry_after_seconds(attempts: int) -> float | None:
    """How long to wait after the attempt number `attempts` failed; None when it is given up."""
    if attempts >= MOST_ATTEMPTS:
        return None
    return float(min(FIRST_RETRY_SECONDS * 2.0 ** (attempts - 1), LONGEST_RETRY_SECONDS))


def _like(text: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(text, pattern) for pattern in patterns)
