"""What a digest says: to whom, of which week, in whose time, and with which numbers."""

from __future__ import annotations

import datetime as dt
import itertools
import re
from typing import Any

import pytest
from django.conf import settings
from django.contrib.auth.models import Permission

from approvals.models import FreezeWindow, PersonSettings, TeamMember
from approvals.policy import Role
from improvements.digest import composing, parts, rendering, sections
from improvements.digest.composing import compose, reader_of
from improvements.digest.parts import Digest, Facts, Line, Section
from improvements.digest.weeks import Week
from improvements.models import Improvement, Review
from monitoring.models import Alert, HealthScore, Service
from tests.improvements.digests import (
    MEASURED,
    MONDAY,
    NASTY,
    WEDNESDAY,
    WEEK,
    ask,
    busy_week,
    ended,
    entered,
    reader,
    scored,
)  # fmt: skip
from tests.improvements.factories import ImprovementFactory, ServiceFactory
from tests.people import person

pytestmark = pytest.mark.django_db


def told(user: Any, week: Week = WEEK, at: dt.datetime = MONDAY) -> Digest:
    who = reader_of(user)
    return compose(who, Facts.of(week, who.zone, at))


def titles(digest: Digest) -> list[list[str]]:
    return [[section.title for section in chapter.sections] for chapter in digest.chapters]


def section(digest: Digest, title: str) -> Section:
    (found,) = (one for chapter in digest.chapters for one in chapter.sections if one.title == title)
    return found


def with_rights(name: str, *rights: str) -> Any:
    user = reader(name)
    for right in rights:
        app, codename = right.split(".")
        user.user_permissions.add(Permission.objects.get(content_type__app_label=app, codename=codename))
    return user


CHANGED = ["Improvements", "Health", "Alerts", "Findings"]
NEXT = ["Rollouts", "Suggestions"]
EXPIRE = "Requests that expire"


@pytest.mark.parametrize(
    ("roles", "needs"),
    [
        # The request is of high risk: the architecture team signs it.
        ([Role.LEAD], ["Improvements stuck", "Alerts firing", "Services not measured"]),
        ([Role.ARCHITECTURE], ["Awaiting your signature", "Improvements stuck"]),
        ([Role.CTO], ["Improvements stuck"]),
        ([Role.ON_CALL], ["Improvements stuck", "Alerts firing", "Services not measured"]),
        ([Role.VIEWER], []),
    ],
)
def test_says_what_needs_a_role_and_shows_all_who_may_view_the_rest(roles: list[Role], needs: list[str]) -> None:
    busy_week()
    later = NEXT if Role.ARCHITECTURE in roles else [EXPIRE, *NEXT]
    assert titles(told(reader("somebody", *roles))) == [needs, CHANGED, later]


@pytest.mark.parametrize(
    ("rights", "expected"),
    [
        ([], [[], [], []]),
        (["approvals.view_approvalrequest"], [[], [], [EXPIRE]]),
        (["approvals.view_freezewindow"], [[], [], ["Freezes and rollout windows"]]),
        (["improvements.view_review"], [[], [], ["Reviews due"]]),
        (["improvements.view_improvement"], [[], ["Improvements"], NEXT]),
        (["monitoring.view_alert"], [[], ["Alerts"], []]),
        (["monitoring.view_healthscore"], [[], ["Health"], []]),
        (["monitoring.view_service"], [[], [], []]),
        (["analysis.view_finding"], [[], ["Findings"], []]),
    ],
)
def test_tells_nobody_what_they_may_not_view(rights: list[str], expected: list[list[str]]) -> None:
    busy_week()
    frozen()
    review()
    digest = told(with_rights("somebody", *rights))
    assert titles(digest) == expected
    text = rendering.as_text(digest)
    for title, words in (
        ("Improvements", NASTY),
        ("Alerts", "latency-unusual"),
        ("Findings", "N+1 queries on item-list"),
    ):
        assert (words in text) == (title in expected[1])
    assert ("rounds of" in text) == ("Health" in expected[1])


