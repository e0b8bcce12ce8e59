"""Signing in: who guesses waits, who is guessed at does not, and the log says what happened and nothing personal."""

from __future__ import annotations

import datetime as dt
import io
from threading import Thread
from typing import Any

import pytest
from django.conf import settings as configured
from django.contrib.auth.models import User
from django.contrib.sessions.models import Session
from django.core.management import call_command
from django.db import connection, connections
from django.test import Client, RequestFactory
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils.timezone import now

from approvals import lockouts, second_factor, sessions, tasks, whence
from approvals.lockouts import Attempt
from approvals.models import AuditEntry, Counted, SignInFailures, UntoldFailure
from approvals.policy import Channel, Role
from runerogue.management.commands import demo
from tests.authenticators import enrolled
from tests.people import PASSWORD, give_second_factor, person

pytestmark = pytest.mark.django_db

LOGIN = reverse("admin:login")
PEOPLE = reverse("admin:auth_user_changelist")
AT = dt.datetime(2026, 5, 4, 12, 0, 10, tzinfo=dt.UTC)
HOME, ELSEWHERE = "192.0.2.1", "198.51.100.7"


@pytest.fixture
def ann(db: None) -> User:
    made = person("ann", Role.CTO)
    made.set_password(PASSWORD)
    made.save()
    return made


def minutes(count: float) -> dt.timedelta:
    return dt.timedelta(minutes=count)


def attempt(name: str, address: str = HOME, cookie: str = "") -> Attempt:
    request = RequestFactory().post(LOGIN, REMOTE_ADDR=address)
    if cookie:
        request.COOKIES[lockouts.COOKIE] = cookie
    return lockouts.attempt_of(request, name)


def fail(name: str, times: int, address: str = HOME, *, at: dt.datetime = AT, cookie: str = "") -> None:
    for _ in range(times):
        lockouts.fail(attempt(name, address, cookie), at)


def wait_until(name: str, address: str = HOME, *, at: dt.datetime = AT, cookie: str = "") -> dt.datetime | None:
    return lockouts.locked_until(attempt(name, address, cookie), at)


def sign_in(client: Client, name: str, password: str, **more: Any) -> Any:
    return client.post(LOGIN, {"username": name, "password": password, "next": "/admin/"}, **more)


def known_browser(who: User) -> str:
    """The cookie of a browser in which `who` has signed in."""
    client = Client()
    assert sign_in(client, who.username, PASSWORD).status_code == 302
    return client.cookies[lockouts.COOKIE].value


def told() -> list[tuple[str, str, str]]:
    entries = AuditEntry.objects.filter(action__startswith="signin.").order_by("sequence")
    return [(entry.action, entry.actor, entry.because) for entry in entries]


# --- Who has to wait: (failures before, who tries then, from where, whether they wait) ------------------------------


@pytest.mark.parametrize(
    ("failures", "then", "waits"),
    [
        pytest.param([("ann", HOME, 4)], ("ann", HOME), False, id="below the limit of the pair"),
        pytest.param([("ann", HOME, 5)], ("ann", HOME), True, id="the pair"),
        pytest.param([("ann", HOME, 5)], ("ann", ELSEWHERE), False, id="the same name from elsewhere"),
        pytest.param([("ann", HOME, 5)], ("bob", HOME), False, id="another name from there"),
        pytest.param([("nobody", HOME, 5)], ("nobody", HOME), True, id="a name that nobody has is treated alike"),
        pytest.param(
            [(f"n{n}", HOME, 1) for n in range(29)], ("ann", HOME), False, id="below the limit of the address"
        ),
        pytest.param([(f"n{n}", HOME, 1) for n in range(30)], ("ann", HOME), True, id="the address"),
        pytest.param([(f"n{n}", HOME, 1) for n in range(30)], ("ann", ELSEWHERE), False, id="another address"),
        pytest.param([("ann", f"192.0.2.{n}", 1) for n in range(49)], ("ann", ELSEWHERE), False, id="below the name's"),
        pytest.param([("ann", f"192.0.2.{n}", 1) for n in range(50)], ("ann", ELSEWHERE), True, id="the name"),
        pytest.param([("ann", "2001:db8::1", 5)], ("ann", "2001:db8::2"), True, id="a household of IPv6"),
        pytest.param([("ann", "2001:db8::1", 5)], ("ann", "2001:db8:0:1::1"), False, id="another household"),
    ],
)
def test_lets_wait(failures: list[tuple[str, str, int]], then: tuple[str, str], waits: bool) -> None:
    for name, address, times in failures:
        fail(name, times, address)
    assert (wait_until(*then) is not None) is waits


