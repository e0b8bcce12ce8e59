"""Reviews: made once, escalated in order, signed off by the right people."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from zoneinfo import ZoneInfo

import pytest
from django.contrib.auth.models import User
from django.db import IntegrityError, transaction
from django.utils.timezone import now

from approvals import roles, rulebook
from approvals.models import AuditEntry, PersonSettings, TeamMember, WorkingHours
from approvals.policy import Role, Tier
from improvements.cadence import Kind
from improvements.governance import escalation, reviewing
from improvements.governance.facts import Fact, Section
from improvements.governance.reviewing import Refused
from improvements.models import Review
from tests.monitoring.notices import contact, step
from tests.people import person
from tests.racing import at_once

pytestmark = pytest.mark.django_db
AT = dt.datetime(2026, 11, 23, 0, 10, tzinfo=dt.UTC)  # a Monday, ten minutes into week 48
LONG_AGO = AT - dt.timedelta(days=1000)
PEOPLE = {Role.LEAD: "bob", Role.ARCHITECTURE: "carol", Role.CTO: "dave"}
Told = list[tuple[str, list[str]]]


@pytest.fixture(autouse=True)
def began(monkeypatch: pytest.MonkeyPatch) -> Callable[[dt.datetime | None], None]:
    """When this installation began; long ago unless a test says otherwise."""

    def begin(at: dt.datetime | None) -> None:
        monkeypatch.setattr(reviewing, "began_at", lambda: at)

    begin(LONG_AGO)
    return begin


@pytest.fixture(autouse=True)
def _short_packets(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the facts are is shown elsewhere, and each packet asks for a hundred things."""
    if "whole_packets" not in request.fixturenames:
        monkeypatch.setattr(reviewing, "COMPOSE", {kind: lambda window: [] for kind in reviewing.COMPOSE})


@pytest.fixture
def whole_packets() -> None:
    """With the facts."""


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Told:
    """Who is told of which occasion."""
    found: Told = []

    def tell(people: list[User], *, about: str, subject: str, lines: list[str], url: str, key: str) -> int:
        found.append((key.partition("-")[2].partition("-")[2], sorted(one.username for one in people)))
        assert about == "review"
        assert subject
        assert lines
        assert url.startswith("/admin/")
        return len(people)

    monkeypatch.setattr(reviewing.telling, "tell", tell)
    return found


def staffed() -> None:
    for role, name in PEOPLE.items():
        person(name, role)


def open_review(
    role: Role = Role.LEAD, *, level: int = 0, period: str = "2026-W47", due: str = "2026-11-25", kind: str = "weekly"
) -> Review:
    return Review.objects.create(
        kind=kind, period=period, title=f"Weekly review {period}", since=AT, until=AT, role=role, level=level,
        made_at=AT, due_on=dt.date.fromisoformat(due), escalates_after=dt.date.fromisoformat(due),
        facts_sha256="0" * 64,
    )  # fmt: skip


# --- Made by themselves ------------------------------------------------------------------------------------------


def test_makes_each_review_of_the_periods_that_ended_once(told: Told) -> None:
    staffed()
    made = reviewing.make_due(AT)
    assert [(one.kind, one.period, one.role) for one in made] == [
        *(("weekly", f"2026-W{week}", "lead") for week in range(42, 48)),
        *(("monthly", f"2026-{month:02}", "architecture") for month in (8, 9, 10)),
        *(("quarterly", f"2026-Q{quarter}", "cto") for quarter in (2, 3)),
        ("yearly", "2025", "cto"),
    ]
    assert [str(one.due_on) for one in (made[0], made[6], made[9], made[11])] == [
        "2026-11-26", "2026-11-30", "2026-12-07", "2026-12-14",
    ]  # fmt: skip
    assert told[0] == ("made", ["bob"])
    assert told[-1] == ("made", ["dave"])
    assert reviewing.make_due(AT) == []
    assert reviewing.make_due(AT + dt.timedelta(days=6)) == []
    assert [one.period for one in reviewing.make_due(AT + dt.timedelta(days=7))] == ["2026-W48"]