def test_tells_everything_of_a_busy_week_with_its_numbers() -> None:
    busy_week()
    digest = told(reader("carol", Role.ARCHITECTURE, Role.LEAD, zone="Europe/Berlin"))
    assert digest.subject == "RuneRogue 2026-W47: 5 need you, 1 promoted, 1 rolled back, 1 rollback stuck"
    assert digest.period == "2026-11-16 00:00 +01:00 to 2026-11-23 00:00 +01:00"
    assert digest.summary == (
        "5 things need you: awaiting your signature (2), improvements stuck (1), alerts firing (1), "
        "services not measured (1).",
        "Improvements: 1 promoted, 1 rolled back, 1 rollback stuck; 2 alerts fired; 1 finding new, 1 closed.",
        "3 rounds of 2 services were measured.",
        "Next: rollouts (1), suggestions (7).",
    )
    asked = section(digest, "Awaiting your signature").lines
    assert [(one.text, one.badge, one.mood) for one in asked] == [
        ("Prefetch the guilds 1", "high risk", "bad"),
        ("Prefetch the guilds 2", "high risk", "warn"),
    ]
    assert asked[0].detail == "realm, waits for 12 h, expires 2026-11-23 21:05 +01:00 (in 12 h)"
    improved = section(digest, "Improvements")
    assert [(one.badge, one.text) for one in improved.lines] == [
        ("rollback stuck", "A jammed one"), ("rolled back", "A new index"), ("promoted", NASTY),
    ]  # fmt: skip
    assert improved.lines[2].detail == (
        "realm, 2026-11-18 13:00 +01:00; p95 84.75 ms → 12 ms, -86% (95 % interval -90% to -80%); "
        "queries per request 51 → 2, -96%"
    )
    assert improved.note == "Others ended: 1 failed before it went live."
    assert [(one.text, one.badge, one.detail) for one in section(digest, "Health").lines] == [
        ("realm: 92.9 of 100", "better", "80.5 the week before (+12.5); 2 rounds measured"),
        ("shop: 70.0 of 100", "", "no score the week before; 1 round measured"),
    ]
    assert section(digest, "Alerts").note == "2 fired; 1 resolved, after 12 min in the median and 12 min at most."
    assert section(digest, "Findings").note == "1 finding closed."
    suggestions = section(digest, "Suggestions")
    assert [one.text for one in suggestions.lines] == [f"Suggestion {number}" for number in (6, 5, 4, 3, 2)]
    assert suggestions.more == 2
    assert suggestions.url.endswith("/admin/improvements/improvement/?state__exact=SUGGESTED")


def test_a_quiet_week_is_told_with_its_numbers() -> None:
    realm = ServiceFactory(name="realm", created_at=WEDNESDAY)
    scored(realm, WEDNESDAY, *[95.0] * 1500)
    scored(realm, MONDAY, 95.0)
    digest = told(reader("bob", Role.LEAD))
    assert digest.subject == "RuneRogue 2026-W47: nothing needs you"
    assert digest.summary == (
        "Nothing needs you.",
        "No improvement went live or came back; no alert fired; nothing new was found.",
        "1,500 rounds of 1 service were measured.",
    )
    text = rendering.as_text(digest)
    for words in ("Nothing needs you.", "No improvement went live", "No alert fired", "Nothing is waiting to happen."):
        assert words in text


def test_begins_and_ends_the_week_at_the_readers_midnight() -> None:
    realm = ServiceFactory(name="realm")
    midnight = dt.datetime(2026, 11, 15, 23, tzinfo=dt.UTC)  # of Monday in Berlin, still Sunday in UTC
    ended("In Berlin's week alone", "improvement.promoted", midnight, "PROMOTED", finding__service=realm)
    assert section(told(reader("bob", Role.LEAD, zone="Europe/Berlin")), "Improvements").total == 1
    assert section(told(reader("eve", Role.LEAD)), "Improvements").total == 0


