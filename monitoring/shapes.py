"""What the plain JSON endpoints answer, for the OpenAPI document. `reporting` fills them; a test compares the two."""

from __future__ import annotations

from typing import Any, Literal

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
    flapping: bool
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


class Objectives(Shape):
    availability: float
    latency_ms: float
    latency_ratio: float
    period_days: int


class Detailed(Score):
    checks: dict[str, Check]
    objectives: Objectives
    baseline: BaselineVersion | None
    targets: list[TargetState]
    monitoring_coverage: MonitoringCoverage


class Slope(Shape):
    trend: str
    slope_per_hour: float | None
    low: float | None
    high: float | None


class TrendPoint(Shape):
    at: str
    score: float | None
    minimum: float | None
    status: str


class Trends(Slope):
    service: str
    hours: float
    trends: dict[str, Slope]
    minimum: float | None
    mean: float | None
    maximum: float | None
    points: list[TrendPoint]


class BaselineVersion(Shape):
    version: int
    made_at: str
    made_by: str
    reason: str
    since: str
    until: str
    series: int


class BaselineLine(Shape):
    signal: str
    labels: dict[str, str]
    count: int
    quantiles: dict[str, float | None]
    expected_now: dict[str, Any]
    comparison: dict[str, Any]


class BaselineTold(Shape):
    service: str
    version: int | None
    message: str
    hours: float
    signals: list[BaselineLine]
    versions: list[BaselineVersion]
    made_at: str | None = None
    made_by: str | None = None
    reason: str | None = None
    since: str | None = None
    until: str | None = None
    series: int | None = None


class BaselineMade(BaselineVersion):
    service: str


class BaselineAsked(Shape):
    reason: str
    service: str = ""
    hours: float = 672


class Alerts(Shape):
    alerts: list[FiringAlert]
    total_count: int
    critical_count: int
    warning_count: int