def test_lets_nobody_be_kept_out_of_a_browser_they_know(ann: User) -> None:
    cookie = known_browser(ann)
    for number in range(60):
        fail("ann", 1, f"198.51.100.{number}")
    fail("ann", 30)
    assert wait_until("ann", ELSEWHERE)
    assert wait_until("ann", cookie=cookie) is None
    fail("ann", 5, cookie=cookie)
    assert wait_until("ann", cookie=cookie), "a stolen browser has no more guesses than any"
    assert wait_until("ann", cookie=known_browser(ann)) is None, "each browser is counted by itself"


def test_believes_no_browser_about_somebody_else_or_with_a_made_up_cookie(ann: User, bob: User) -> None:
    cookie = known_browser(ann)
    for number in range(50):
        fail("bob", 1, f"198.51.100.{number}")
    assert wait_until("bob", cookie=cookie)
    assert wait_until("bob", cookie="made:up:cookie")


def test_waits_no_longer_for_what_is_tried_meanwhile(ann: User) -> None:
    fail("ann", 5)
    assert wait_until("ann") == AT + minutes(15)
    assert wait_until("ann", at=AT + minutes(14.9))
    assert wait_until("ann", at=AT + minutes(15)) is None
    fail("ann", 1, at=AT + minutes(15))
    assert wait_until("ann", at=AT + minutes(15)) is None, "the count begins anew"


def test_forgets_failures_with_a_sign_in_but_not_those_of_the_address(ann: User) -> None:
    fail("ann", 4)
    fail("bob", 3)
    lockouts.succeed(attempt("ann"))
    left = dict(SignInFailures.objects.values_list("kind", "failures"))
    assert left == {"address": 7, "pair": 3, "name": 3}
    assert lockouts.forget_old(AT + minutes(14)) == 0
    assert lockouts.forget_old(AT + minutes(15)) == 3