def test_tells_in_utc_with_a_hint_where_the_zone_is_none() -> None:
    digest = told(reader("bob", Role.LEAD, zone="Europe/Atlantis"))
    assert digest.period == "2026-11-16 00:00 +00:00 to 2026-11-23 00:00 +00:00"
    for words in (rendering.as_text(digest), rendering.as_html(digest)):
        assert "There is no time zone" in words


def test_tells_of_a_week_that_goes_on_as_far_as_it_went() -> None:
    assert told(reader("bob", Role.LEAD), WEEK, WEDNESDAY).period.endswith("to 2026-11-18 12:00 +00:00")
    ahead = told(reader("bob", Role.LEAD), Week(2027, 10), WEDNESDAY)
    assert ahead.period == "2027-03-08 00:00 +00:00 to 2027-03-08 00:00 +00:00"


# -- What is to come --------------------------------------------------------------------------------------------------


def frozen(name: str = "Friday evening", **fields: Any) -> FreezeWindow:
    usual: dict[str, Any] = {
        "reason": "Nobody is here.", "first_day": dt.date(2026, 1, 2), "begins": dt.time(18), "duration_minutes": 120,
        "recurrence": "FREQ=WEEKLY;BYDAY=FR",
    }  # fmt: skip
    return FreezeWindow.objects.create(name=name, **usual | fields)


ONCE = {"recurrence": "", "begins": dt.time(8)}
NOW = "every service; until 2026-11-23 11:00 +01:00; Nobody is here."
FREEZE = "every service; 2026-11-27 19:00 +01:00 to 2026-11-27 21:00 +01:00; Nobody is here."


@pytest.mark.parametrize(
    ("fields", "badge", "detail"),
    [
        ({}, "freeze", FREEZE),
        ({"scope": "realm"}, "freeze", FREEZE.replace("every service", "realm")),
        ({"kind": "rollouts"}, "rollouts only then", FREEZE),
        (ONCE | {"first_day": MONDAY.date()}, "frozen now", NOW),
        (ONCE | {"first_day": MONDAY.date(), "kind": "rollouts"}, "open now", NOW),
        ({"recurrence": "FREQ=DAILY"}, "freeze",
         "every service; 2026-11-23 19:00 +01:00 to 2026-11-23 21:00 +01:00; 6 more times within a week; Nobody is "
         "here."),
        (ONCE | {"first_day": dt.date(2026, 12, 1)}, "", ""),  # in more than a week
        (ONCE | {"first_day": dt.date(2026, 11, 20)}, "", ""),  # over
        ({"enabled": False}, "", ""),
        ({"timezone": "Europe/Atlantis"}, "unreadable",
         "every service; it cannot be read, and holds everything; Nobody is here."),
    ],
)  # fmt: skip
def test_says_when_nothing_will_roll_out(fields: dict[str, Any], badge: str, detail: str) -> None:
    frozen(**fields)
    digest = told(reader("bob", Role.LEAD, zone="Europe/Berlin"))
    lines = [line for one in digest.chapters[2].sections if one.title.startswith("Freezes") for line in one.lines]
    assert [(line.badge, line.detail) for line in lines] == ([(badge, detail)] if badge else [])


