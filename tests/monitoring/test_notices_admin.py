"""The admin's pages of telling people: what they show, what they never show, and what their buttons do."""

from __future__ import annotations

from datetime import time, timedelta
from typing import Any

import pytest
from django.apps import apps
from django.contrib.auth.models import User
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils.timezone import now

from approvals.models import AuditEntry
from monitoring import answering, notifying
from monitoring.models import Alert, Contact, EscalationStep, MaintenanceWindow, Notice, Silence
from monitoring.notifiers import MemoryNotifier, Undeliverable
from tests.monitoring.factories import T0, ServiceFactory
from tests.monitoring.notices import SECRET, contact, firing, step

pytestmark = pytest.mark.django_db
PAGES = ["alert", "contact", "escalationstep", "silence", "maintenancewindow", "notice"]


@pytest.fixture
def on_call(client: Client, erin: User) -> Client:
    client.force_login(erin)
    return client


@pytest.fixture
def viewer(client: Client, alice: User) -> Client:
    client.force_login(alice)
    return client


def rows(count: int, author: User) -> None:
    for number in range(count):
        service = ServiceFactory()
        person = contact(f"c-{service.pk}-{number}", "webhook", secret=SECRET)
        step(person, service=service)
        alert = firing(service)
        answering.silence_alert(firing(service, "latency-slow"), actor=author, reason="known", hours=1, at=now())
        MaintenanceWindow.objects.create(
            name=f"w-{service.pk}", service=service, reason="backup", timezone="Europe/Berlin",
            first_day=T0.date(), begins=time(3), duration_minutes=30, recurrence="FREQ=WEEKLY",
        )  # fmt: skip
        Alert.objects.filter(pk=alert.pk).update(owner=author)
    notifying.decide(T0)


@pytest.mark.parametrize("page", PAGES)
def test_lists_cost_the_same_for_one_row_and_for_many(on_call: Client, erin: User, page: str) -> None:
    def cost() -> int:
        with CaptureQueriesContext(connection) as queries:
            assert on_call.get(f"/admin/monitoring/{page}/").status_code == 200
        return len(queries)

    rows(1, erin)
    few = cost()
    rows(6, erin)
    assert cost() <= few
    assert few <= 16


@pytest.mark.parametrize("page", PAGES)
def test_every_page_opens_and_tells_no_secret(on_call: Client, erin: User, page: str) -> None:
    assert on_call.get(f"/admin/monitoring/{page}/").status_code == 200, "empty"
    rows(1, erin)
    row = apps.get_model("monitoring", page).objects.first()
    answer = on_call.get(f"/admin/monitoring/{page}/{row.pk}/change/")
    assert answer.status_code == 200
    assert SECRET not in answer.content.decode()
    for model in ("contact", "escalationstep", "silence", "maintenancewindow"):
        assert on_call.get(f"/admin/monitoring/{model}/add/").status_code == 200


@pytest.mark.parametrize(
    "address", ["contact/add/", "escalationstep/add/", "silence/add/", "maintenancewindow/add/", "notice/add/"]
)
def test_viewers_look_and_change_nothing(viewer: Client, address: str) -> None:
    assert viewer.get(f"/admin/monitoring/{address}").status_code == 403


@pytest.mark.parametrize("act", ["acknowledge", "unacknowledge", "assign", "silence", "judge"])
def test_viewers_answer_no_alert(viewer: Client, act: str) -> None:
    alert = firing()
    assert "Acknowledge</button>" not in viewer.get(f"/admin/monitoring/alert/{alert.pk}/change/").content.decode()
    sent = viewer.post(f"/admin/monitoring/alert/{alert.pk}/{act}/", {"comment": "mine", "hours": "1"}, follow=True)
    assert "You may look at alerts, but not answer them." in sent.content.decode()
    alert.refresh_from_db()
    assert (alert.acknowledged_at, Silence.objects.count(), AuditEntry.objects.count()) == (None, 0, 0)


def test_acknowledges_hands_over_and_silences_with_a_comment(on_call: Client, erin: User, bob: User) -> None:
    alert = firing()

    def post(act: str, **data: str) -> str:
        return on_call.post(f"/admin/monitoring/alert/{alert.pk}/{act}/", data, follow=True).content.decode()

    assert "Write a comment" in post("acknowledge", comment=" ")
    assert "Acknowledged. Nobody else is told of it." in post("acknowledge", comment="I look at <it>.")
    shown = on_call.get(f"/admin/monitoring/alert/{alert.pk}/change/").content.decode()
    assert "erin acknowledged it" in shown
    assert "I look at &lt;it&gt;." in shown
    assert "Erin acknowledged error-ratio already." in post("acknowledge", comment="again")
    assert "It is bob" in post("assign", comment="his area", owner="bob")
    assert "Choose who owns it." in post("assign", comment="his area", owner="nobody")
    assert "Choose for how long." in post("silence", comment="known", hours="9999")
    assert "Silenced by erin until" in post("silence", comment="known", hours="4")
    assert "Given back." in post("unacknowledge", comment="not mine")
    # A link that is only followed does nothing.
    assert on_call.get(f"/admin/monitoring/alert/{alert.pk}/acknowledge/").status_code == 302
    alert.refresh_from_db()
    assert alert.acknowledged_at is None
    actions = AuditEntry.objects.order_by("sequence").values_list("action", "actor", "because")
    assert list(actions) == [
        ("alert.acknowledged", "erin", "I look at <it>."),
        ("alert.assigned", "erin", "his area"),
        ("silence.added", "erin", "known"),
        ("alert.given-back", "erin", "not mine"),
    ]