@pytest.mark.django_db(transaction=True)
def test_counts_every_one_of_many_that_fail_at_once() -> None:
    def guess(name: str) -> None:
        try:
            fail(name, 4)
        finally:
            connections.close_all()

    threads = [Thread(target=guess, args=(f"n{number % 2}",)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    counted = sorted(SignInFailures.objects.values_list("kind", "failures"))
    assert counted == [("address", 24), ("name", 12), ("name", 12), ("pair", 12), ("pair", 12)]


# --- Where from -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("near", "forwarded", "address"),
    [
        ("192.0.2.1", "", "192.0.2.1"),
        ("192.0.2.1", "203.0.113.9", "192.0.2.1"),  # whoever is no proxy of ours may write what they like
        ("10.0.0.5", "203.0.113.9", "203.0.113.9"),
        ("10.0.0.5", "6.6.6.6, 203.0.113.9", "203.0.113.9"),  # the first one was sent by the caller
        ("10.0.0.5", "203.0.113.9, 10.0.0.6", "203.0.113.9"),
        ("10.0.0.5", "", "10.0.0.5"),
        ("10.0.0.5", "rubbish", "10.0.0.5"),
        ("::ffff:192.0.2.1", "", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "", "2001:db8:1:2::/64"),
        ("", "203.0.113.9", ""),
    ],
)
def test_believes_only_its_own_proxies_about_addresses(near: str, forwarded: str, address: str, settings: Any) -> None:
    from runerogue.settings import as_networks

    settings.TRUSTED_PROXIES = as_networks("10.0.0.0/24")
    request = RequestFactory().get("/", REMOTE_ADDR=near, HTTP_X_FORWARDED_FOR=forwarded)
    assert whence.address_of(request) == address


# --- The page -------------------------------------------------------------------------------------------------------


def test_says_how_long_to_wait_and_looks_at_no_password_meanwhile(ann: User) -> None:
    client = Client()
    for _ in range(4):
        assert sign_in(client, "ann", "wrong").status_code == 200
    answer = sign_in(client, "ann", "wrong")
    assert answer.status_code == 429
    assert 890 <= int(answer.headers["Retry-After"]) <= 900
    assert "(15 minutes)" in answer.content.decode()
    counted = list(SignInFailures.objects.order_by("key").values_list())
    assert sign_in(client, "ann", PASSWORD).status_code == 429
    assert sign_in(client, "ann", "wrong").status_code == 429
    assert list(SignInFailures.objects.order_by("key").values_list()) == counted, "nobody is made to wait for longer"
    assert sign_in(Client(), "ann", PASSWORD, REMOTE_ADDR=ELSEWHERE).status_code == 302
    SignInFailures.objects.update(last_at=now() - minutes(15))
    assert sign_in(client, "ann", PASSWORD).status_code == 302


def test_stores_nothing_that_was_typed_and_no_address(ann: User) -> None:
    typed = ["hunter2-in-the-name-field", "hunter2-in-the-password-field"]
    client = Client()
    for _ in range(2):
        sign_in(client, *typed, REMOTE_ADDR="203.0.113.77", HTTP_USER_AGENT="Mosaic/1.0")
    sign_in(client, "ann", PASSWORD, REMOTE_ADDR="203.0.113.77", HTTP_USER_AGENT="Mosaic/1.0")
    lockouts.tell(now() + minutes(1))
    found = []
    with connection.cursor() as cursor:
        for table in connection.introspection.table_names(cursor):
            if table.startswith(("approvals_", "axes_", "auth_", "django_admin_log", "django_session")):
                cursor.execute(f"SELECT coalesce(string_agg(t::text, ' '), '') FROM {table} t")
                text = cursor.fetchone()[0]
                found += [(table, one) for one in (*typed, PASSWORD, "203.0.113.77", "Mosaic") if one in text]
    assert found == []


# --- What the log is told -------------------------------------------------------------------------------------------


def test_folds_failures_by_minute_and_name(ann: User) -> None:
    fail("ann", 5)
    fail("ann", 2, ELSEWHERE)
    fail("s3cret typed here", 2, ELSEWHERE)
    fail("another", 1)
    fail("ann", 1, ELSEWHERE, at=AT + minutes(1))
    before = len(told())
    assert lockouts.tell(AT) == 0, "the minute is not over"
    assert lockouts.tell(AT + minutes(1)) == 3
    assert lockouts.tell(AT + minutes(1)) == 0
    assert told()[before:] == [
        ("signin.failed", "RuneRogue", "3 failed sign-ins as names that nobody has from 2 addresses."),
        ("signin.failed", "RuneRogue", "7 failed sign-ins as ann from 2 addresses."),
        ("signin.locked", "RuneRogue", "1 lock-out as ann from 1 address."),
    ]
    entry = AuditEntry.objects.filter(action="signin.failed").latest("sequence")
    assert entry.outcome == "failed"
    assert (entry.subject_kind, entry.subject) == ("auth.user", "ann")
    assert (entry.data["count"], entry.data["addresses"], len(entry.data["from"])) == (7, 2, 2)
    assert UntoldFailure.objects.count() == 1


def test_does_not_lock_the_log_for_who_guesses() -> None:
    request = RequestFactory().post(LOGIN)
    with CaptureQueriesContext(
        connection,
    ) as queries:
        lockouts.fail(lockouts.attempt_of(request, "somebody"), AT)
    assert not [query for query in queries.captured_queries if "audithead" in query["sql"]]


def test_tells_and_tidies_every_minute(ann: User) -> None:
    fail("ann", 2, at=now() - minutes(20))
    Session.objects.create(session_key="old", session_data="", expire_date=now() - minutes(1))
    assert tasks.tidy_sign_ins() == 1
    assert not SignInFailures.objects.exists()
    assert not Session.objects.exists()


def test_records_sign_ins_sign_outs_and_passwords(ann: User, mallory: User) -> None:
    client = Client()
    sign_in(client, "ann", PASSWORD)
    new = "another battery and a staple"
    form = {"old_password": PASSWORD, "new_password1": new, "new_password2": new}
    assert client.post(reverse("admin:password_change"), form).status_code == 302
    client.post(reverse("admin:logout"))
    admin = Client()
    admin.force_login(mallory)
    other = {"password1": PASSWORD, "password2": PASSWORD, "usable_password": "true"}
    assert admin.post(f"/admin/auth/user/{ann.pk}/password/", other).status_code == 302
    assert told() == [
        ("signin.password_changed", "RuneRogue", "At the machine."),
        ("signin.began", "ann", ""),
        ("signin.password_changed", "ann", ""),
        ("signin.ended", "ann", "Signed out."),
        ("signin.password_changed", "mallory", ""),
    ]
    origin = AuditEntry.objects.get(action="signin.began").data["from"]
    assert len(origin) == 16


# --- Sessions -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("began_minutes_ago", "seen_minutes_ago", "why"),
    [
        (0, 0, ""),
        (719, 59, ""),
        (61, 61, "Nothing was asked for 60 minutes."),
        (721, 1, "A sign-in lasts 12 hours."),
    ],
)
def test_ends_sign_ins(ann: User, began_minutes_ago: float, seen_minutes_ago: float, why: str) -> None:
    client = Client()
    client.force_login(ann)
    session = client.session
    session[sessions.BEGAN] = now().timestamp() - 60 * began_minutes_ago
    session[sessions.SEEN] = now().timestamp() - 60 * seen_minutes_ago
    session.save()
    answer = client.get("/admin/")
    assert answer.status_code == (302 if why else 200)
    assert Session.objects.exists() is not bool(why)
    ended = [because for action, actor, because in told() if (action, actor) == ("signin.ended", "ann")]
    assert ended == ([why] if why else [])
    if why:
        assert why in client.get(answer.url).content.decode()