@pytest.mark.parametrize(
    ("began_days_ago", "periods"),
    [
        (None, []),
        (0, []),
        (3, ["2026-W47"]),  # a week that it saw only the end of
        (10, ["2026-W46", "2026-W47"]),
        (30, ["2026-W43", "2026-W44", "2026-W45", "2026-W46", "2026-W47", "2026-10"]),
    ],
)
def test_reviews_nothing_from_before_the_installation_began(
    began: Callable[[dt.datetime | None], None], began_days_ago: int | None, periods: list[str]
) -> None:
    began(None if began_days_ago is None else AT - dt.timedelta(days=began_days_ago))
    assert [one.period for one in reviewing.make_due(AT)] == periods


def periods_between(since: dt.date, until: dt.date) -> set[tuple[str, str]]:
    """Every period of which a day lies between, that is over by `until`: counted day by day."""
    days = [since + dt.timedelta(days=number) for number in range((until - since).days)]
    names = {
        *(("weekly", f"{day.isocalendar().year}-W{day.isocalendar().week:02}") for day in days if day.weekday() == 6),
        *(("monthly", f"{day:%Y-%m}") for day in days if (day + dt.timedelta(days=1)).day == 1),
    }
    quarters = {"03-31": "Q1", "06-30": "Q2", "09-30": "Q3", "12-31": "Q4"}
    names |= {("quarterly", f"{day.year}-{quarters[f'{day:%m-%d}']}") for day in days if f"{day:%m-%d}" in quarters}
    return names | {("yearly", f"{day.year}") for day in days if f"{day:%m-%d}" == "12-31"}