def test_acknowledges_many_at_once(on_call: Client) -> None:
    alerts = [firing(), firing()]
    data = {"action": "acknowledge_selected", "_selected_action": [alert.pk for alert in alerts], "comment": ""}
    assert "Write a comment" in on_call.post("/admin/monitoring/alert/", data, follow=True).content.decode()
    data["comment"] = "the network"
    said = on_call.post("/admin/monitoring/alert/", data, follow=True).content.decode()
    assert "Acknowledged: 2 alerts." in said
    assert Alert.objects.filter(acknowledgement="the network").count() == 2
    data["action"] = "silence_selected"
    assert "Silenced: 2 alerts." in on_call.post("/admin/monitoring/alert/", data, follow=True).content.decode()


def test_shows_who_was_told_and_what_came_of_it(on_call: Client) -> None:
    memory = MemoryNotifier()
    step(contact("first"))
    alert = firing()
    page = f"/admin/monitoring/alert/{alert.pk}/change/"
    assert "Nobody was told." in on_call.get(page).content.decode()
    notifying.decide(now())
    memory.broken = Undeliverable("It answered 404.")
    notifying.send_due(now(), notifiers={"memory": memory})
    shown = on_call.get(page).content.decode()
    assert "not delivered" in shown
    assert "It answered 404." in shown
    memory.broken = None
    notice = Notice.objects.get()
    assert "Try again" in on_call.get(f"/admin/monitoring/notice/{notice.pk}/change/").content.decode()
    assert (
        "It is tried again."
        in on_call.post(f"/admin/monitoring/notice/{notice.pk}/again/", follow=True).content.decode()
    )
    notifying.send_due(now(), notifiers={"memory": memory})
    shown = on_call.get(page).content.decode()
    assert "not delivered" not in shown
    assert "kept" in shown
    assert AuditEntry.objects.get().action == "notice.tried-again"


def test_tries_dead_notices_again_in_bulk(on_call: Client) -> None:
    step(contact("first"))
    firing()
    notifying.decide(now())
    notifying.send_due(now(), notifiers={})
    notice = Notice.objects.get()
    assert "There is no medium" in on_call.get("/admin/monitoring/notice/?state__exact=dead").content.decode()
    data = {"action": "try_selected_again", "_selected_action": [notice.pk]}
    assert "1 will be tried again." in on_call.post("/admin/monitoring/notice/", data, follow=True).content.decode()
    assert "1 had not been given up" in on_call.post("/admin/monitoring/notice/", data, follow=True).content.decode()


def test_says_that_there_is_nobody_to_tell(on_call: Client) -> None:
    assert "There is nobody to tell." in on_call.get(f"/admin/monitoring/alert/{firing().pk}/change/").content.decode()


def test_takes_a_secret_and_never_gives_it_back(on_call: Client) -> None:
    given = {"name": "hook", "medium": "webhook", "address": "https://hooks.example.org/x", "enabled": "on"}
    assert "needs a secret" in on_call.post("/admin/monitoring/contact/add/", given).content.decode()
    assert on_call.post("/admin/monitoring/contact/add/", {**given, "new_secret": SECRET}).status_code == 302
    made = Contact.objects.get()
    assert made.secret == SECRET
    page = f"/admin/monitoring/contact/{made.pk}/change/"
    assert SECRET not in on_call.get(page).content.decode()
    assert on_call.post(page, {**given, "name": "the hook"}).status_code == 302
    made.refresh_from_db()
    assert (made.name, made.secret) == ("the hook", SECRET), "an empty field leaves it as it was"
    assert on_call.post(page, {**given, "new_secret": SECRET + "!"}).status_code == 302
    entries = AuditEntry.objects.order_by("sequence")
    assert [entry.action for entry in entries] == ["contact.added", "contact.changed", "contact.changed"]
    assert SECRET not in "".join(entry.payload for entry in entries)
    assert '"secret":"set"' in entries[2].payload


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ({"medium": "email", "address": "not an address"}, "valid email"),
        ({"medium": "webhook", "address": "javascript:alert(1)", "new_secret": SECRET}, "begins with https://"),
        ({"medium": "pigeon", "address": "roof"}, "Select a valid choice"),
    ],
)
def test_refuses_contacts_that_cannot_be(on_call: Client, data: dict[str, str], says: str) -> None:
    assert says in on_call.post("/admin/monitoring/contact/add/", {"name": "x", **data}).content.decode()
    assert not Contact.objects.exists()