def test_writes_a_session_once_a_minute_at_most(ann: User) -> None:
    client = Client()
    client.force_login(ann)
    with CaptureQueriesContext(connection) as queries:
        client.get("/admin/")
    assert not [query for query in queries.captured_queries if query["sql"].startswith("UPDATE")]
    session = client.session
    session[sessions.SEEN] -= 61
    session.save()
    client.get("/admin/")
    assert client.session[sessions.SEEN] > now().timestamp() - 30


def test_ends_the_other_sessions_when_the_password_changes(ann: User) -> None:
    here, there = Client(), Client()
    for client in (here, there):
        sign_in(client, "ann", PASSWORD)
    new = "another battery and a staple"
    here.post(reverse("admin:password_change"), {"old_password": PASSWORD, "new_password1": new, "new_password2": new})
    assert here.get("/admin/").status_code == 200
    assert there.get("/admin/").status_code == 302


@pytest.mark.parametrize("password", ["short-one", "92345678901234", "q1w2e3r4t5y6"])
def test_refuses_weak_passwords(ann: User, password: str) -> None:
    client = Client()
    client.force_login(ann)
    form = {"old_password": PASSWORD, "new_password1": password, "new_password2": password}
    assert client.post(reverse("admin:password_change"), form).status_code == 200
    ann.refresh_from_db()
    assert ann.check_password(PASSWORD)


def test_guards_the_cookies() -> None:
    assert configured.SESSION_COOKIE_HTTPONLY
    assert configured.SESSION_COOKIE_SAMESITE == configured.CSRF_COOKIE_SAMESITE == "Lax"
    assert configured.SESSION_COOKIE_SECURE is configured.HTTPS