def test_fourteen_months_have_one_review_a_period_also_after_a_long_pause(
    began: Callable[[dt.datetime | None], None], told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Who has which role is not the question here, and would be asked a thousand times.
    monkeypatch.setattr(reviewing.roles, "holders", lambda asked, **_: [PEOPLE[role] for role in asked])
    since, until = dt.datetime(2026, 1, 7, 0, 10, tzinfo=dt.UTC), dt.datetime(2027, 3, 8, tzinfo=dt.UTC)
    pause = dt.date(2026, 12, 14), dt.date(2027, 1, 18)  # five weeks, over the end of a month, a quarter and a year
    began(since)
    signed = {"signed_by": person("zoe"), "signed_as": Role.LEAD, "notes": "All well."}
    at = since
    while at < until:
        if not pause[0] <= at.date() < pause[1]:
            if made := reviewing.make_due(at):
                assert not reviewing.make_due(at)  # the schedule runs it twice
            done = [one.pk for one in made if one.kind == "weekly" and one.period not in ("2026-W10", "2026-W50")]
            if done:
                Review.objects.filter(pk__in=done).update(signed_at=at, **signed)
            assert not reviewing.escalate_overdue(at) or not reviewing.escalate_overdue(at)
        at += dt.timedelta(days=1)
    known = set(Review.objects.values_list("kind", "period"))
    assert known == periods_between(since.date(), until.date() - dt.timedelta(days=1))
    assert Review.objects.count() == len(known) == AuditEntry.objects.filter(action="review.made").count()
    # Of the others nobody signs any: each goes up to the CTO, who is told once more, and then no mail repeats it.
    last = {"lead": 3, "architecture": 2, "cto": 1}
    for review in Review.objects.open().filter(due_on__lt=until.date() - dt.timedelta(days=14)):
        entries = AuditEntry.objects.about(review).filter(action="review.escalated")
        assert review.level == entries.count() == last[review.role], review
    assert len(told) == len(known) + AuditEntry.objects.filter(action="review.escalated").count()
    late = Review.objects.get(period="2026-W50")  # of the week before the pause, made after it
    assert (late.made_at.date(), late.due_on) == (pause[1], dt.date(2027, 1, 21))


def test_days_off_of_the_installation_are_no_working_days(told: Told) -> None:
    staffed()
    WorkingHours.objects.create(weekdays=[0, 1, 2, 3, 4], holidays=[dt.date(2026, 11, 26), dt.date(2026, 12, 1)])
    weekly = reviewing.make_due(AT)[5]
    assert (weekly.period, str(weekly.due_on)) == ("2026-W47", "2026-11-27")
    for day, level in {"11-28": 0, "11-30": 1, "12-01": 1, "12-03": 1, "12-04": 2}.items():
        reviewing.escalate_overdue(dt.datetime.fromisoformat(f"2026-{day}T12:00+00:00"))
        weekly.refresh_from_db()
        assert weekly.level == level, day


def test_counts_days_where_the_installation_is(began: Callable[[dt.datetime | None], None], settings) -> None:
    began(AT - dt.timedelta(days=3))
    settings.INSTALLATION_TIME_ZONE = ZoneInfo("America/New_York")  # there it is still Sunday
    assert reviewing.make_due(AT) == []
    made = reviewing.make_due(AT + dt.timedelta(hours=5))
    assert [(one.period, one.until.isoformat()) for one in made] == [("2026-W47", "2026-11-23T05:00:00+00:00")]


def test_freezes_the_facts_with_their_hash_in_the_audit_log(
    began: Callable[[dt.datetime | None], None], whole_packets: None
) -> None:
    began(AT - dt.timedelta(days=3))
    (review,) = reviewing.make_due(AT)
    entry = AuditEntry.objects.about(review).get()
    assert (entry.action, entry.data["facts_sha256"]) == ("review.made", review.facts_sha256)
    review = Review.objects.get()
    assert [section["title"] for section in review.facts][:2] == ["Health", "Alerts"]
    assert reviewing.is_as_frozen(review)
    review.facts[0]["facts"][0]["note"] += " "
    assert not reviewing.is_as_frozen(review)


def test_a_review_without_an_entry_in_the_log_is_not_as_it_was_frozen(db: None) -> None:
    assert not reviewing.is_as_frozen(open_review())


# --- Given to somebody who can ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("there", "barred", "asked"),
    [
        ([Role.LEAD, Role.ARCHITECTURE, Role.CTO], [], Role.ARCHITECTURE),
        ([Role.LEAD, Role.ARCHITECTURE, Role.CTO], ["carol"], Role.CTO),
        ([Role.LEAD, Role.CTO], [], Role.CTO),
        ([Role.LEAD], [], Role.ARCHITECTURE),  # nobody can: it stays where it belongs
        ([Role.ARCHITECTURE, Role.CTO], ["carol", "dave"], Role.ARCHITECTURE),
    ],
)
def test_an_emergency_is_reviewed_by_somebody_who_took_no_part(
    there: list[Role], barred: list[str], asked: Role, told: Told
) -> None:
    users = {PEOPLE[role]: person(PEOPLE[role], role) for role in there}
    broken_by = [users[name] for name in barred]
    facts = [Section("What happened", (Fact("Ticket", "OPS-7"),))]
    review = reviewing.review_break_glass("7", title="Glass", url="/admin/", facts=facts, broken_by=broken_by, at=AT)
    assert review is not None
    assert review.responsible[-1] is asked
    assert (str(review.due_on), review.facts[0]["facts"][0]["value"]) == ("2026-11-30", "OPS-7")
    able = [PEOPLE[asked]] if asked in there and PEOPLE[asked] not in barred else []
    assert told == [("made", able)]
    for user in broken_by:
        with pytest.raises(Refused, match="took part"):
            reviewing.sign_off(review, person=user, notes="Fine.", at=AT)
    again = reviewing.review_break_glass("7", title="Glass", url="", facts=[], broken_by=[], at=AT)
    assert again is None