def review(role: Role = Role.LEAD, due: str = "2026-11-25", **fields: Any) -> Review:
    day = dt.date.fromisoformat(due)
    return Review.objects.create(
        kind="weekly", period=f"{role} {due}", title="Weekly review", since=WEDNESDAY, until=MONDAY, role=role,
        made_at=MONDAY, due_on=day, escalates_after=day, facts_sha256="", **fields,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "needs", "later"),
    [
        ({}, [("due", "due by the end of 2026-11-25; asked: a lead developer")], []),
        ({"due": "2026-11-20"}, [("overdue", "due by the end of 2026-11-20; asked: a lead developer")], []),
        ({"role": Role.CTO}, [], [("due", "due by the end of 2026-11-25; asked: the CTO")]),
        ({"role": Role.CTO, "due": "2026-12-01"}, [], []),  # in more than a week
        ({"scope": "realm"}, [("due", "realm; due by the end of 2026-11-25; asked: a lead developer")], []),
        # Somebody else is named there: it is theirs.
        ({"scope": "shop"}, [], [("due", "shop; due by the end of 2026-11-25; asked: a lead developer")]),
    ],
)
def test_says_which_reviews_are_the_readers_and_which_wait_for_others(
    fields: dict[str, Any], needs: list[tuple[str, str]], later: list[tuple[str, str]]
) -> None:
    TeamMember.objects.create(scope="shop", role=Role.LEAD, person=reader("frank", Role.LEAD))
    review(**fields)
    needed, _, ahead = told(reader("bob", Role.LEAD)).chapters
    for chapter, title, lines in ((needed, "Reviews to sign off", needs), (ahead, "Reviews due", later)):
        got = [line for one in chapter.sections if one.title == title for line in one.lines]
        assert [(line.badge, line.detail) for line in got] == lines


@pytest.mark.parametrize(
    ("role", "service", "needs"),
    [
        (Role.ON_CALL, "realm", ["Alerts firing", "Services not measured", "Improvements stuck"]),
        (Role.ON_CALL, "shop", []),
        (Role.ARCHITECTURE, "realm", ["Awaiting your signature", "Improvements stuck"]),
        (Role.ARCHITECTURE, "shop", []),
    ],
)
def test_needs_somebody_of_a_team_for_their_own_services_alone(role: Role, service: str, needs: list[str]) -> None:
    realm = busy_week()
    HealthScore.objects.filter(service=realm).delete()
    Service.objects.exclude(pk=realm.pk).update(archived_at=MONDAY)
    eve = reader("eve", role)
    TeamMember.objects.create(scope=service, role=role, person=eve)
    assert sorted(titles(told(eve))[0]) == sorted(needs)


def test_an_alert_that_somebody_else_has_taken_needs_nobody_else() -> None:
    busy_week()
    erin, bob = reader("erin", Role.ON_CALL), reader("bob", Role.LEAD)
    Alert.objects.firing().update(owner=erin, acknowledged_by=erin, acknowledged_at=MONDAY)
    assert section(told(erin), "Alerts firing").total == 1
    assert "Alerts firing" not in titles(told(bob))[0]


@pytest.mark.parametrize(
    ("after", "before", "badge"),
    [(80.4, 80.0, "same"), (80.5, 80.0, "better"), (79.5, 80.0, "worse"), (None, 80.0, "no data"), (80.0, None, "")],
)
def test_compares_scores_with_the_week_before(after: float | None, before: float | None, badge: str) -> None:
    realm = ServiceFactory(name="realm")
    scored(realm, WEDNESDAY, after)
    scored(realm, WEDNESDAY - dt.timedelta(days=7), before)
    (line,) = section(told(reader("bob", Role.LEAD)), "Health").lines
    assert line.badge == badge


@pytest.mark.parametrize(
    ("measured", "words"),
    [
        ({}, ""),
        ({"before": {"p95_ms": None}, "after": {"p95_ms": 3.0}, "change": {}}, ""),
        ({"before": {"p95_ms": 3.0}, "after": {"p95_ms": None}, "change": {}}, ""),
        ({"before": {"error_ratio": 0.0}, "after": {"error_ratio": 0.01}, "change": {"error_ratio": None}},
         "error ratio 0.0% → 1.0%"),
        (MEASURED, "p95 84.75 ms → 12 ms, -86% (95 % interval -90% to -80%); queries per request 51 → 2, -96%"),
    ],
)  # fmt: skip
def test_says_what_it_did_to_the_numbers(measured: dict[str, Any], words: str) -> None:
    assert sections.measured_in_words(measured) == words


