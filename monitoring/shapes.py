"""What the plain JSON endpoints answer, for the OpenAPI document. `reporting` fills them; a test compares the two."""

from __future__ import annotations

from typing import Literal

from approvals.describing import Parameter, Shape

SERVICE = Parameter("service", "The service's name; RuneRogue itself without it.")
SERVICE_OR_ALL = Parameter("service", "The service's name, `*` for all; RuneRogue itself without it.")
HOURS = Parameter("hours", "How far back.", {"type": "number", "exclusiveMinimum": 0, "maximum": 720, "default": 24})


class Live(Shape):
    status: Literal["live"]


class Ready(Shape):
    status: Literal["ready"]
    checks: dict[str, float]  # milliseconds that each dependency took to answer


class Driver(Shape):
    what: str
    points: float


class ComponentScore(Shape):
    score: float | None
    status: str
    message: str
    confidence: float
    drivers: list[Driver]


class FiringAlert(Shape):
    id: int
    service: str
    name: str
    severity: str
    state: str
    labels: dict[str, str]
    value: float | None
    message: str
    since: str


class Score(Shape):
    service: str
    overall_score: float | None
    status: str
    trend: str
    confidence: float
    components: dict[str, ComponentScore]
    alerts: list[FiringAlert]
    last_updated: str | None
    message: str


class Check(Shape):
    ok: bool
    milliseconds: float
    reason: str


class TargetState(Shape):
    url: str
    release: str | None
    last_scraped_at: str | None
    error: str | None


class BlindSpot(Shape):
    kind: Literal["route", "dependency"]
    name: str
    why: str


class MonitoringCoverage(Shape):
    ratio: float | None
    source: str
    parts: int
    live: int
    blind_spots: list[BlindSpot]


class Detailed(Score):
    checks: dict[str, Check]
    targets: list[TargetState]
    monitoring_coverage: MonitoringCoverage


class TrendPoint(Shape):
    at: str
    score: float | None
    status: str


class Trends(Shape):
    service: str
    hours: float
    trend: str
    minimum: float | None
    mean: float | None
    maximum: float | None
    points: list[TrendPoint]


class Alerts(Shape):
    alerts: list[FiringAlert]
    total_count: int
    critical_count: int
    warning_count: int
