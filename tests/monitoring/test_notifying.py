"""The outbox: what is decided, that it is decided once, sent by one, retried, given up and tried again."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import time, timedelta

import pytest
from django.contrib.auth.models import User
from django.db import connections, transaction

from approvals.models import AuditEntry
from monitoring import answering, notifying, rounds, storing
from monitoring.derive import Reading
from monitoring.models import Alert, AlertRule, MaintenanceWindow, Mention, Notice, Silence
from monitoring.notifiers import MemoryNotifier, NotSent, Undeliverable
from monitoring.routing import MOST_ATTEMPTS, MOST_GROUPS, Outbox
from monitoring.scraping import MemorySource
from tests.monitoring.factories import T0, ServiceFactory
from tests.monitoring.notices import contact, firing, resolve, step

pytestmark = pytest.mark.django_db
MINUTE = timedelta(minutes=1)


@pytest.fixture
def memory() -> MemoryNotifier:
    return MemoryNotifier()


def go(memory: MemoryNotifier, at=T0) -> list[tuple[str, str]]:
    """Decide and send at `at`; (address, subject) of what arrived."""
    before = len(memory.inbox)
    notifying.decide(at)
    notifying.send_due(at, notifiers={"memory": memory})
    return sorted((address.partition("@")[0], message.subject) for address, message in memory.inbox[before:])


def test_tells_escalates_repeats_and_tells_the_end(memory: MemoryNotifier) -> None:
    step(contact("first"), repeat=60)
    step(contact("second"), 15)
    alert = firing(ServiceFactory(name="realm"))
    subject = "[critical] realm: Too many requests fail: share of failed requests is 40.0%, the limit is above 5.0%."
    assert go(memory) == [("first", subject)]
    assert go(memory, T0 + MINUTE) == []
    assert go(memory, T0 + 15 * MINUTE) == [("second", subject)]
    assert go(memory, T0 + 60 * MINUTE) == [("first", subject.replace("critical", "critical, still"))]
    resolve(alert, T0 + 61 * MINUTE)
    ended = "[resolved] realm: Too many requests fail"
    assert go(memory, T0 + 61 * MINUTE) == [("first", ended), ("second", ended)]
    assert go(memory, T0 + 62 * MINUTE) == []
    assert set(Notice.objects.values_list("state", flat=True)) == {"sent"}


def test_gives_a_service_its_own_steps(memory: MemoryNotifier) -> None:
    realm, shop = ServiceFactory(name="realm"), ServiceFactory(name="shop")
    step(contact("everybody"))
    step(contact("team"), service=realm)
    firing(realm)
    firing(shop)
    assert [(who, subject.split()[1]) for who, subject in go(memory)] == [("everybody", "shop:"), ("team", "realm:")]


def test_sends_one_message_for_what_is_due_together(memory: MemoryNotifier) -> None:
    step(contact())
    realm = ServiceFactory(name="realm")
    firing(realm, "latency-slow", severity="warning", labels={})
    firing(realm)
    assert go(memory) == [("on-call", "[critical] realm: 2 alerts: error-ratio, latency-slow")]
    (notice,) = Notice.objects.all()
    assert notice.alerts.count() == 2
    assert [line.severity for line in memory.inbox[0][1].lines] == ["critical", "warning"]


def test_makes_one_message_of_a_storm(memory: MemoryNotifier) -> None:
    step(contact())
    for _ in range(MOST_GROUPS + 1):
        firing()
    assert [subject for _, subject in go(memory)] == [f"[critical] {MOST_GROUPS + 1} services: 4 alerts: error-ratio"]


def test_stops_when_somebody_acknowledges_and_begins_anew_when_given_back(memory: MemoryNotifier, bob: User) -> None:
    step(contact("first"))
    step(contact("second"), 15)
    alert = firing()
    go(memory)
    answering.acknowledge(alert, actor=bob, comment=" I look at it. ", at=T0 + 5 * MINUTE)
    assert (alert.owner, alert.acknowledgement) == (bob, "I look at it.")
    assert go(memory, T0 + 60 * MINUTE) == []
    with pytest.raises(answering.Refused, match="bob acknowledged"):
        answering.acknowledge(alert, actor=bob, comment="again", at=T0)
    answering.unacknowledge(alert, actor=bob, comment="It is not mine.", at=T0 + 60 * MINUTE)
    assert go(memory, T0 + 74 * MINUTE) == []
    assert [who for who, _ in go(memory, T0 + 75 * MINUTE)] == ["second"]
    said = AuditEntry.objects.order_by("sequence").values_list("action", "actor", "because")
    assert list(said) == [
        ("alert.acknowledged", "bob", "I look at it."),
        ("alert.given-back", "bob", "It is not mine."),
    ]


@pytest.mark.parametrize("comment", ["", "  \n "])
def test_wants_a_comment_for_everything(bob: User, comment: str) -> None:
    alert = firing()
    with pytest.raises(answering.Refused, match="Write a"):
        answering.acknowledge(alert, actor=bob, comment=comment, at=T0)
    with pytest.raises(answering.Refused, match="Write a"):
        answering.silence_alert(alert, actor=bob, reason=comment, hours=1, at=T0)
    assert not Silence.objects.exists()
    assert not AuditEntry.objects.exists()


def test_acknowledges_only_what_fires(bob: User) -> None:
    alert = firing()
    resolve(alert, T0)
    with pytest.raises(answering.Refused, match="does not fire"):
        answering.acknowledge(alert, actor=bob, comment="late", at=T0)


def test_silence_keeps_it_quiet_says_so_and_ends(memory: MemoryNotifier, bob: User) -> None:
    step(contact("first"))
    step(contact("second"), 15)
    alert = firing()
    firing(alert.service, labels={"endpoint": "/items"})
    answering.silence_alert(alert, actor=bob, reason="known, fixed tonight", hours=2, at=T0)
    go(memory)
    assert [line.labels["endpoint"] for _, message in memory.inbox for line in message.lines] == ["/items"]
    alert.refresh_from_db()
    assert alert.suppressed_by == "Silenced by bob until 2026-03-02 14:00 UTC: known, fixed tonight"
    assert [who for who, _ in go(memory, T0 + 119 * MINUTE)] == ["second"]  # of the other
    # When it ends, escalation begins: who is second in line is not called for the two quiet hours.
    assert [who for who, _ in go(memory, T0 + 120 * MINUTE)] == ["first"]
    assert [who for who, _ in go(memory, T0 + 135 * MINUTE)] == ["second"]
    alert.refresh_from_db()
    assert alert.suppressed_by == ""


def test_silence_ends_early(memory: MemoryNotifier, bob: User) -> None:
    step(contact())
    row = answering.silence_alert(firing(), actor=bob, reason="deploying", hours=2, at=T0)
    assert go(memory, T0 + MINUTE) == []
    answering.end_silence(row, actor=bob, comment="done", at=T0 + 2 * MINUTE)
    assert len(go(memory, T0 + 2 * MINUTE)) == 1
    with pytest.raises(answering.Refused, match="over"):
        answering.end_silence(row, actor=bob, comment="again", at=T0 + 3 * MINUTE)


def test_tells_the_end_of_what_was_silenced_since(memory: MemoryNotifier, bob: User) -> None:
    step(contact())
    alert = firing()
    go(memory)
    answering.silence_alert(alert, actor=bob, reason="known", hours=2, at=T0 + MINUTE)
    resolve(alert, T0 + 2 * MINUTE)
    assert [subject.split()[0] for _, subject in go(memory, T0 + 2 * MINUTE)] == ["[resolved]"]


def test_maintenance_window_keeps_its_service_quiet(memory: MemoryNotifier) -> None:
    step(contact())
    realm = ServiceFactory(name="realm")
    MaintenanceWindow.objects.create(
        name="Mondays", service=realm, reason="backup", timezone="Europe/Berlin", first_day=T0.date(),
        begins=time(13, 0), duration_minutes=30, recurrence="FREQ=WEEKLY",
    )  # fmt: skip
    alert = firing(realm)
    firing(ServiceFactory(name="shop"))
    assert [subject.split()[1] for _, subject in go(memory)] == ["shop:"]
    alert.refresh_from_db()
    assert alert.suppressed_by == "Maintenance window “Mondays” until 2026-03-02 12:30 UTC: backup"
    assert [subject.split()[1] for _, subject in go(memory, T0 + 30 * MINUTE)] == ["realm:"]


def test_service_down_silences_its_latency(memory: MemoryNotifier) -> None:
    step(contact())
    realm = ServiceFactory(name="realm")
    down = firing(realm, "not-measured", labels={}, message="Its metrics can't be read.")
    slow = firing(realm, "latency-unusual", severity="warning")
    assert go(memory) == [("on-call", "[critical] realm: Its metrics can't be read.")]
    slow.refresh_from_db()
    assert slow.suppressed_by.startswith("Inhibited by not-measured: its metrics can't be read")
    resolve(down, T0 + MINUTE)
    assert [subject.split()[0] for _, subject in go(memory, T0 + MINUTE)] == ["[resolved]", "[warning]"]


def test_decides_in_the_round_after_alerts_were_judged(memory: MemoryNotifier) -> None:
    step(contact())
    service = ServiceFactory()
    rule = AlertRule.objects.create(
        service=service, name="odd", summary="Odd", signal="oddity", threshold=1.0, for_intervals=1
    )
    storing.store([(service, Reading("oddity", (), 5.0))], at=T0)
    rounds.run(T0, source=MemorySource())
    assert Alert.objects.get(rule=rule).state == "firing"
    assert Notice.objects.get().state == "waiting"


# -- Sending --------------------------------------------------------------------------------------------------------


def test_tries_again_later_and_gives_up_in_the_end(memory: MemoryNotifier) -> None:
    step(contact())
    firing()
    memory.broken = NotSent("It answered 503.")
    at = T0
    go(memory)
    notice = Notice.objects.get()
    assert (notice.state, notice.attempts, notice.next_at, notice.last_error) == (
        "waiting", 1, T0 + timedelta(seconds=10), "It answered 503.",
    )  # fmt: skip
    assert notifying.send_due(T0 + timedelta(seconds=9), notifiers={"memory": memory}) == 0
    assert len(memory.attempts) == 1
    while Notice.objects.get().state == "waiting":
        at = Notice.objects.get().next_at
        notifying.send_due(at, notifiers={"memory": memory})
    notice.refresh_from_db()
    assert (notice.state, notice.attempts) == ("dead", MOST_ATTEMPTS)
    assert notice.last_error == "Given up after 12 attempts. It answered 503."


def test_is_as_patient_as_the_other_side_asks(memory: MemoryNotifier) -> None:
    step(contact())
    firing()
    memory.broken = NotSent("It answered 429.", after_seconds=120)
    go(memory)
    assert Notice.objects.get().next_at == T0 + timedelta(seconds=120)


def test_is_tried_again_by_a_person_and_told_once(memory: MemoryNotifier, bob: User) -> None:
    step(contact("first"))
    step(contact("second"), 15)
    firing()
    memory.broken = Undeliverable("It answered 404.")
    go(memory)
    notice = Notice.objects.get()
    assert (notice.state, notice.attempts, notice.last_error) == ("dead", 1, "It answered 404.")
    memory.broken = None
    assert [who for who, _ in go(memory, T0 + MINUTE)] == ["second"], "nobody is left to wait for"
    assert notifying.try_again(notice, actor=bob, at=T0 + 2 * MINUTE)
    assert not notifying.try_again(notice, actor=bob, at=T0 + 2 * MINUTE)
    assert [who for who, _ in go(memory, T0 + 2 * MINUTE)] == ["first"]
    assert AuditEntry.objects.get().because == "It answered 404."


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"medium": "pigeon"}, "There is no medium 'pigeon'"),
        ({"address": ""}, "It has no address."),
        ({"enabled": False}, "The contact is switched off."),
    ],
)
def test_says_why_it_cannot_be_sent_at_all(memory: MemoryNotifier, change: dict[str, object], says: str) -> None:
    person = contact()
    step(person)
    firing()
    notifying.decide(T0)
    type(person).objects.filter(pk=person.pk).update(**change)
    go(memory)
    notice = Notice.objects.get()
    assert notice.state == "dead"
    assert notice.last_error.startswith(says)


def test_survives_a_medium_with_a_bug(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(MemoryNotifier):
        def send(self, message, *, address, secret) -> str:
            raise KeyError("hunter2")

    step(contact())
    firing()
    go(Broken())
    notice = Notice.objects.get()
    assert (notice.state, notice.last_error) == ("waiting", "The medium failed (KeyError); the log says where.")
    assert "The medium memory raised" in caplog.text


def test_keeps_the_news_of_an_alert_in_order(memory: MemoryNotifier) -> None:
    step(contact())
    alert = firing()
    memory.broken = NotSent("down")
    go(memory)
    resolve(alert, T0 + timedelta(seconds=5))
    memory.broken = None
    # The end is decided while the beginning waits for its next attempt, and does not overtake it.
    assert go(memory, T0 + timedelta(seconds=5)) == []
    assert [s.split()[0] for _, s in go(memory, T0 + timedelta(seconds=10))] == ["[critical]"]
    assert [s.split()[0] for _, s in go(memory, T0 + timedelta(seconds=11))] == ["[resolved]"]


def test_what_a_dead_worker_had_is_sent_again_under_the_same_key(memory: MemoryNotifier) -> None:
    step(contact())
    firing()
    notifying.decide(T0)
    (claimed,) = notifying._claim(T0, 1)  # … and the worker dies, having sent it or not
    memory.send(notifying.Message.from_json(claimed.message), address="on-call@example.org", secret="")
    assert notifying.send_due(T0 + MINUTE, notifiers={"memory": memory}) == 0
    assert notifying.send_due(T0 + notifying.LEASE, notifiers={"memory": memory}) == 1
    assert len(memory.attempts) == 2
    assert len(memory.inbox) == 1, "the key is the same, so a receiver drops the double"
    # The first worker was only slow: what it records late is void.
    assert not notifying._record(claimed, notifying.Result(Outbox.DEAD, "late"), T0)
    assert Notice.objects.get().state == "sent"


def test_a_lease_of_a_clock_that_was_set_back_holds_nobody_up(memory: MemoryNotifier) -> None:
    step(contact())
    firing()
    notifying.decide(T0)
    notifying._claim(T0, 1)
    Notice.objects.update(leased_until=T0 + timedelta(days=1))
    assert notifying.send_due(T0, notifiers={"memory": memory}) == 1


@pytest.mark.django_db(transaction=True)
def test_many_workers_tell_each_thing_once(memory: MemoryNotifier) -> None:
    step(contact("first"))
    step(contact("second"))
    for _ in range(6):
        firing(ServiceFactory())
    Alert.objects.update(audible_since=T0)
    barrier = threading.Barrier(4)

    def work(_: int) -> int:
        try:
            barrier.wait(timeout=10)
            notifying.decide(T0)
            return sum(notifying.send_due(T0, notifiers={"memory": memory}, limit=1) for _ in range(3))
        finally:
            connections.close_all()

    with ThreadPoolExecutor(4) as pool:
        sent = sum(pool.map(work, range(4)))
    assert sent == Notice.objects.count() == len(memory.attempts) == 2  # six services: one message for each contact
    assert Mention.objects.count() == 12


@pytest.mark.django_db(transaction=True)
def test_skips_what_another_worker_is_just_claiming() -> None:
    step(contact())
    firing()
    notifying.decide(T0)
    claimed, looked = threading.Event(), threading.Event()

    def other() -> int:
        try:
            with transaction.atomic():
                rows = notifying._claim(T0, 1)
                claimed.set()
                looked.wait(timeout=2)  # not committed yet
            return len(rows)
        finally:
            connections.close_all()

    with ThreadPoolExecutor(1) as pool:
        theirs = pool.submit(other)
        assert claimed.wait(timeout=10)
        mine = notifying._claim(T0, 1)
        looked.set()
        assert (theirs.result(), mine) == (1, [])


# -- Pages and tests ------------------------------------------------------------------------------------------------


def test_pages_repeat_and_go_on_to_the_next_until_it_is_over(memory: MemoryNotifier) -> None:
    realm = ServiceFactory(name="realm")
    step(contact("first"), repeat=60)
    step(contact("second"), 15)
    step(contact("leads"), 90, critical_only=True)
    for _ in range(2):
        notifying.page(realm, key="stuck-1", title="It is stuck", body="The proxy is gone.", at=T0)
    subject = "[critical] realm: It is stuck"
    assert go(memory) == [("first", subject)]
    assert memory.inbox[0][1].body == "The proxy is gone."
    assert go(memory, T0 + MINUTE) == []
    assert go(memory, T0 + 15 * MINUTE) == [("second", subject)]
    still = subject.replace("critical", "critical, still")
    assert go(memory, T0 + 60 * MINUTE) == [("first", still)]
    assert go(memory, T0 + 90 * MINUTE) == [("leads", subject)]
    assert go(memory, T0 + 120 * MINUTE) == [("first", still)]
    assert notifying.call_off(realm, key="stuck-1", because="bob tries again.", at=T0 + 121 * MINUTE)
    assert not notifying.call_off(realm, key="stuck-1", because="once more")
    over = "[resolved] realm: It is stuck"
    assert go(memory, T0 + 121 * MINUTE) == [("first", over), ("leads", over), ("second", over)]
    assert memory.inbox[-1][1].body == "bob tries again."
    assert len({message.thread for address, message in memory.inbox if address.startswith("first")}) == 1
    assert go(memory, T0 + 600 * MINUTE) == []


def test_page_does_not_wait_for_who_cannot_be_reached(memory: MemoryNotifier) -> None:
    step(contact("first", enabled=True))
    step(contact("second"), 15)
    notifying.page(ServiceFactory(), key="k", title="t", body="b", at=T0)
    memory.broken = Undeliverable("no such address")
    go(memory)
    memory.broken = None
    assert [who for who, _ in go(memory, T0 + MINUTE)] == ["second"]


@pytest.mark.parametrize(("came_of_it", "state"), [(Outbox.SENT, "sent"), (Outbox.WAITING, "called off")])
def test_what_is_called_off_while_it_is_sent(came_of_it: Outbox, state: str) -> None:
    realm = ServiceFactory()
    step(contact())
    notifying.page(realm, key="k", title="t", body="b", at=T0)
    notifying.decide(T0)
    (claimed,) = notifying._claim(T0, 1)
    notifying.call_off(realm, key="k", because="bob has it", at=T0)
    notifying._record(claimed, notifying.Result(came_of_it, "it said"), T0)
    assert Notice.objects.get().state == state
    assert notifying.send_due(T0 + notifying.LEASE, notifiers={}) == 0
    told = [notice.kind for notice in notifying.decide(T0)]
    assert told == (["resolved"] if came_of_it is Outbox.SENT else []), "who never heard of it need not hear its end"


def test_page_is_taken_by_a_person(memory: MemoryNotifier, bob: User) -> None:
    realm = ServiceFactory()
    step(contact("first"), repeat=60)
    step(contact("second"), 15)
    page = notifying.page(realm, key="k", title="t", body="b", at=T0)
    go(memory)
    with pytest.raises(ValueError, match="comment"):
        notifying.take_page(page, actor=bob, comment=" ", at=T0)
    notifying.take_page(page, actor=bob, comment="mine", at=T0)
    with pytest.raises(ValueError, match="has it already"):
        notifying.take_page(page, actor=bob, comment="mine", at=T0)
    assert go(memory, T0 + 120 * MINUTE) == []
    assert AuditEntry.objects.get().action == "page.taken"
    notifying.call_off(realm, key="k", because="It is done.", at=T0 + 121 * MINUTE)
    assert [who for who, _ in go(memory, T0 + 121 * MINUTE)] == ["first"]


def test_says_so_when_there_is_nobody_to_page(caplog: pytest.LogCaptureFixture) -> None:
    realm = ServiceFactory(name="realm")
    notifying.page(realm, key="k", title="It is stuck", body="b", at=T0)
    assert "Nobody is on call for realm: It is stuck" in caplog.text
    step(contact())
    assert len(notifying.decide(T0 + MINUTE)) == 1, "somebody who is on call later hears of it then"


def test_forgets_what_was_told_long_ago_and_keeps_what_is_open(memory: MemoryNotifier) -> None:
    realm = ServiceFactory()
    step(contact("first"))
    over, open_ = firing(realm), firing(realm, labels={"endpoint": "/items"})
    resolve(over, T0)
    notifying.page(realm, key="open", title="t", body="b", at=T0)
    notifying.page(realm, key="over", title="t", body="b", at=T0)
    go(memory)
    notifying.call_off(realm, key="over", because="done", at=T0)
    firing(ServiceFactory(name="shop"))
    memory.broken = NotSent("not now")
    go(memory, T0 + MINUTE)
    assert notifying.forget_old(T0 + notifying.KEEP) == 0
    later = T0 + notifying.KEEP + timedelta(hours=2)
    assert notifying.forget_old(later) > 0
    left = Notice.objects.order_by("pk")
    assert {(notice.kind, notice.page and notice.page.key) for notice in left} == {
        ("firing", None), ("page", "open"), ("resolved", "over"),
    }  # fmt: skip
    assert not left.filter(alerts=over).exists()
    assert left.filter(alerts=open_).exists()
    assert left.filter(state=Outbox.WAITING).count() == 2
    assert notifying.forget_old(later) == 0, "once an hour"


def test_sends_a_test(memory: MemoryNotifier, bob: User) -> None:
    notifying.send_test(contact("first"), actor=bob, at=T0)
    assert go(memory) == [("first", "[test] RuneRogue can reach first")]
    assert AuditEntry.objects.get().action == "contact.tested"


def test_outbox_is_counted_by_how_it_stands(memory: MemoryNotifier) -> None:
    assert notifying.outbox(T0) == notifying.Counts({"waiting": 0, "failed": 0, "dead": 0}, 0.0)
    step(contact("first"))
    step(contact("off", enabled=False))
    firing()
    memory.broken = Undeliverable("no")
    go(memory)
    memory.broken = NotSent("later")
    firing(ServiceFactory(), at=T0)
    go(memory, T0 + MINUTE)
    firing(ServiceFactory(), at=T0)
    notifying.decide(T0 + 2 * MINUTE)
    found = notifying.outbox(T0 + 3 * MINUTE)
    assert found == notifying.Counts({"waiting": 1, "failed": 1, "dead": 1}, 120.0)
    assert str(found) == "1 wait, 1 failed and are tried again, 1 were given up in the last day."
    assert notifying.outbox(T0 + timedelta(days=2)).by_state["dead"] == 0