def test_admits_that_a_promoted_one_could_not_be_measured() -> None:
    ended("Blind", "improvement.promoted", WEDNESDAY, "PROMOTED")
    (line,) = section(told(reader("bob", Role.LEAD)), "Improvements").lines
    assert "what it did to the numbers could not be measured" in line.detail


def test_tells_twice_of_what_went_live_and_came_back() -> None:
    both = ended("To and fro", "improvement.promoted", WEDNESDAY, "PROMOTED", measured=MEASURED)
    entered("improvement.rolled_back", both, WEDNESDAY + dt.timedelta(hours=1))
    lines = section(told(reader("bob", Role.LEAD)), "Improvements").lines
    assert [line.badge for line in lines] == ["rolled back", "promoted"]
    assert "while it was live: p95" in lines[0].detail


def test_says_what_other_parts_add_and_nothing_of_what_is_not_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    def reviews(who: parts.Reader, facts: Facts) -> Section | None:
        assert (facts.since, facts.until, facts.at) == (WEEK.begins(dt.UTC), WEEK.ends(dt.UTC), MONDAY)
        return Section("Reviews overdue", (Line("Weekly review"),), 1) if Role.LEAD in who.roles() else None

    monkeypatch.setattr(composing, "ADDED", {"needs": [], "changed": [], "next": []})
    monkeypatch.setattr(parts, "ADDED", composing.ADDED)
    parts.add("needs", reviews)
    parts.add("needs", reviews)
    assert titles(told(reader("bob", Role.LEAD)))[0] == ["Reviews overdue"]
    assert told(reader("bob")).subject == "RuneRogue 2026-W47: 1 needs you"
    assert titles(told(reader("alice", Role.VIEWER)))[0] == []
    with pytest.raises(KeyError):
        parts.add("elsewhere", reviews)


@pytest.mark.parametrize(
    ("fields", "role", "known", "words"),
    [
        ({}, Role.VIEWER, {}, ""),
        ({"is_active": False}, Role.VIEWER, {}, "not active"),
        ({"email": ""}, Role.VIEWER, {}, "no email address"),
        ({}, Role.VIEWER, {"is_service_account": True}, "program's account"),
        ({}, Role.VIEWER, {"wants_digest": False}, "chose to get none"),
        ({}, None, {}, "no role and no right"),
    ],
)
def test_is_for_people_who_want_it_and_may_view_something(
    fields: dict[str, Any], role: Role | None, known: dict[str, Any], words: str
) -> None:
    user = reader("somebody", *([role] if role else []), **fields)
    PersonSettings.objects.create(user=user, **known)
    obstacle = reader_of(user).obstacle
    assert (words in obstacle) if words else obstacle == ""


def test_needs_no_role_where_there_is_a_right_and_no_row_of_settings() -> None:
    assert reader_of(with_rights("somebody", "monitoring.view_alert")).obstacle == ""
    assert reader_of(person("mallory", is_superuser=True, email="m@example.org")).obstacle == ""


def test_asks_the_database_once_for_all_readers_of_a_zone(django_assert_max_num_queries: Any) -> None:
    busy_week()
    first, second = (reader_of(reader(name, Role.ARCHITECTURE, Role.LEAD)) for name in ("carol", "bob"))
    facts = Facts.of(WEEK, dt.UTC, MONDAY)
    with django_assert_max_num_queries(45):
        compose(first, facts)
    with django_assert_max_num_queries(22):
        compose(second, facts)


def test_asks_no_more_for_more_rows(django_assert_max_num_queries: Any) -> None:
    realm = busy_week()
    for number in range(20):
        ended(f"One more {number}", "improvement.promoted", WEDNESDAY, "PROMOTED", finding__service=realm)
        ask(100 + number)
    who = reader_of(reader("carol", Role.ARCHITECTURE, Role.LEAD))
    with django_assert_max_num_queries(45):
        digest = compose(who, Facts.of(WEEK, dt.UTC, MONDAY))
    assert section(digest, "Improvements").more == 18
    assert "and 18 more" in rendering.as_html(digest)


