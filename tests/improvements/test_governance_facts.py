"""What packets of facts and the scorecard count, against numbers that were computed by hand."""

from __future__ import annotations

import datetime as dt
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from django.contrib.auth.models import User
from django.db import transaction
from django.test import Client

from approvals import audit
from approvals.models import ApprovalRequest, Signature
from improvements import traffic
from improvements.governance import counting, monthly, quarterly, scoring, weekly, yearly
from improvements.governance.facts import Fact, Section, Window
from improvements.governance.scorecard import DEFINITIONS, Trend
from improvements.governance.scoring import Metric, score
from improvements.models import Improvement, Review, Rollout, RolloutTraffic, State, StepRun
from improvements.outcome import Evidence
from monitoring.models import Alert, AlertState, HealthScore, Service
from tests.improvements.factories import FindingFactory, ReleaseFactory, ServiceFactory, in_state

pytestmark = pytest.mark.django_db
MONDAY = dt.datetime(2026, 3, 2, tzinfo=dt.UTC)  # week 2026-W10
WEEK = Window(MONDAY, MONDAY + dt.timedelta(days=7), MONDAY + dt.timedelta(days=7, minutes=10))


def after(**given: float) -> dt.datetime:
    return MONDAY + dt.timedelta(**given)


def alert(service: Service, name: str, *, opened: dt.datetime, delay: float, **fields: Any) -> Alert:
    fired = opened + dt.timedelta(seconds=delay)
    given = {"severity": "warning", "state": AlertState.RESOLVED, "resolved_at": fired + dt.timedelta(hours=1)}
    return Alert.objects.create(
        service=service, name=name, labels_key=name, opened_at=opened, fired_at=fired, message="…", **given | fields
    )


def suggestion(state: State, service: Service, *, created: dt.datetime, **fields: Any) -> Improvement:
    finding = FindingFactory(service=service, first_seen_at=created)
    return in_state(state, finding=finding, created_at=created, **fields)


def ran(improvement: Improvement, state: State, verdict: str, at: dt.datetime, **fields: Any) -> StepRun:
    return StepRun.objects.create(
        improvement=improvement, state=state, verdict=verdict, started_at=at, ended_at=at, lease="0" * 32, **fields
    )


def rollout(
    improvement: Improvement, *, began: dt.datetime, hours: float = 1, state: str = "done", **fields: Any
) -> Rollout:
    current, candidate = ReleaseFactory(service=improvement.service), ReleaseFactory(service=improvement.service)
    return Rollout.objects.create(
        service=improvement.service, improvement=improvement, current=current, candidate=candidate, state=state,
        started_at=began, ended_at=began + dt.timedelta(hours=hours), **fields,
    )  # fmt: skip


def request(improvement: Improvement, *, created: dt.datetime, hours: float, state: str) -> ApprovalRequest:
    return ApprovalRequest.objects.create(
        subject_kind="improvement", subject_id=improvement.pk, title="…", tier="high", fingerprint="f" * 64,
        requirement={"tier": "high", "signatures": [["architecture"]], "reason": "", "policy_version": "1"},
        policy_version="1", state=state, created_at=created, expires_at=created + dt.timedelta(days=3),
        decided_at=created + dt.timedelta(hours=hours),
    )  # fmt: skip


def by_name(sections: list[Section]) -> dict[str, Fact]:
    return {fact.name: fact for section in sections for fact in section.facts}


