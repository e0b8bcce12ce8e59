"""Reports and the gate over HTTP, as a build sends them."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from django.utils.timezone import now

from approvals import tokens
from approvals.models import Scope
from monitoring.models import QualityReport
from tests.monitoring.factories import ServiceFactory

pytestmark = pytest.mark.django_db
COMMIT = "c" * 40
JUNIT = '<testsuite><testcase classname="t" name="a"/></testsuite>'
BROKEN = '<testsuite><testcase classname="t" name="a"><failure/></testcase></testsuite>'


@pytest.fixture
def service():
    return ServiceFactory(name="realm")


def headers(person, *scopes):
    _, text = tokens.issue(person, name="ci", scopes=scopes, expires_at=now() + timedelta(days=1), actor=person)
    return {"Authorization": f"Bearer {text}"}


def test_a_build_sends_files_and_is_told_the_verdict(client, service, bob):
    auth = headers(bob, Scope.REPORT)
    form = {"service": "realm", "commit": "b" * 40, "junit": SimpleUploadedFile("junit.xml", JUNIT.encode())}
    answer = client.post("/api/v1/reports", form, headers=auth)
    assert answer.status_code == 200, answer.content
    assert answer.json()["kept"][0]["signals"]["test_success_ratio"] == 1.0
    form = {"service": "realm", "commit": COMMIT, "junit": SimpleUploadedFile("junit.xml", BROKEN.encode())}
    answer = client.post("/api/v1/ci/gate", form, headers=auth)
    assert (answer.status_code, answer.json()["verdict"]) == (200, "fail")
    assert "t::a" in answer.json()["reason"]
    assert "❌" in answer.json()["markdown"]


def test_takes_json_too(client, service, bob):
    body = {"service": "realm", "commit": COMMIT, "junit": JUNIT, "benchmark": {"ms": [1, 2]}, "branch": "x"}
    answer = client.post("/api/v1/ci/gate", body, content_type="application/json", headers=headers(bob, Scope.REPORT))
    assert (answer.status_code, answer.json()["verdict"]) == (200, "inconclusive")
    assert set(QualityReport.objects.values_list("kind", flat=True)) == {"junit", "benchmark"}
    assert not QualityReport.objects.filter(on_main=True).exists()


@pytest.mark.parametrize(
    ("change", "status", "says"),
    [
        ({"service": "nobody"}, 404, "nobody"),
        ({"commit": "HEAD"}, 400, "/commit"),
        ({"junit": "nonsense"}, 400, "neither XML nor JSON"),
        ({"tolerance": 7}, 400, "/tolerance"),
        ({"reports": "nonsense"}, 400, "/reports: There is no such field. Known: service"),
    ],
)
def test_refuses_with_a_reason(client, service, bob, change, status, says):
    body = {"service": "realm", "commit": COMMIT, "junit": JUNIT, **change}
    answer = client.post("/api/v1/ci/gate", body, content_type="application/json", headers=headers(bob, Scope.REPORT))
    assert (answer.status_code, answer.headers["Content-Type"]) == (status, "application/problem+json")
    assert says in answer.json()["detail"]


def test_needs_the_scope(client, service, bob):
    body = {"service": "realm", "commit": COMMIT, "junit": JUNIT}
    for auth, status in ((headers(bob, Scope.READ), 403), ({}, 401)):
        answer = client.post("/api/v1/ci/gate", body, content_type="application/json", headers=auth)
        assert answer.status_code == status
    assert not QualityReport.objects.exists()