def test_an_emergency_of_a_service_is_reviewed_by_its_own_people(told: Told) -> None:
    staffed()
    carol, grace = User.objects.get(username="carol"), person("grace", Role.ARCHITECTURE)
    TeamMember.objects.create(scope="shop", role=Role.ARCHITECTURE, person=grace)
    review = reviewing.review_break_glass("7", title="Glass", url="", facts=[], broken_by=[], at=AT, scope="shop")
    assert review is not None
    assert told == [("made", ["grace"])]
    assert (reviewing.awaiting(carol), reviewing.awaiting(grace)) == ([], [review])
    with pytest.raises(Refused, match="shop names its own architects, and carol is not one of them"):
        reviewing.sign_off(review, person=carol, notes="Fine.", at=AT)
    other = open_review(Role.ARCHITECTURE)
    assert (reviewing.awaiting(carol), reviewing.awaiting(grace)) == ([other], [review])
    assert reviewing.sign_off(review, person=grace, notes="Fine.", at=AT).signed_by == grace


def test_an_emergency_and_its_review_are_one_transaction(db: None) -> None:
    with transaction.atomic():
        reviewing.review_break_glass("7", title="Glass", url="", facts=[], broken_by=[], at=AT)
        transaction.set_rollback(True)
    assert not Review.objects.exists()


# --- Escalation --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("role", "steps"),
    [
        # due on Wednesday the 25th; whoever is asked next has two working days
        (Role.LEAD, {"11-25": 0, "11-26": 1, "11-30": 1, "12-01": 2, "12-03": 2, "12-04": 3, "12-31": 3}),
        (Role.ARCHITECTURE, {"11-25": 0, "11-26": 1, "11-30": 1, "12-01": 2, "12-31": 2}),
        (Role.CTO, {"11-25": 0, "11-26": 1, "12-01": 1, "12-31": 1}),
        # The system was down for a month: nobody is passed over.
        (Role.LEAD, {"12-28": 1, "12-29": 1, "12-30": 1, "12-31": 2}),
        (Role.LEAD, {"11-28": 0, "11-29": 0, "11-30": 1}),  # not at weekends
    ],
)
def test_an_overdue_review_goes_up_the_chain(role: Role, steps: dict[str, int], told: Told) -> None:
    staffed()
    review = open_review(role)
    for day, level in steps.items():
        at = dt.datetime.fromisoformat(f"2026-{day}T12:00+00:00")
        for _ in range(2):  # again changes nothing
            reviewing.escalate_overdue(at)
        review.refresh_from_db()
        assert review.level == level, day
    chain = [Role.LEAD, Role.ARCHITECTURE, Role.CTO]
    asked = [*chain[chain.index(role) + 1 :], Role.CTO][:level]
    assert told == [(f"overdue-{number}", [PEOPLE[one]]) for number, one in enumerate(asked, start=1)]
    assert AuditEntry.objects.about(review).filter(action="review.escalated").count() == len(asked)


def test_what_is_signed_off_is_not_escalated(told: Told, bob: User) -> None:
    review = reviewing.sign_off(open_review(), person=bob, notes="All well.", at=AT)
    assert reviewing.escalate_overdue(AT + dt.timedelta(days=30)) == 0
    assert not told
    assert not review.is_overdue(dt.date(2027, 1, 1))