@pytest.fixture
def week(carol: User) -> Service:
    """A shop in the second week of March 2026, with something of each kind inside the week and just outside of it."""
    shop, idle = ServiceFactory(name="shop"), ServiceFactory(name="idle")
    for hour, points in ((-1, 10.0), (0, 80.0), (50, 90.0), (100, None), (167, 97.5), (168, 20.0)):
        HealthScore.objects.create(service=shop, at=after(hours=hour), score=points, status="healthy")
    HealthScore.objects.create(service=idle, at=after(hours=1), score=None, status="unknown")

    alert(shop, "before", opened=after(hours=-2), delay=60)
    alert(shop, "a", opened=after(hours=5), delay=60, severity="critical", was_false=True)
    alert(shop, "b", opened=after(hours=6), delay=120, acknowledged_at=after(hours=6, seconds=120 + 600))
    alert(shop, "c", opened=after(hours=7), delay=300, was_false=False, state=AlertState.FIRING, resolved_at=None)

    for number in range(3):  # two of the week, one of the week after
        FindingFactory(service=shop, first_seen_at=after(days=3 * number + 1))
    FindingFactory(service=shop, first_seen_at=after(days=-9), closed_at=after(days=2), closed_because="gone")

    kept = suggestion(
        State.PROMOTED, shop, created=after(days=-1), started_at=after(hours=1), settled_at=after(days=2),
        title="Kept", measured={"change": {"p95_ms": -0.7345}, "interval": {"p95_ms": [-0.8, -0.6]}},
    )  # fmt: skip
    ran(kept, State.VALIDATING, "PASS", after(days=1))
    back = suggestion(State.ROLLED_BACK, shop, created=after(hours=2), started_at=after(hours=3), title="Back")
    Improvement.objects.filter(pk=back.pk).update(state_since=after(days=3))
    suggestion(State.SUGGESTED, shop, created=after(hours=4), title="Waits", benefit=123.44)
    for hours, state in ((1.0, "rejected"), (5.0, "approved")):
        asked = request(back if state == "rejected" else kept, created=after(hours=10), hours=hours, state=state)
        Signature.objects.create(
            request=asked, person=carol, role="architecture", decision="approve", fingerprint="f", at=asked.decided_at
        )
    return shop


WEEKLY = {
    # name: (value, unit, a part of the note)
    "Health of shop, mean": (89.2, "of 100", "Lowest 80.0, of 3 rounds."),  # (80 + 90 + 97.5) / 3 = 89.17
    "Health of idle": (None, "of 100", "Not enough data: nothing was scored in this time"),
    "Remarks of users": (0, "", ""),
    "Alerts that fired": (3, "", "1 of them critical."),
    # a is a false alarm: of 120 and 300 the median is 210
    "Time from the first bad round to the alert, median": (210.0, "s", "Median of 2; the longest took 300.0 s."),
    "Time to acknowledgement, median": (600.0, "s", "Median of 1"),
    "False alarms": (1, "", "2 of 3 were judged."),
    "Still firing when these facts were written": (1, "", ""),
    "Opened": (4, "", ""),  # of days 1 and 4, and those of the two suggestions of this week
    "Closed": (1, "", ""),
    "Open when these facts were written": (6, "", ""),
    "Suggested": (2, "", ""),
    "Started": (2, "", ""),
    "Settled": (1, "", ""),
    "Rolled back": (1, "", ""),
    "Failed": (0, "", ""),
    "p95 after “Kept”": (-73.5, "%", "Between -80% and -60%."),
    "Waits: “Waits”": (123.4, "s of waiting an hour, estimated", ""),
    "Requests made": (2, "", ""),
    "Requests approved": (1, "", ""),
    "Requests rejected": (1, "", ""),
    "Requests expired": (0, "", ""),
    "Signatures": (2, "", ""),
    "Time from request to its end, median": (3.0, "h", "Median of 2; the longest took 5.0 h."),
}


def test_a_week_is_what_was_counted_by_hand(week: Service) -> None:
    told = by_name(weekly.compose(WEEK))
    for name, (value, unit, note) in WEEKLY.items():
        assert (told[name].value, told[name].unit) == (value, unit), name
        assert note in told[name].note, name


def test_a_week_that_was_looked_at_too_late_says_what_is_forgotten(week: Service) -> None:
    late = Window(WEEK.since, WEEK.until, WEEK.until + dt.timedelta(days=24))
    assert "scores are kept for 30 days" in by_name(weekly.compose(late))["Health of shop, mean"].note
    HealthScore.objects.all().delete()
    fact = by_name(weekly.compose(late))["Health of shop"]
    assert (fact.value, fact.note) == (None, "Not enough data: scores are kept for 30 days")