def test_says_that_email_is_not_configured(on_call: Client, settings) -> None:
    settings.EMAIL_HOST = ""
    given = {"name": "erin", "medium": "email", "address": "erin@example.org", "enabled": "on"}
    assert on_call.post("/admin/monitoring/contact/add/", given).status_code == 302
    listed = on_call.get("/admin/monitoring/contact/").content.decode()
    assert "Email is not configured: set EMAIL_URL" in listed
    made = Contact.objects.get()
    tested = on_call.post(f"/admin/monitoring/contact/{made.pk}/test/", follow=True)
    assert tested.redirect_chain[0][0] == f"/admin/monitoring/notice/{Notice.objects.get().pk}/change/"
    notifying.send_due(now())
    notice = Notice.objects.get()
    assert notice.state == "dead"
    assert notice.last_error.startswith("Email is not configured: set EMAIL_URL")


def test_silences_have_an_end_an_author_and_a_reason(on_call: Client, erin: User) -> None:
    begin = now()

    def add(until, **more: str) -> str:
        data = {
            "rule": "error-ratio",
            "labels": "{}",
            "starts_at_0": f"{begin:%Y-%m-%d}",
            "starts_at_1": f"{begin:%H:%M:%S}",
            "ends_at_0": f"{until:%Y-%m-%d}",
            "ends_at_1": f"{until:%H:%M:%S}",
            "reason": "deploying",
        } | more
        return on_call.post("/admin/monitoring/silence/add/", data).content.decode()

    assert "at most 30 days" in add(begin + timedelta(days=31))
    assert "must end after it starts" in add(begin - timedelta(days=1))
    assert "This field is required" in add(begin + timedelta(days=1), reason="")
    assert "Labels are names and texts" in add(begin + timedelta(days=1), labels='{"endpoint": 3}')
    assert not Silence.objects.exists()
    assert add(begin + timedelta(days=1)) == ""
    row = Silence.objects.get()
    assert row.author == erin
    page = f"/admin/monitoring/silence/{row.pk}/"
    assert on_call.post(page + "change/", {"reason": "other"}).status_code == 403, "what was silenced stays on record"
    assert "Write a comment" in on_call.post(page + "end/", {"comment": ""}, follow=True).content.decode()
    assert "Ended." in on_call.post(page + "end/", {"comment": "done"}, follow=True).content.decode()
    assert [entry.action for entry in AuditEntry.objects.order_by("sequence")] == ["silence.added", "silence.ended"]


def test_maintenance_windows_are_checked_audited_and_show_when_they_come(on_call: Client) -> None:
    data = {
        "name": "Sundays", "reason": "backup", "timezone": "Europe/Berlin", "first_day": "2026-01-04",
        "begins": "03:00", "duration_minutes": "60", "recurrence": "FREQ=WEEKLY;BYDAY=SU", "enabled": "on",
    }  # fmt: skip
    wrong = on_call.post("/admin/monitoring/maintenancewindow/add/", {**data, "recurrence": "FREQ=HOURLY"})
    assert "FREQ is one of" in wrong.content.decode()
    wrong = on_call.post("/admin/monitoring/maintenancewindow/add/", {**data, "timezone": "Berlin"})
    assert "There is no time zone" in wrong.content.decode()
    assert on_call.post("/admin/monitoring/maintenancewindow/add/", data).status_code == 302
    row = MaintenanceWindow.objects.get()
    shown = on_call.get(f"/admin/monitoring/maintenancewindow/{row.pk}/change/").content.decode()
    assert "(03:00 Europe/Berlin)" in shown
    assert AuditEntry.objects.get().action == "maintenancewindow.added"


def test_removing_a_step_is_audited(on_call: Client) -> None:
    step(contact("first"), 15)
    row = EscalationStep.objects.get()
    assert on_call.post(f"/admin/monitoring/escalationstep/{row.pk}/delete/", {"post": "yes"}).status_code == 302
    entry = AuditEntry.objects.get()
    assert (entry.action, entry.was["step"]) == ("escalationstep.removed", "first after 15 min")


