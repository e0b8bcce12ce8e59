"""Hosts outside: asked for, approved by somebody else, revoked; and what needs no approval."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from django.contrib.auth.models import User
from django.core.management import CommandError, call_command
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from pytest_django.fixtures import Settings

from approvals.models import AuditEntry
from approvals.policy import Role
from monitoring import hosts
from monitoring.models import Access, ExternalService, Target
from monitoring.outbound import Refused, open_client
from tests.monitoring.factories import ServiceFactory, TargetFactory, repository
from tests.people import person

pytestmark = pytest.mark.django_db
SHOP = "http://shop.example.org:9100/metrics"


def asked_for(actor: User | None = None, **more: bool) -> ExternalService:
    return hosts.request(SHOP, purpose="metrics of shop", actor=actor, because="It is ours.", **more)


def actions() -> list[tuple[str, str, str]]:
    return [(e.action, e.actor, e.because) for e in AuditEntry.objects.order_by("sequence")]


def test_a_host_is_reached_after_another_person_approved_it_and_until_it_is_revoked(alice: User, bob: User) -> None:
    row = asked_for(alice)
    assert not hosts.may_be_reached(SHOP)
    hosts.approve(row, actor=bob, because="Known to us.")
    assert hosts.may_be_reached(SHOP)
    assert not hosts.may_be_reached("http://shop.example.org/metrics"), "another port is another approval"
    assert not hosts.approved().find("shop.example.org", 9100).allows_private  # type: ignore[union-attr]
    hosts.revoke(row, actor=bob, because="Switched off.")
    assert not hosts.may_be_reached(SHOP)
    assert actions() == [
        ("external_service.requested", "alice", "It is ours."),
        ("external_service.approved", "bob", "Known to us."),
        ("external_service.revoked", "bob", "Switched off."),
    ]


@pytest.mark.parametrize(
    ("who", "asks", "others", "approves", "revokes"),
    [
        (Role.LEAD, False, True, True, True),
        (Role.ARCHITECTURE, False, True, True, True),
        (Role.CTO, False, True, True, True),
        (Role.ON_CALL, False, True, False, True),
        (Role.VIEWER, False, True, False, False),
        (None, False, True, False, False),
        (Role.LEAD, True, True, False, True),
        (Role.LEAD, True, False, False, True),
        ("superuser", False, True, False, True),
        ("superuser", True, True, False, True),
        ("superuser", False, False, True, True),
        ("superuser", True, False, True, True),
    ],
)
def test_who_may_decide(who: Role | str | None, asks: bool, others: bool, approves: bool, revokes: bool) -> None:
    held = [who] if isinstance(who, Role) else []
    actor = person("actor", *held, is_superuser=who == "superuser")
    if others:
        person("other", Role.LEAD)
    for decide, may in ((hosts.approve, approves), (hosts.revoke, revokes)):
        row = asked_for(actor if asks else None)
        if may:
            decide(row, actor=actor, because="I say so.")
        else:
            with pytest.raises(hosts.NotAllowed):
                decide(row, actor=actor, because="I say so.")
        ExternalService.objects.all().delete()


def test_somebody_who_left_decides_nothing(bob: User) -> None:
    row = asked_for()
    User.objects.filter(pk=bob.pk).update(is_active=False)
    with pytest.raises(hosts.NotAllowed):
        hosts.approve(row, actor=bob, because="I was here.")


@pytest.mark.parametrize("because", ["", "   "])
def test_a_decision_needs_a_reason(bob: User, because: str) -> None:
    with pytest.raises(ValueError, match="Say why"):
        hosts.approve(asked_for(), actor=bob, because=because)


def test_asking_again_changes_nothing_but_reopens_what_was_revoked(alice: User, bob: User) -> None:
    row = asked_for(alice)
    assert asked_for(bob).pk == row.pk
    hosts.approve(row, actor=bob, because="Known.")
    assert asked_for(alice).access is Access.APPROVED
    hosts.revoke(row, actor=bob, because="Gone.")
    with pytest.raises(hosts.NotAllowed, match="Ask for it again"):
        hosts.approve(row, actor=bob, because="Back.")
    again = asked_for(bob)
    assert (again.pk, again.access, again.requested_by) == (row.pk, Access.REQUESTED, bob)
    with pytest.raises(hosts.NotAllowed, match="another person"):
        hosts.approve(again, actor=bob, because="Back.")


def test_private_addresses_are_an_approval_of_their_own(alice: User, bob: User) -> None:
    hosts.approve(asked_for(alice), actor=bob, because="Known.")
    wider = asked_for(alice, allows_private=True)
    assert not hosts.approved().find("shop.example.org", 9100).allows_private  # type: ignore[union-attr]
    hosts.approve(wider, actor=bob, because="It is in our network.")
    assert hosts.approved().find("shop.example.org", 9100).allows_private  # type: ignore[union-attr]


# --- What RuneRogue runs itself ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "release", "active", "reached"),
    [
        ("http://127.0.0.1:18231/metrics", "abc123", True, True),
        ("http://[::1]:18231/metrics", "abc123", True, True),
        ("http://127.0.0.1:18231/metrics", "abc123", False, False),
        ("http://127.0.0.1:18231/metrics", "", True, False),
        ("http://10.0.0.7:18231/metrics", "abc123", True, False),
        ("http://shop.example.org:18231/metrics", "abc123", True, False),
    ],
)
def test_its_own_releases_on_loopback_need_no_approval(url: str, release: str, active: bool, reached: bool) -> None:
    TargetFactory(url=url, release=release, active=active)
    assert hosts.may_be_reached(url) is reached
    assert not hosts.may_be_reached(url.replace("18231", "18232"))


def test_its_own_address_and_slots_need_no_approval(settings: Settings) -> None:
    settings.RUNEROGUE_HOST, settings.RUNEROGUE_PORT, settings.SERVICE_PORTS = "0.0.0.0", 8123, (8200, 8201)
    assert hosts.may_be_reached("http://127.0.0.1:8123/metrics")
    assert hosts.may_be_reached("http://127.0.0.1:8201/")
    assert not hosts.may_be_reached("http://127.0.0.1:8202/")
    settings.RUNEROGUE_HOST = "10.0.0.9"
    assert hosts.may_be_reached("http://10.0.0.9:8123/metrics")


# --- The command line and the admin ------------------------------------------------------------------------------


def test_registering_a_service_that_runs_elsewhere_asks_for_its_host(tmp_path: Path) -> None:
    folder = repository(tmp_path / "realm")
    out = io.StringIO()
    call_command("register", str(folder), metrics_url=SHOP, stdout=out)
    assert "manage.py approve_host shop.example.org:9100 --because" in out.getvalue()
    target = Target.objects.get()
    assert (target.url, target.release, target.active) == (SHOP, "", True)
    row = ExternalService.objects.get()
    assert (str(row), row.access, row.purpose) == ("shop.example.org:9100", Access.REQUESTED, "metrics of realm")
    call_command("approve_host", "shop.example.org:9100", because="Ours.", stdout=io.StringIO())
    out = io.StringIO()
    call_command("register", str(folder), metrics_url=SHOP, stdout=out)
    assert "approve_host" not in out.getvalue()
    assert ExternalService.objects.count() == Target.objects.count() == 1


@pytest.mark.parametrize("url", ["file:///etc/passwd", "http://alice:pw@shop.example.org/", "shop example"])
def test_registering_nonsense_says_so(tmp_path: Path, url: str) -> None:
    with pytest.raises(CommandError):
        call_command("register", str(repository(tmp_path / "realm")), metrics_url=url, stdout=io.StringIO())


def test_the_command_line_approves_and_is_audited() -> None:
    call_command("approve_host", "10.0.0.7:9090", because="Our Prometheus.", private=True, stdout=io.StringIO())
    assert hosts.approved().find("10.0.0.7", 9090)
    assert [action for action, _, _ in actions()] == ["external_service.requested", "external_service.approved"]
    with pytest.raises(CommandError, match="not the name or address"):
        call_command("approve_host", "no host", because="x", stdout=io.StringIO())


def test_approving_private_addresses_leaves_no_request_behind(tmp_path: Path) -> None:
    call_command("register", str(repository(tmp_path / "realm")), metrics_url="http://10.0.0.7:9100/metrics")
    assert ExternalService.objects.waiting().count() == 1
    call_command("approve_host", "10.0.0.7:9100", because="Ours.", private=True)
    assert not ExternalService.objects.waiting()


def test_the_client_says_what_to_do_about_a_host_that_waits() -> None:
    asked_for()
    with open_client(timeout_seconds=1) as client, pytest.raises(Refused, match="not an approved host"):
        client.get(SHOP)


PAGE = "/admin/monitoring/externalservice/"


def test_people_ask_in_the_admin_and_others_decide_there(client: Client, alice: User, bob: User) -> None:
    client.force_login(alice)
    sent = {"host": "Shop.Example.org.", "port": "9100", "purpose": "metrics", "request_reason": "Ours."}
    for _ in range(2):  # a second time is no mistake
        answer = client.post(f"{PAGE}add/", sent)
        assert answer.status_code == 302, answer.context["adminform"].form.errors
    row = ExternalService.objects.get()
    assert (str(row), row.requested_by) == ("shop.example.org:9100", alice)
    assert client.post(f"{PAGE}{row.pk}/change/", sent).status_code == 403
    assert client.post(f"{PAGE}{row.pk}/delete/", {"post": "yes"}).status_code == 403

    def act(action: str, because: str) -> str:
        chosen = {"action": action, "_selected_action": [row.pk], "because": because, "index": 0}
        return client.post(PAGE, chosen, follow=True).content.decode()

    assert "Only lead developers" in act("approve", "Please.")
    client.force_login(bob)
    assert "Say why" in act("approve", "")
    assert "may be reached now" in act("approve", "Known.")
    row.refresh_from_db()
    assert (row.access, row.approved_by, row.approve_reason) == (Access.APPROVED, bob, "Known.")
    assert "is reached no longer" in act("revoke", "Gone.")


def test_its_list_costs_the_same_for_one_row_and_for_many(client: Client, bob: User) -> None:
    client.force_login(bob)
    assert "No host outside has been asked for" in client.get(PAGE).content.decode()

    def cost() -> int:
        with CaptureQueriesContext(connection) as queries:
            assert client.get(PAGE).status_code == 200
        return len(queries)

    hosts.approve(asked_for(), actor=bob, because="Known.")
    few = cost()
    for number in range(10):
        hosts.request(f"h{number}.example.org", purpose="x", actor=person(f"p{number}"))
    assert cost() <= few <= 14


def test_a_service_of_its_own_is_no_target_of_others() -> None:
    """A service whose manifest names loopback gains nothing by it."""
    TargetFactory(service=ServiceFactory(), url="http://127.0.0.1:6379/metrics")
    assert not hosts.may_be_reached("http://127.0.0.1:6379/metrics")