@pytest.mark.parametrize("compose", [weekly.compose, monthly.compose, quarterly.compose, yearly.compose])
def test_a_packet_of_nothing_claims_nothing(compose: Any) -> None:
    for fact in by_name(compose(WEEK)).values():
        assert fact.value in (None, 0) or fact.unit in ("", "people"), fact
        assert fact.value is not None or fact.note.startswith("Not enough data"), fact


def test_every_fact_leads_to_a_page_that_shows_its_rows(client: Client, week: Service, carol: User) -> None:
    rollout(Improvement.objects.get(title="Kept"), began=after(hours=5))
    ran(Improvement.objects.get(title="Back"), State.ROLLING_BACK, "PASS", after(days=3))
    client.force_login(carol)
    packets = [module.compose(WEEK) for module in (weekly, monthly, quarterly, yearly)]
    links = {fact.link for packet in packets for fact in by_name(packet).values()} - {""}
    assert len(links) > 30
    # One of each kind: the same list with the same filters, whatever their values.
    kinds = {(urlsplit(link).path, tuple(parse_qs(urlsplit(link).query))): link for link in sorted(links)}
    for link in kinds.values():
        assert client.get(link).status_code == 200, link  # a filter that the list does not know is a redirect
    fired = next(fact.link for fact in by_name(packets[0]).values() if fact.name == "Alerts that fired")
    page = client.get(fired).content.decode()
    assert page.count('class="field-name"') == 3


# --- A month -----------------------------------------------------------------------------------------------------


def test_a_month_says_what_the_safety_mechanisms_did(week: Service) -> None:
    back = Improvement.objects.get(title="Back")
    Improvement.objects.filter(pk=back.pk).update(tier="high", risk=0.61)
    rollout(back, began=after(days=3), state="rolled back")
    for state, verdict, day in (
        (State.TESTING, "FAIL", 1),
        (State.TESTING, "PASS", 2),
        (State.STAGING, "INCONCLUSIVE", 2),
        (State.ROLLING_OUT, "FAIL", 3),
        (State.TESTING, "FAIL", 8),  # not of this window
    ):
        ran(back, state, verdict, after(days=day))
    ran(back, State.TESTING, "", after(days=1), crashed=True)
    run = ran(back, State.ROLLING_BACK, "PASS", after(days=3))
    run.keep(Evidence("rollback", "back", {"traffic_back_seconds": 0.84}))
    told = by_name(monthly.compose(WEEK))
    assert (told["Rollouts of high risk"].value, told["Rollouts of high risk"].note) == (
        1,
        "1 of them went back. Highest risk 0.61.",
    )
    expected = {
        "Rollouts of low risk": 0,
        "Rollbacks that ran": 1,
        "Time until traffic was back, median": 0.8,
        "Days since a rollback last worked": 4,
        "Held up at testing": 1,
        "Held up at staging": 1,
        "Held up at scanning": 0,
        "Held up at rolling out": 1,
        "Requests rejected": 1,
        "Steps that crashed and were taken again": 1,
        "Emergencies in which rules were set aside": 0,
    }
    assert {name: told[name].value for name in expected} == expected
    assert told["Held up at testing"].note == "Of 2: 1 FAIL."


def test_a_mechanism_that_nobody_needed_is_not_called_proven(week: Service) -> None:
    told = by_name(monthly.compose(WEEK))
    assert told["Rollbacks that ran"].note == "The mechanism was not exercised."
    assert told["Days since a rollback last worked"].note == "Not enough data: none ever ran to its end"


# --- The scorecard -----------------------------------------------------------------------------------------------


def metric(name: str, window: Window = WEEK) -> Metric:
    return next(one for one in score(window) if one.name == name)