# -- What it looks like -----------------------------------------------------------------------------------------------


@pytest.fixture
def html() -> str:
    busy_week()
    return rendering.as_html(told(reader("carol", Role.ARCHITECTURE, Role.LEAD)))


def test_escapes_every_value(html: str) -> None:
    assert "&lt;b&gt;player&lt;/b&gt;" in html
    assert "<b>player" not in html
    Improvement.objects.update(title="</style><script>alert(1)</script>")
    Service.objects.filter(name="realm").update(name="<img src=x>")
    nasty = rendering.as_html(told(reader("carol", Role.ARCHITECTURE, Role.LEAD)))
    assert "<script" not in nasty
    assert "<img" not in nasty


def test_loads_nothing_and_runs_nothing(html: str) -> None:
    assert not re.search(r"<(script|img|link|iframe|form|object|video)\b|\bon\w+=|url\(|@import|@font-face", html)
    assert "http" not in re.sub(r'href="[^"]*"', "", html)
    addresses = re.findall(r'href="([^"]*)"', html)
    assert addresses
    assert all(one.startswith("http://127.0.0.1:") for one in addresses)


def test_inlines_its_styles_and_keeps_dark_mode_above_them(html: str) -> None:
    body = html[html.index("<body") :]
    assert body.startswith('<body style="')
    assert all('style="' in tag for tag in re.findall(r"<(?:h1|h2|h3|p|li|a|span|div)\b[^>]*>", body))
    (dark,) = re.findall(r"@media \(prefers-color-scheme: dark\) \{(.*?)\n\}", html, re.DOTALL)
    rules = re.findall(r"[\w-]+:[^;{}]+;", dark)
    assert rules
    assert all("!important" in rule for rule in rules)
    assert 'name="color-scheme" content="light dark"' in html
    assert 'name="viewport"' in html


def test_reads_well_aloud(html: str) -> None:
    assert '<html lang="en">' in html
    levels = [int(level) for level in re.findall(r"<h(\d)", html)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))


def luminance(colour: str) -> float:
    parts = (int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5))
    r, g, b = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


@pytest.mark.parametrize(
    ("front", "back"),
    [
        ("#1b1f23", "#f4f5f6"), ("#57606a", "#ffffff"), ("#57606a", "#f4f5f6"), ("#0b57d0", "#ffffff"),
        ("#0b57d0", "#f4f5f6"), ("#1b1f23", "#e3e6e9"), ("#ffffff", "#1a7f37"), ("#ffffff", "#8a5a00"),
        ("#ffffff", "#b3261e"), ("#e6e8ea", "#14171a"), ("#a9b2bb", "#1f2429"), ("#a9b2bb", "#14171a"),
        ("#8cb8ff", "#1f2429"), ("#e6e8ea", "#3a424a"),
    ],
)  # fmt: skip
def test_has_contrast_enough_for_small_letters(front: str, back: str) -> None:
    """WCAG 2.2, 1.4.3: 4.5 to 1."""
    template = (settings.BASE_DIR / "templates/email/digest.html").read_text()
    assert front in template
    assert back in template
    light, dark = sorted((luminance(front), luminance(back)), reverse=True)
    assert (light + 0.05) / (dark + 0.05) >= 4.5


def test_says_the_same_as_text() -> None:
    busy_week()
    ImprovementFactory(title="a   b")
    digest = told(reader("carol", Role.ARCHITECTURE, Role.LEAD))
    text = rendering.as_text(digest)
    for chapter in digest.chapters:
        for one in chapter.sections:
            for line in one.lines:
                assert line.text in text
                assert line.detail in text
                assert line.url in text
    assert "\n\n\n" not in text
    assert "&lt;" not in text
