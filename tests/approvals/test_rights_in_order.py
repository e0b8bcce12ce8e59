"""Taking a right away and using it have an order, in real parallel transactions."""

from __future__ import annotations

import datetime as dt
import threading
from collections.abc import Callable

import pytest
from django.contrib import admin
from django.contrib.auth.models import User
from django.db import connection, transaction
from django.test import RequestFactory
from django.utils.timezone import now

from approvals import audit, deputies, policies, roles, rulebook
from approvals.models import AuditEntry
from approvals.policy import Role
from approvals.rulebook import DEFAULT
from tests.approvals.test_policies import proposed, sign
from tests.people import person

pytestmark = pytest.mark.django_db(transaction=True)


def beside(work: Callable[[], object]) -> threading.Thread:
    def run() -> None:
        try:
            work()
        finally:
            connection.close()

    thread = threading.Thread(target=run)
    thread.start()
    return thread


@pytest.mark.parametrize("what", ["a team", "a deputy"])
def test_takes_no_right_away_from_under_who_relies_on_it(what: str, carol: User, alice: User) -> None:
    """Rows that are not there yet cannot be locked: whoever names a team waits for those who read the rights."""
    ann = person("ann", Role.ARCHITECTURE)
    row = deputies.name_deputy(
        carol, alice, since=now(), until=now() + dt.timedelta(days=1), because="away", actor=carol
    )
    changes: dict[str, Callable[[], object]] = {
        "a team": lambda: deputies.name_member("realm", Role.ARCHITECTURE, ann, actor=None),
        "a deputy": lambda: deputies.end_deputy(row, actor=carol, because="back"),
    }
    with transaction.atomic():
        held = roles.people([carol.pk, alice.pk], scope="realm", lock=True)
        assert held[carol.pk].roles == {Role.ARCHITECTURE}
        thread = beside(changes[what])
        thread.join(0.3)
        assert thread.is_alive()
        assert roles.people([carol.pk, alice.pk], scope="realm") == held
    thread.join(10)
    after = roles.people([carol.pk, alice.pk], scope="realm")
    assert after != held
    assert after[alice.pk].stands_in_for == ()


def test_puts_a_policy_in_force_once(bob: User, carol: User, dave: User) -> None:
    version, request = proposed(bob)
    with transaction.atomic():
        sign(request, dave)
    sign(request, carol)
    threads = [beside(lambda: policies.put_in_force(version.number)) for _ in range(4)]
    for thread in threads:
        thread.join(10)
    assert AuditEntry.objects.filter(action="policy.in_force").count() == 1


def test_numbers_proposals_that_come_at_once(bob: User, carol: User) -> None:
    def propose(actor: User, hours: float) -> Callable[[], object]:
        written = DEFAULT.as_json()
        written["tiers"]["high"]["expire_after_hours"] = hours
        return lambda: policies.propose(rulebook.parse(written), actor=actor, because="faster")

    threads = [beside(propose(actor, hours)) for actor, hours in ((bob, 20), (carol, 30), (bob, 25))]
    for thread in threads:
        thread.join(10)
    numbers = AuditEntry.objects.filter(action="policy.proposed").order_by("sequence")
    assert [one.subject for one in numbers] == ["Policy 1", "Policy 2", "Policy 3"]


def test_deletes_people_who_are_held_before_it_holds_the_log(bob: User, carol: User, mallory: User) -> None:
    """Whoever holds the row of a person and writes to the log would otherwise wait for the one who deletes."""
    doomed = [person("ann"), person("zoe")]
    page = admin.site.get_model_admin(User)
    asked = RequestFactory().post("/")
    asked.user = mallory
    with transaction.atomic():
        roles.hold_rows([doomed[1].pk])
        thread = beside(lambda: page.delete_queryset(asked, User.objects.filter(pk__in=[one.pk for one in doomed])))
        thread.join(0.3)
        assert thread.is_alive()
        with connection.cursor() as cursor:
            cursor.execute("SET LOCAL lock_timeout = '2s'")
        audit.record("person.looked_at", doomed[1], actor=mallory)
    thread.join(10)
    told = AuditEntry.objects.filter(action__startswith="person.").order_by("sequence")
    assert [(one.action, one.subject) for one in told] == [
        ("person.looked_at", "zoe"), ("person.deleted", "ann"), ("person.deleted", "zoe"),
    ]  # fmt: skip
    assert not User.objects.filter(pk__in=[one.pk for one in doomed]).exists()