def test_time_to_detect_leaves_false_alarms_out(db: None) -> None:
    shop = ServiceFactory()
    for number, delay in enumerate((60, 60, 120, 180, 240, 600)):
        alert(shop, f"real {number}", opened=after(hours=number), delay=delay)
    alert(shop, "false", opened=after(hours=9), delay=5, was_false=True)
    told = metric("time_to_detect").now
    assert (told.value, told.low, told.high, told.cases) == (150.0, 60.0, 600.0, 6)


def test_false_alarms_are_of_those_that_people_judged(db: None) -> None:
    shop = ServiceFactory()
    for number, was_false in enumerate((True, False, False, False, False, None, None)):
        alert(shop, str(number), opened=after(hours=number), delay=60, was_false=was_false)
    told = metric("false_positives").now
    assert (told.hits, told.cases, told.value, told.note) == (1, 5, 0.2, "5 of 7 alerts were judged.")
    Alert.objects.filter(name="4").update(was_false=None)
    told = metric("false_positives").now
    assert (told.value, told.note) == (
        None,
        "Not enough data: 4 judged alerts, 5 are needed. 4 of 7 alerts were judged.",
    )


def test_helped_counts_every_end_of_a_suggestion(db: None) -> None:
    shop = ServiceFactory()
    for change in ({"p95_ms": [-0.5, -0.1]}, {"p95_ms": [-0.5, 0.1]}, {}):
        suggestion(
            State.PROMOTED, shop, created=after(days=-3), settled_at=after(days=1), measured={"interval": change}
        )
    for state in (State.ROLLED_BACK, State.DISMISSED, State.SUGGESTED):
        one = suggestion(state, shop, created=after(days=-3))
        Improvement.objects.filter(pk=one.pk).update(state_since=after(days=2))
    told = metric("helped").now
    assert (told.hits, told.cases, told.value) == (1, 5, 0.2)
    assert told.note == "1 of 3 that stayed had too few samples to be sure."


def test_a_rollback_that_needed_a_person_did_not_work(db: None) -> None:
    shop = ServiceFactory()
    for verdicts in (("PASS",), ("PASS",), ("PASS",), ("PASS",), ("FAIL", "PASS")):
        one = suggestion(State.ROLLED_BACK, shop, created=after(days=-3))
        for hour, verdict in enumerate(verdicts):
            ran(one, State.ROLLING_BACK, verdict, after(hours=hour + 1))
    told = metric("rollback_success").now
    assert (told.hits, told.cases, told.value) == (4, 5, 0.8)


@pytest.mark.parametrize(
    ("state", "fired", "severity", "was_false", "was_promoted", "is_incident"),
    [
        ("done", None, "", None, True, False),
        ("done", 0.5, "critical", None, True, True),
        ("done", 0.5, "critical", True, True, False),
        ("done", 0.5, "warning", None, True, False),
        ("done", 1.5, "critical", None, True, False),  # after it
        ("done", -0.5, "critical", None, True, False),  # before it
        ("rolled back", None, "", None, False, False),  # the gate did its work
        ("rolled back", None, "", None, True, True),  # promoted, and worse after all
        ("rolled back", 0.5, "critical", None, False, True),
    ],
)
def test_what_an_incident_is(
    state: str, fired: float | None, severity: str, was_false: bool | None, was_promoted: bool, is_incident: bool
) -> None:
    one = suggestion(State.PROMOTED, ServiceFactory(), created=after(days=-1))
    rollout(one, began=after(days=1), state=state)
    ran(one, State.VALIDATING, "PASS" if was_promoted else "FAIL", after(days=1))
    if fired is not None:
        at = after(days=1, hours=fired)
        alert(one.service, "down", opened=at, delay=0, severity=severity, was_false=was_false)
    told = metric("incidents").now
    assert (told.hits, told.cases) == (int(is_incident), 1)


