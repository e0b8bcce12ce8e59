"""The admin's pages: what they show, what they hide, what they cost."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.apps import apps
from django.contrib.auth.models import User
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils.timezone import now

from approvals.models import AuditEntry
from monitoring.alerting import ensure_rules
from monitoring.baselines import profile
from monitoring.models import (
    Alert,
    AlertRule,
    AlertState,
    Baseline,
    BaselineSeries,
    Feedback,
    HealthScore,
    Series,
    Service,
    SpanIntake,
)
from tests.monitoring.factories import T0, ServiceFactory, TargetFactory, samples

pytestmark = pytest.mark.django_db
PAGES = ["service", "target", "series", "healthscore", "alertrule", "alert", "baseline", "spanintake", "feedback"]
COMPONENT = {"score": 40.0, "status": "unhealthy", "message": "5.0% of the requests fail (−51 points)."}


@pytest.fixture
def admin(client: Client) -> Client:
    client.force_login(User.objects.create(username="root", is_staff=True, is_superuser=True))
    return client


def watched(count: int) -> list[Service]:
    services = []
    for _ in range(count):
        service = ServiceFactory(environment={"DATABASE_URL": "postgresql://user:hunter2@db/realm"})
        TargetFactory(service=service, last_scraped_at=T0)
        TargetFactory(service=service, last_error="It answered with status 500.", url="http://b.test/")
        samples(service, "latency_p95_ms", [12.5, 40.0], until=T0, endpoint="players")
        for at in (T0, now()):
            HealthScore.objects.create(
                service=service, at=at, score=40.0, status="unhealthy", components={"availability": COMPONENT}
            )
        baseline = Baseline.objects.create(service=service, version=1, since=T0, until=now(), reason="All was well.")
        BaselineSeries.of(baseline, "up", {"endpoint": "players"}, profile(range(30), [0.5] * 30)).save()  # type: ignore[arg-type]
        SpanIntake.objects.create(service=service, folded_at=T0, batch=1)
        AlertRule.objects.create(service=service, name="mine", summary="…", signal="up", threshold=1)
        Feedback.objects.create(service=service, rating=4, text="Quick.", at=T0)
        for name in ("x", "y"):
            Alert.objects.create(
                service=service, name=name, severity="critical", labels_key="{}", state=AlertState.FIRING, message="…"
            )
        services.append(service)
    return services


@pytest.mark.parametrize("page", PAGES)
def test_lists_cost_the_same_for_one_row_and_for_many(admin: Client, page: str) -> None:
    def cost() -> int:
        with CaptureQueriesContext(connection) as queries:
            assert admin.get(f"/admin/monitoring/{page}/").status_code == 200
        return len(queries)

    watched(1)
    few = cost()
    watched(15)
    assert cost() <= few
    assert few <= 12


@pytest.mark.parametrize("page", PAGES)
def test_every_page_opens(admin: Client, page: str) -> None:
    watched(1)
    ensure_rules()
    row = apps.get_model("monitoring", page).objects.first()
    answer = admin.get(f"/admin/monitoring/{page}/{row.pk}/change/")
    assert answer.status_code == 200
    assert "hunter2" not in answer.content.decode()


def test_a_service_shows_health_reasons_and_names_of_secrets_only(admin: Client) -> None:
    (service,) = watched(1)
    listed = admin.get("/admin/monitoring/service/").content.decode()
    assert "unhealthy (40)" in listed
    shown = admin.get(f"/admin/monitoring/service/{service.pk}/change/").content.decode()
    assert "5.0% of the requests fail" in shown
    assert "DATABASE_URL" in shown
    assert "hunter2" not in shown
    assert "It answered with status 500." in shown


def test_counts_are_not_multiplied_by_each_other(admin: Client) -> None:
    watched(1)
    row = admin.get("/admin/monitoring/service/").context["cl"].result_list[0]
    assert (row.firing_count, row.error_count, row.scraped_at) == (2, 1, T0)


@pytest.mark.parametrize("page", ["target", "series", "healthscore", "alert"])
def test_measurements_are_not_written_by_hand(admin: Client, page: str) -> None:
    watched(1)
    assert admin.get(f"/admin/monitoring/{page}/add/").status_code == 403


def test_services_are_registered_and_archived_but_not_deleted(admin: Client) -> None:
    (service,) = watched(1)
    assert admin.get("/admin/monitoring/service/add/").status_code == 403
    assert admin.post(f"/admin/monitoring/service/{service.pk}/delete/", {"post": "yes"}).status_code == 403


def test_what_a_person_changes_is_audited(admin: Client) -> None:
    (service,) = watched(1)
    rule = AlertRule.objects.get(service=service)
    form = admin.get(f"/admin/monitoring/alertrule/{rule.pk}/change/").context["adminform"].form
    sent = {name: value for name, value in form.initial.items() if value is not None} | {
        "threshold": "0.5",
        "labels": "{}",
    }
    assert admin.post(f"/admin/monitoring/alertrule/{rule.pk}/change/", sent).status_code == 302
    archived = {
        "archived_at_0": "2026-03-02",
        "archived_at_1": "12:00:00",
        "targets-TOTAL_FORMS": "0",
        "targets-INITIAL_FORMS": "0",
    }
    assert admin.post(f"/admin/monitoring/service/{service.pk}/change/", archived).status_code == 302
    service.refresh_from_db()
    assert service.archived_at is not None
    assert service.environment, "saving a form must not empty what it does not show"
    entries = AuditEntry.objects.order_by("sequence")
    assert [(entry.action, entry.actor) for entry in entries] == [
        ("alertrule.changed", "root"),
        ("service.changed", "root"),
    ]
    assert "hunter2" not in str([entry.payload for entry in entries])


def test_a_signal_is_drawn_over_four_ranges(admin: Client) -> None:
    samples(ServiceFactory(), "latency_p95_ms", [12.0, 40.0], until=now(), endpoint="x")
    series = Series.objects.get()
    shown = admin.get(f"/admin/monitoring/series/{series.pk}/change/").content.decode()
    assert shown.count('role="img"') == 4
    assert "Last 1 hour. P95 latency: 12 ms to 40 ms, newest 40 ms" in shown


def test_an_alert_shows_its_signal_and_when_it_fired(admin: Client) -> None:
    ensure_rules()
    service, rule = ServiceFactory(), AlertRule.objects.get(name="latency-slow", service=None)
    labels = {"endpoint": "*", "method": "*"}
    samples(service, rule.signal, [100.0, 3000.0, 3000.0], until=now(), **labels)
    alert = Alert.objects.create(
        service=service, rule=rule, name=rule.name, severity="warning", labels=labels, state=AlertState.FIRING,
        opened_at=now() - timedelta(minutes=2), fired_at=now() - timedelta(minutes=1), message="Slow.",
    )  # fmt: skip
    page = f"/admin/monitoring/alert/{alert.pk}/change/"
    shown = admin.get(page).content.decode()
    assert "P95 latency: 100 ms to 3,000 ms, newest 3,000 ms" in shown
    assert ">fires</text>" in shown
    rule.delete()
    assert "Its rule is gone" in admin.get(page).content.decode()
