"""The pages of improvements, and the front page: what they show to whom, what their buttons do, what they cost."""

from __future__ import annotations

import datetime as dt
import re

import pytest
from django.contrib.auth.models import User
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils.timezone import now

from approvals import policy, requests
from approvals.models import AuditEntry
from approvals.policy import Role, Tier
from approvals.subjects import SubjectRef
from improvements.models import Improvement, State, StepRun
from improvements.outcome import Evidence
from monitoring.models import Alert, AlertState, HealthScore
from tests.improvements.factories import FindingFactory, ImprovementFactory, ReleaseFactory, in_state
from tests.people import person

pytestmark = pytest.mark.django_db
FRONT = reverse("admin:index")
LISTS = ["improvements_improvement", "improvements_release", "improvements_rollout", "analysis_finding"]
DIFF = "--- a/game/views.py\n+++ b/game/views.py\n@@ -1 +1 @@\n-    slow()\n+    quick()  # <b>\n"


def as_person(user: User) -> Client:
    client = Client()
    client.force_login(user)
    return client


def shown(client: Client, address: str) -> str:
    """The part of a page that is ours."""
    answer = client.get(address)
    assert answer.status_code == 200
    page = answer.content.decode()
    return page[page.index('id="content"') :]


def act(client: Client, improvement: Improvement, button: str, **form: str) -> str:
    address = reverse(f"admin:improvements_improvement_{button}", args=[improvement.pk])
    return client.post(address, form, follow=True).content.decode()


def ask(improvement: Improvement, tier: Tier = Tier.HIGH) -> None:
    requests.open_request(
        SubjectRef("improvement", improvement.pk, improvement.title, improvement.get_absolute_url()),
        requirement=policy.required(tier),
        fingerprint="f" * 64,
        proposed_by=None,
        facts={},
        expires_at=now() + dt.timedelta(hours=72),
    )


def proven(state: State = State.AWAITING_APPROVAL) -> Improvement:
    """An improvement with a step, its evidence, a diff and measured numbers."""
    measured = {"before": {"p95_ms": 84.75, "mean_ms": None}, "after": {"p95_ms": 22.5}, "change": {"p95_ms": -0.7345}}
    improvement = in_state(state, diff=DIFF, measured=measured, started_at=now())
    run = StepRun.objects.create(
        improvement=improvement,
        state=State.TESTING,
        started_at=now(),
        ended_at=now(),
        lease="0" * 32,
        verdict="PASS",
        reason="34 passed",
    )
    content = {"exit_code": 0, "took_seconds": 4.5, "timed_out": False, "failing": [], "answers": [{"path": "/up"}]}
    run.keep(Evidence("tests", "base 34, patch 34", content))
    return improvement


# -- one improvement ---------------------------------------------------------------------------------------------------


def test_shows_an_improvement_in_words(erin: User) -> None:
    improvement = proven()
    ask(improvement)
    page = shown(as_person(erin), improvement.get_absolute_url())
    for text in (
        "<h1>Fix the player list</h1>",
        "34 passed",
        "<strong>took:</strong> 4.5 s",
        "<strong>timed out:</strong> no",
        "<strong>failing:</strong> none",
        "p95: 84.75 ms → 22.5 ms (-73%)",
        '<tr class="diff-added">',
        "quick()  # &lt;b&gt;",
        "Open the approval request",
        "Audit log of this improvement",
    ):
        assert text in page, text
    assert "mean" not in page
    assert "{&quot;" not in page
    assert not re.search(r"\sstyle=|\son\w+=|<style|<script(?![^>]*\bsrc=)", page)


def test_starts_and_stops_for_those_on_call_and_writes_it_down(erin: User) -> None:
    suggestion = ImprovementFactory()
    page = shown(as_person(erin), suggestion.get_absolute_url())
    assert "Start it" in page
    assert "Dismiss it, because" in page
    assert "Started." in act(as_person(erin), suggestion, "begin")
    assert "Write a reason" in act(as_person(erin), suggestion, "stop", because=" ")
    assert "Stopped: it is now dismissed." in act(as_person(erin), suggestion, "stop", because="not now")
    entries = AuditEntry.objects.about(suggestion)
    assert [(one.action, one.actor, one.because) for one in entries][-2:] == [
        ("improvement.started", "erin", "started by a person"),
        ("improvement.dismissed", "erin", "not now"),
    ]


def test_tries_a_stuck_rollback_again_with_a_reason(erin: User) -> None:
    stuck = in_state(State.STUCK, started_at=now())
    client = as_person(erin)
    page = shown(client, stuck.get_absolute_url())
    assert "Try the rollback again" in page
    assert "Stop it, because" not in page
    assert "Write what you removed" in act(client, stuck, "retry")
    assert "The rollback is tried again." in act(client, stuck, "retry", because="freed the disk")
    stuck.refresh_from_db()
    assert stuck.state == State.ROLLING_BACK
    assert AuditEntry.objects.about(stuck).last().because == "freed the disk"
    assert "cannot move" in act(client, stuck, "retry", because="again")