def test_gives_a_new_session_key_with_every_sign_in(ann: User) -> None:
    client = Client()
    client.get(LOGIN)
    session = client.session
    session["planted"] = True
    session.save()
    planted = session.session_key
    client.cookies["sessionid"] = planted
    sign_in(client, "ann", PASSWORD)
    assert client.session.session_key != planted


# --- What an administrator does -------------------------------------------------------------------------------------


def act(client: Client, action: str, who: User) -> str:
    form = {"action": action, "_selected_action": [who.pk], "because": "He called."}
    return client.post(PEOPLE, form, follow=True).content.decode()


def test_unlocks_signs_out_and_resets_as_administrator(ann: User, mallory: User) -> None:
    fail("ann", 5, at=now())
    fail("bob", 5, at=now())
    theirs, admin = Client(), Client()
    theirs.force_login(ann)
    admin.force_login(mallory)
    assert "may try to sign in again" in act(admin, "unlock", ann)
    assert wait_until("ann", at=now()) is None
    assert wait_until("bob", at=now()), "only who was chosen"
    assert "signed out everywhere (1 sessions)" in act(admin, "sign_out_everywhere", ann)
    assert theirs.get("/admin/").status_code == 302
    enrolled(ann)
    act(admin, "reset_second_factor", ann)
    assert second_factor.has_device(ann), "it takes a second factor to take one away"
    give_second_factor(admin)
    assert "no second factor any more" in act(admin, "reset_second_factor", ann)
    assert not second_factor.has_device(ann)
    assert [(action, actor, why) for action, actor, why in told() if actor == "mallory"] == [
        ("signin.unlocked", "mallory", "He called."),
        ("signin.sessions_ended", "mallory", "He called."),
        ("signin.factor_reset", "mallory", "He called."),
    ]


def test_lets_only_superusers_act(ann: User, bob: User) -> None:
    from django.contrib.auth.models import Permission

    bob.user_permissions.add(*Permission.objects.filter(codename__in=["view_user", "change_user"]))
    enrolled(ann)
    client = Client()
    client.force_login(bob)
    give_second_factor(client)
    page = client.get(PEOPLE).content.decode()
    assert "Reset the second factor" not in page
    act(client, "reset_second_factor", ann)
    assert second_factor.has_device(ann)


def test_lists_people_in_a_few_queries(mallory: User) -> None:
    for number in range(10):
        one = person(f"p{number}")
        fail(f"p{number}", 5, f"192.0.2.{number}", at=now())
        enrolled(one)
    client = Client()
    client.force_login(mallory)
    with CaptureQueriesContext(connection) as queries:
        page = client.get(PEOPLE).content.decode()
    assert page.count("UTC") or page.count("locked until")
    assert len(queries) <= 8, [query["sql"][:120] for query in queries.captured_queries]


def test_unlocks_at_the_machine(ann: User) -> None:
    fail("ann", 5, at=now())
    fail("nobody", 5, at=now())
    call_command("axes_reset_username", "ann", stdout=io.StringIO())
    assert wait_until("ann", at=now()) is None
    assert wait_until("nobody", at=now())
    call_command("axes_reset", stdout=io.StringIO())
    assert not SignInFailures.objects.exists()
    assert [why for action, _, why in told() if action == "signin.unlocked"] == ["At the machine, with manage.py."] * 2


def test_signs_in_the_demonstration_with_a_code_of_ones_own(bob: User) -> None:
    enrolled(bob)
    command = demo.Command()
    for _ in range(2):  # a code counts once, and the next one is taken
        how = command._how(bob)
        assert (how.channel, how.is_fresh) == (Channel.PROGRAM, True)
    assert [action for action, *_ in told()][-2:] == ["signin.factor_given"] * 2


def test_counts_by_everything_it_says() -> None:
    assert set(lockouts.limits()) == set(Counted)