@pytest.mark.django_db(transaction=True)
def test_removing_several_steps_at_once_is_audited_for_each(on_call: Client) -> None:
    for name in ("first", "second"):
        step(contact(name))
    rows = list(EscalationStep.objects.order_by("pk"))
    chosen = {"action": "delete_selected", "_selected_action": [row.pk for row in rows], "post": "yes"}
    assert on_call.post("/admin/monitoring/escalationstep/", chosen).status_code == 302
    assert not EscalationStep.objects.exists()
    told = AuditEntry.objects.filter(action="escalationstep.removed").order_by("sequence")
    assert [entry.was["step"] for entry in told] == [str(row) for row in rows]


def test_a_page_is_taken_from_its_notice(on_call: Client) -> None:
    realm = ServiceFactory()
    step(contact("first"))
    notifying.page(realm, key="k", title="It is stuck", body="The proxy is gone.", at=now())
    (notice,) = notifying.decide(now())
    where = f"/admin/monitoring/notice/{notice.pk}"
    assert "Take it" in on_call.get(f"{where}/change/").content.decode()
    said = on_call.post(f"{where}/take/", {"comment": "mine"}, follow=True).content.decode()
    assert "It is yours. Nobody else is told, and it is not repeated." in said
    assert "Take it" not in said
    said = on_call.post(f"{where}/take/", {"comment": "mine"}, follow=True).content.decode()
    assert "Somebody has it already" in said


def test_the_list_of_notices_says_how_the_outbox_stands(on_call: Client) -> None:
    step(contact("first"))
    firing()
    notifying.decide(now())
    said = on_call.get("/admin/monitoring/notice/").content.decode()
    assert "1 wait, 0 failed and are tried again, 0 were given up in the last day." in said


def test_keeps_a_secret_unreadable_and_says_when_it_lost_the_key(on_call: Client, settings: Any) -> None:
    hook = contact("hook", "webhook", secret=SECRET)
    hook.address = "https://hooks.example.org/x"
    hook.save()
    with connection.cursor() as cursor:
        cursor.execute("SELECT row_to_json(monitoring_contact)::text FROM monitoring_contact")
        assert SECRET not in cursor.fetchone()[0]
    former, settings.SECRET_KEY = settings.SECRET_KEY, "another key " * 4
    settings.SECRET_KEY_FALLBACKS = [former]
    assert Contact.objects.get().secret == SECRET
    settings.SECRET_KEY_FALLBACKS = []
    on_call.force_login(User.objects.get(username="erin"))  # sessions are signed with the key, too
    page = f"/admin/monitoring/contact/{hook.pk}/change/"
    assert "SECRET_KEY is another one" in on_call.get(page).content.decode()
    given = {"name": "hook", "medium": "webhook", "address": hook.address, "enabled": "on"}
    assert "Set the secret again" in on_call.post(page, given).content.decode()
    step(hook)
    firing()
    notifying.decide(now())
    notifying.send_due(now())
    assert "SECRET_KEY is another one" in Notice.objects.get().last_error
    assert on_call.post(page, {**given, "new_secret": SECRET}).status_code == 302
    assert Contact.objects.get().secret == SECRET


def test_an_alert_is_judged_afterwards_and_may_be_judged_anew(on_call: Client, erin: User) -> None:
    alert = firing(ServiceFactory())
    page = f"/admin/monitoring/alert/{alert.pk}/change/"

    def judge(was: str, comment: str = "A backup ran.") -> str:
        answer = on_call.post(
            f"/admin/monitoring/alert/{alert.pk}/judge/", {"was": was, "comment": comment}, follow=True
        )
        alert.refresh_from_db()
        return answer.content.decode()

    assert "Judged afterwards" not in on_call.get(page).content.decode()
    for refused, comment in (("", "x"), ("perhaps", "x"), ("false", " ")):
        assert "Noted" not in judge(refused, comment)
    assert alert.was_false is None
    assert "Noted: a false alarm." in judge("false")
    assert "judged so already" in judge("false")
    assert "Judged afterwards: a false alarm." in on_call.get(page).content.decode()
    assert "Noted: it was right to fire." in judge("real", "No, it was slow.")
    assert alert.was_false is False
    entries = AuditEntry.objects.about(alert).filter(action="alert.judged")
    assert [(one.actor, one.because, one.was, one.became) for one in entries] == [
        ("erin", "A backup ran.", {"was_false": None}, {"was_false": True}),
        ("erin", "No, it was slow.", {"was_false": True}, {"was_false": False}),
    ]
    shown = on_call.get("/admin/monitoring/alert/?was_false__exact=0").content.decode()
    assert alert.name in shown


def test_what_never_fired_alarmed_nobody(on_call: Client) -> None:
    alert = firing(ServiceFactory())
    Alert.objects.filter(pk=alert.pk).update(state="pending", fired_at=None)
    answer = on_call.post(f"/admin/monitoring/alert/{alert.pk}/judge/", {"was": "false", "comment": "x"}, follow=True)
    assert "never fired" in answer.content.decode()