@pytest.mark.parametrize("touch", ["nothing", "proposed", "audited", "signed"])
def test_a_promotion_is_autonomous_only_when_nobody_did_anything(touch: str, bob: User) -> None:
    one = suggestion(
        State.PROMOTED, ServiceFactory(), created=after(days=-1), settled_at=after(days=1),
        proposed_by=bob if touch == "proposed" else None,
    )  # fmt: skip
    with transaction.atomic():
        audit.record("improvement.step", one)
        if touch == "audited":
            audit.record("improvement.started", one, actor=bob)
    asked = request(one, created=after(hours=1), hours=1, state="approved")
    if touch == "signed":
        Signature.objects.create(
            request=asked, person=bob, role="lead", decision="approve", fingerprint="f", at=after(hours=2)
        )
    told = metric("autonomous").now
    assert (told.hits, told.cases) == (int(touch == "nothing"), 1)


def test_uptime_is_of_rollouts_that_were_counted_completely(db: None) -> None:
    shop = ServiceFactory()
    for requests, failed, is_complete in ((900, 1, True), (1100, 0, True), (5000, 5000, False)):
        one = rollout(suggestion(State.PROMOTED, shop, created=MONDAY), began=after(days=1))
        RolloutTraffic.objects.create(
            rollout=one, requests=requests, failed=failed, is_complete=is_complete, counted_at=after(days=1)
        )
    told = metric("uptime").now
    assert (told.hits, told.cases, told.value) == (1999, 2000, 0.9995)
    assert told.note == "2 of 3 rollouts were counted completely."


def one_case(name: str, shop: Service, at: dt.datetime) -> None:
    """One more of what the metric `name` counts, at `at`."""
    key = f"{at} {Alert.objects.count()}"
    match name:
        case "time_to_detect":
            alert(shop, key, opened=at, delay=0)
        case "false_positives":
            alert(shop, key, opened=at, delay=0, was_false=False)
        case "helped" | "autonomous":
            suggestion(State.PROMOTED, shop, created=at, settled_at=at)
        case "rollback_success":
            ran(suggestion(State.ROLLED_BACK, shop, created=at), State.ROLLING_BACK, "PASS", at)
        case "incidents":
            rollout(suggestion(State.PROMOTED, shop, created=at), began=at, hours=0)
        case "uptime":
            one = rollout(suggestion(State.PROMOTED, shop, created=at), began=at, hours=0)
            RolloutTraffic.objects.create(rollout=one, requests=1, failed=0, is_complete=True, counted_at=at)


@pytest.mark.parametrize(
    ("at", "of_now", "of_before"),
    [
        (None, 0, 0),
        (WEEK.since, 1, 0),  # the first moment is of the window
        (WEEK.until - dt.timedelta(microseconds=1), 1, 0),
        (WEEK.until, 0, 0),  # and the last is of the next one
        (WEEK.since - dt.timedelta(microseconds=1), 0, 1),
        (WEEK.before.since, 0, 1),
        (WEEK.before.since - dt.timedelta(microseconds=1), 0, 0),
    ],
)
@pytest.mark.parametrize("name", DEFINITIONS)
def test_counts_what_lies_in_its_window_and_claims_nothing_of_too_little(
    name: str, at: dt.datetime | None, of_now: int, of_before: int
) -> None:
    if at:
        one_case(name, ServiceFactory(), at)
    now, before = scoring.value(name, WEEK), scoring.value(name, WEEK.before)
    assert (now.cases, before.cases) == (of_now, of_before)
    assert (now.value, now.low, now.high, before.value) == (None,) * 4
    assert now.note.startswith(f"Not enough data: {of_now or 'no'} {DEFINITIONS[name].cases}, ")


@pytest.mark.parametrize(
    ("name", "make", "words"),
    [
        ("false_positives", lambda shop: alert(shop, "a", opened=after(hours=1), delay=0),
         "Not enough data: no judged alerts, 5 are needed. 0 of 1 alerts were judged."),
        ("uptime", lambda shop: rollout(suggestion(State.PROMOTED, shop, created=MONDAY), began=after(hours=1)),
         "Not enough data: no requests, 1000 are needed. 0 of 1 rollouts were counted completely."),
        ("time_to_detect", lambda shop: alert(shop, "a", opened=after(hours=1), delay=0, was_false=True),
         "Not enough data: no alerts, 6 are needed."),
    ],
)  # fmt: skip
def test_divides_by_nothing_nowhere(name: str, make: Any, words: str) -> None:
    make(ServiceFactory())
    told = scoring.value(name, WEEK)
    assert (told.value, told.note) == (None, words)