@pytest.mark.parametrize(
    ("role", "may"),
    [(Role.LEAD, True), (Role.ARCHITECTURE, True), (Role.CTO, True), (Role.ON_CALL, True), (Role.VIEWER, False)],
)
def test_lets_every_role_look_and_all_but_viewers_operate(role: Role, may: bool) -> None:
    client = as_person(person("somebody", role))
    for name in LISTS:
        assert client.get(reverse(f"admin:{name}_changelist")).status_code == 200
    suggestion = ImprovementFactory()
    assert ("Start it" in shown(client, suggestion.get_absolute_url())) is may
    assert ("Started." in act(client, suggestion, "begin")) is may
    suggestion.refresh_from_db()
    assert (suggestion.started_at is not None) is may


def test_shows_a_finding_in_words_and_what_came_of_it(alice: User) -> None:
    found = {
        "model": "game.Player", "relation": "guild", "location": "game/serializers.py:12", "repeats": 4,
        "queries_per_request": 10, "method": "GET", "route": "player-list", "test": "tests/test_players.py::test_lists",
        "frames": [{"file": "game/serializers.py", "line": 12, "function": "summary"}],
    }  # fmt: skip
    finding = FindingFactory(evidence={"found": [found], "confirmed_by_live_queries": True})
    improvement = ImprovementFactory(finding=finding)
    page = shown(as_person(alice), reverse("admin:analysis_finding_change", args=[finding.pk]))
    assert "is read one row at a time at <code>game/serializers.py:12</code>: 4 times in one request of 10" in page
    assert "<strong>waiting: </strong>400 s an hour" in page
    assert "<strong>confirmed by live queries: </strong>yes" in page
    assert improvement.get_absolute_url() in page
    assert "{&quot;" not in page


# -- lists -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LISTS)
def test_says_so_when_a_list_is_empty(name: str, alice: User) -> None:
    client = as_person(alice)
    address = reverse(f"admin:{name}_changelist")
    assert 'class="rr-empty">No ' in shown(client, address)
    if name != "improvements_release":
        return
    ReleaseFactory(state="running")
    assert "Nothing matches." in shown(client, f"{address}?state__exact=stopped")


def cost(client: Client, address: str) -> int:
    with CaptureQueriesContext(connection) as queries:
        assert client.get(address).status_code == 200
    return len(queries)


@pytest.mark.parametrize("name", LISTS)
def test_lists_cost_the_same_for_one_row_and_for_many(name: str, alice: User) -> None:
    client = as_person(alice)
    address = reverse(f"admin:{name}_changelist")
    proven()
    ReleaseFactory()
    few = cost(client, address)
    for _ in range(10):
        proven()
        ReleaseFactory()
    assert cost(client, address) <= few <= 12


# -- the front page ----------------------------------------------------------------------------------------------------


def test_begins_with_what_needs_the_person(carol: User, alice: User) -> None:
    improvement = proven()
    ask(improvement)
    in_state(State.STUCK, started_at=now(), title="Half taken back")
    ImprovementFactory(title="Only an idea")
    service = improvement.service
    HealthScore.objects.create(service=service, at=now() - dt.timedelta(minutes=2), score=10, status="unhealthy")
    HealthScore.objects.create(service=service, at=now(), score=86.4, status="healthy", trend="stable")
    for name, severity, state in (
        ("slow", "warning", AlertState.FIRING),
        ("down", "critical", AlertState.FIRING),
        ("fine", "critical", AlertState.RESOLVED),
    ):
        Alert.objects.create(service=service, name=name, severity=severity, state=state, labels_key=name, message="…")
    page = shown(as_person(carol), FRONT)
    assert re.search(r'Awaiting your signature <span class="rr-count">1<', page)
    assert page.index("down on") < page.index("slow on")
    assert "fine on" not in page
    assert re.search(r'under way <span class="rr-count">2<', page)
    assert page.index("Half taken back") < page.index("healthy (86)")
    assert "Only an idea" not in page
    assert "1 suggestion not started" in page
    assert "healthy (86)" in page
    assert "unhealthy" not in page
    assert "not measured yet" in page  # the other services
    assert "Nothing awaits your signature." in shown(as_person(alice), FRONT)


def test_says_what_is_not_there(alice: User) -> None:
    page = shown(as_person(alice), FRONT)
    for text in ("Nothing awaits your signature.", "No alert is firing.", "Nothing is under way.", "No service is"):
        assert text in page


def test_shows_no_overview_to_who_may_not_look(db: None) -> None:
    improvement = proven()
    stranger = User.objects.create(username="stranger", is_staff=True)
    page = shown(as_person(stranger), FRONT)
    assert "You have no role here yet." in page
    assert improvement.title not in page


def test_front_page_costs_the_same_however_much_there_is(carol: User) -> None:
    client = as_person(carol)

    def more(count: int) -> None:
        for _ in range(count):
            improvement = proven()
            ask(improvement)
            HealthScore.objects.create(service=improvement.service, at=now(), score=50, status="degraded")
            Alert.objects.create(
                service=improvement.service, name="x", severity="warning", state="firing", labels_key="", message="…"
            )

    more(1)
    few = cost(client, FRONT)
    more(14)
    assert cost(client, FRONT) <= few <= 20