# --- Signing off -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given_to", "level", "who", "refused"),
    [
        (Role.LEAD, 0, [Role.LEAD], ""),
        (Role.LEAD, 0, [Role.ARCHITECTURE], "for a lead developer to sign off"),
        (Role.LEAD, 0, [Role.CTO], "for a lead developer"),
        (Role.LEAD, 0, [Role.ON_CALL, Role.VIEWER], "for a lead developer"),
        (Role.LEAD, 1, [Role.LEAD], ""),
        (Role.LEAD, 1, [Role.ARCHITECTURE], ""),
        (Role.LEAD, 1, [Role.CTO], "for a lead developer or the architecture team"),
        (Role.LEAD, 2, [Role.CTO], ""),
        (Role.ARCHITECTURE, 0, [Role.LEAD], "for the architecture team"),
        (Role.ARCHITECTURE, 0, [Role.ARCHITECTURE], ""),
        (Role.ARCHITECTURE, 1, [Role.CTO], ""),
        (Role.CTO, 0, [Role.ARCHITECTURE], "for the CTO"),
        (Role.CTO, 1, [Role.CTO, Role.LEAD], ""),
        (Role.CTO, 0, [], "for the CTO"),
    ],
)
def test_who_may_sign_off(given_to: Role, level: int, who: list[Role], refused: str) -> None:
    review, frank = open_review(given_to, level=level), person("frank", *who)
    if refused:
        with pytest.raises(Refused, match=refused):
            reviewing.sign_off(review, person=frank, notes="All well.", at=AT)
        assert review not in reviewing.awaiting(frank)
        return
    assert review in reviewing.awaiting(frank)
    signed = reviewing.sign_off(review, person=frank, notes=" All well. ", at=AT)
    assert (signed.signed_by, signed.signed_at, signed.notes) == (frank, AT, "All well.")
    assert signed.signed_as in who
    assert reviewing.awaiting(frank) == []
    entry = AuditEntry.objects.about(review).get(action="review.signed")
    assert (entry.actor, entry.because, entry.data["as"]) == ("frank", "All well.", signed.signed_as)


def test_a_superuser_is_in_no_role(mallory: User) -> None:
    with pytest.raises(Refused, match="mallory has no such role"):
        reviewing.sign_off(open_review(), person=mallory, notes="Mine.", at=AT)


def test_nothing_is_signed_off_without_notes(bob: User) -> None:
    with pytest.raises(Refused, match="the notes are the review"):
        reviewing.sign_off(open_review(), person=bob, notes=" \n", at=AT)


def test_rights_are_those_of_now(bob: User) -> None:
    review = open_review()
    roles.revoke(bob, Role.LEAD)
    with pytest.raises(Refused, match="no such role"):
        reviewing.sign_off(review, person=bob, notes="All well.", at=AT)
    roles.grant(bob, Role.LEAD)
    User.objects.filter(pk=bob.pk).update(is_active=False)
    with pytest.raises(Refused, match="not active"):
        reviewing.sign_off(review, person=bob, notes="All well.", at=AT)


def test_programs_review_nothing(bob: User) -> None:
    PersonSettings.objects.create(user=bob, is_service_account=True)
    with pytest.raises(Refused, match="program"):
        reviewing.sign_off(open_review(), person=bob, notes="All well.", at=AT)


def test_is_signed_off_once(bob: User) -> None:
    review = reviewing.sign_off(open_review(), person=bob, notes="All well.", at=AT)
    with pytest.raises(Refused, match="bob signed it off already"):
        reviewing.sign_off(review, person=person("grace", Role.LEAD), notes="Me too.", at=AT)
    with pytest.raises(IntegrityError), transaction.atomic():
        Review.objects.filter(pk=review.pk).update(notes="")


# --- Races, with a thread and a connection for each ---------------------------------------------------------------


@pytest.mark.django_db(transaction=True)
def test_parallel_workers_and_signers_have_one_outcome(began: Callable[[dt.datetime | None], None]) -> None:
    began(AT - dt.timedelta(days=3))
    leads = [person(f"lead{number}", Role.LEAD) for number in range(6)]
    made = at_once(*[lambda: reviewing.make_due(AT)] * 6)
    assert sorted(len(one) for one in made) == [0, 0, 0, 0, 0, 1]
    review = Review.objects.get()
    due = AT + dt.timedelta(days=14)
    assert sorted(at_once(*[lambda: reviewing.escalate_overdue(due)] * 4)) == [0, 0, 0, 1]

    results = at_once(
        *(lambda lead=lead: reviewing.sign_off(review, person=lead, notes="All well.", at=AT) for lead in leads),
        lambda: reviewing.escalate_overdue(AT + dt.timedelta(days=30)),
    )
    signed = [one for one in results if isinstance(one, Review)]
    refused = [one for one in results if isinstance(one, Refused)]
    assert (len(signed), len(refused)) == (1, 5), results
    actions = list(AuditEntry.objects.about(review).values_list("action", flat=True))
    assert actions.count("review.signed") == 1
    assert actions.count("review.escalated") == 1 + results[-1]