def test_a_metric_of_the_window_before_alone_is_compared_with_nothing(db: None) -> None:
    for number in range(DEFINITIONS["time_to_detect"].fewest):
        one_case("time_to_detect", ServiceFactory(name=f"shop{number}"), WEEK.before.since)
    told = metric("time_to_detect")
    assert (told.now.value, told.before.value, told.trend) == (None, 0.0, Trend.UNKNOWN)


def test_counts_the_traffic_of_a_rollout_once_it_has_ended(db: None) -> None:
    one = rollout(suggestion(State.PROMOTED, ServiceFactory(), created=MONDAY), began=MONDAY)
    late = rollout(suggestion(State.PROMOTED, ServiceFactory(), created=MONDAY), began=after(days=-5), hours=130)
    for second, statuses in ((-1, (500,)), (0, (200, 200, 503)), (3599, (200, -1)), (3600, (500,))):
        traffic.store(
            [
                traffic.Slice(
                    one.service_id, None, int(after(seconds=second).timestamp()), (1.0,) * len(statuses), statuses,
                    ("GET",) * len(statuses),
                )
            ]
        )  # fmt: skip
    assert counting.count_traffic(after(hours=1, seconds=30)) == 0  # its last rows may not be written yet
    assert counting.count_traffic(after(hours=12)) == 2
    assert counting.count_traffic(after(hours=12)) == 0
    counted = RolloutTraffic.objects.get(rollout=one)
    assert (counted.requests, counted.failed, counted.is_complete) == (5, 2, True)
    assert not RolloutTraffic.objects.get(rollout=late).is_complete


def test_compares_with_the_window_before(db: None) -> None:
    shop = ServiceFactory()
    for number in range(10):
        for days, delay in ((1, 60 + number), (-6, 600 + number)):
            alert(shop, f"{days} {number}", opened=after(days=days, hours=number), delay=delay)
    told = metric("time_to_detect")
    assert (told.now.value, told.before.value, told.trend) == (64.5, 604.5, Trend.BETTER)
    later = Window(WEEK.until, WEEK.until + dt.timedelta(days=7), WEEK.at)
    assert metric("time_to_detect", later).trend is Trend.UNKNOWN


def test_a_quarter_compares_its_numbers_with_the_one_before(db: None) -> None:
    shop = ServiceFactory(name="shop")
    for number in range(10):
        for days, delay in ((1, 60 + number), (-6, 600 + number)):
            alert(shop, f"{days} {number}", opened=after(days=days, hours=number), delay=delay)
    for author in ("n-plus-one", "n-plus-one", "index"):
        suggestion(State.PROMOTED, shop, created=after(days=-3), settled_at=after(days=1), author=author, benefit=100.0)
    Review.objects.create(
        kind="weekly", period="2026-W09", title="…", since=MONDAY, until=MONDAY, role="lead", made_at=after(hours=1),
        due_on=MONDAY.date(), escalates_after=MONDAY.date(), facts_sha256="",
    )  # fmt: skip
    told = by_name(quarterly.compose(WEEK))
    fact = told["Time to detect"]
    assert (fact.value, fact.unit) == (64.5, "s")
    assert fact.note == "10 alerts. 95 % sure: 61 to 68 s. Before: 604.5 s: better."
    assert told["Improvements of shop that stayed"].value == 3
    assert told["Improvements of shop that stayed"].note.startswith("300 s of users' waiting")
    assert told["By n-plus-one: suggestions that ended"].note == "2 of them stayed."
    assert (told["Reviews signed off: weekly"].value, told["Reviews signed off: weekly"].note) == (
        0,
        "Of 1; 0 had to be escalated.",
    )