# --- Who is asked ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("there", "is_told", "holes"),
    [
        ([Role.LEAD, Role.ARCHITECTURE, Role.CTO, Role.ON_CALL], True, []),
        ([Role.LEAD, Role.ARCHITECTURE, Role.CTO], True, ["On-call engineers has no active member"]),
        ([Role.LEAD, Role.ARCHITECTURE, Role.ON_CALL], True, ["no critical change can be approved"]),
        ([Role.LEAD, Role.CTO, Role.ON_CALL], True, ["no high-risk change can be approved"]),
        ([Role.ARCHITECTURE, Role.CTO, Role.ON_CALL], True, ["a medium-risk change with an inconclusive"]),
        ([Role.LEAD, Role.ARCHITECTURE, Role.CTO, Role.ON_CALL], False, ["nobody is told of alerts"]),
    ],
)
def test_says_where_nobody_is_asked(there: list[Role], is_told: bool, holes: list[str]) -> None:
    for number, role in enumerate(there):
        person(f"somebody{number}", role)
    person("gone", *Role, is_active=False)
    if is_told:
        step(contact())
    found = escalation.paths()
    assert len(found.holes) == len(holes)
    for hole, expected in zip(found.holes, holes, strict=True):
        assert expected in hole
    members = escalation.members()
    assert escalation.unmanned(members) == [hole for hole in found.holes if "The group" in hole]


def test_one_person_with_all_roles_cannot_sign_a_critical_change(db: None) -> None:
    person("zoe", *Role)
    step(contact())
    assert escalation.paths().holes == ("A critical change needs two people, and zoe alone could sign one.",)


def test_every_occasion_of_the_table_has_its_role_and_the_policy_agrees() -> None:
    assert [(path.occasion.split()[1], path.tier, path.role) for path in escalation.PATHS] == [
        ("alert", None, Role.ON_CALL),
        ("medium-risk", Tier.MEDIUM, Role.LEAD),
        ("high-risk", Tier.HIGH, Role.ARCHITECTURE),
        ("critical", Tier.CRITICAL, Role.CTO),
    ]
    for path in escalation.PATHS:
        if path.tier:
            assert rulebook.DEFAULT.tiers[path.tier].escalate_to is path.role
            row = rulebook.FLOOR.tiers[path.tier]
            assert any(path.role in slot for slot in row.people or row.if_inconclusive)


def test_says_what_the_policy_has_happen_then_and_counts_the_people_of_teams(db: None) -> None:
    TeamMember.objects.create(scope="shop", role=Role.LEAD, person=person("bob", Role.LEAD))
    found = escalation.paths()
    asked = {one.path.tier: one for one in found.standing}
    assert (asked[Tier.MEDIUM].people, asked[Tier.HIGH].people) == (("bob",), ())
    assert asked[Tier.HIGH].then.startswith("after 12 working hours the architecture team is told, and after 40 it ")
    assert found.review_chain[0] == ("a lead developer", ()), "whoever leads one service reviews not all of them"
    assert not [hole for hole in found.holes if "Lead developers" in hole]


def test_the_task_repeats_harmlessly(began: Callable[[dt.datetime | None], None]) -> None:
    from improvements.tasks import review

    began(now() - dt.timedelta(days=8))
    review()
    made = Review.objects.count()
    assert made >= 1
    review()
    assert Review.objects.count() == made
    assert set(Review.objects.values_list("kind", flat=True)) <= set(Kind)
