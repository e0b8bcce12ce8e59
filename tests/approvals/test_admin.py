from __future__ import annotations

import datetime as dt
import html
import re
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.core.exceptions import ObjectDoesNotExist
from django.db import connection, transaction
from django.template.loader import render_to_string
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils.timezone import now

from approvals import audit, deputies, policy, requests, subjects
from approvals.models import ApprovalRequest, AuditEntry, Comment, Signature
from approvals.policy import Role, Tier
from approvals.subjects import Description, SubjectRef
from tests.people import FRESH, give_second_factor, person

pytestmark = pytest.mark.django_db

LIST = reverse("admin:approvals_approvalrequest_changelist")
LOG = reverse("admin:approvals_auditentry_changelist")
DIFF = """\
diff --git a/realm/views.py b/realm/views.py
--- a/realm/views.py
+++ b/realm/views.py
@@ -1,2 +1,2 @@
 def players(request):
-    return Player.objects.all()
+    return Player.objects.select_related("guild")  # <script>alert(1)</script>
"""
FACTS = {
    "what": "Players are read with their guild",
    "why": "51 queries a request",
    "proof": [{"name": "Tests", "verdict": "PASS", "summary": "34 passed"}],
    "risk": 0.31,
    "risk_drivers": ["touches a view (+0.10)"],
    "on_approve": "10 % of the traffic goes to the candidate.",
    "undo": "Traffic goes back at once.",
    "diff": DIFF,
}


@pytest.fixture(autouse=True)
def _plain_static_files(settings: Any, tmp_path: Path) -> None:
    # The manifest is made by collectstatic, which a test run does without.
    settings.STATIC_ROOT = tmp_path
    settings.STORAGES = {
        **settings.STORAGES,
        "staticfiles": {"BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"},
    }


def ask(number: int = 1, tier: Tier = Tier.HIGH, **more: Any) -> ApprovalRequest:
    return requests.open_request(
        SubjectRef("thing", number, f"Prefetch guilds {number}", "/things/1"),
        requirement=policy.required(tier),
        fingerprint="f" * 64,
        facts=FACTS,
        expires_at=now() + dt.timedelta(hours=72),
        **{"proposed_by": None, **more},
    )


def page_of(request: ApprovalRequest) -> str:
    return reverse("admin:approvals_approvalrequest_change", args=[request.pk])


def as_person(user: User) -> Client:
    client = Client()
    client.force_login(user)
    give_second_factor(client)
    return client


def decide(client: Client, request: ApprovalRequest, decision: str = "approve", **form: str) -> str:
    sent = {"decision": decision, "reason": "sound", "fingerprint": request.fingerprint, **form}
    return client.post(page_of(request), sent, follow=True).content.decode()


def test_shows_a_signer_everything_before_the_decision(alice: User, carol: User) -> None:
    page = as_person(carol).get(page_of(ask(proposed_by=alice))).content.decode()
    for text in (
        "Players are read with their guild",
        "51 queries a request",
        "34 passed",
        "touches a view",
        "0.31",
        "Proposed by alice",
        "Missing: the architecture team (carol)",
        "10 % of the traffic",
        "Traffic goes back at once",
        'value="approve"',
        'value="reject"',
        "select_related(&quot;guild&quot;)",
    ):
        assert text in page, text
    assert '<tr class="diff-added">' in page
    assert '<tr class="diff-removed">' in page
    assert "<script>alert" not in page


def test_names_only_those_who_can_still_sign(bob: User, carol: User, dave: User) -> None:
    request = requests.approve(ask(tier=Tier.CRITICAL, proposed_by=bob), person=dave, how=FRESH, reason="sound")
    assert "lead developer (carol)" in as_person(carol).get(page_of(request)).content.decode()


def test_shows_a_subject_as_it_is_now_or_without_when_it_is_gone(carol: User, monkeypatch: pytest.MonkeyPatch) -> None:
    def describe(pk: int) -> Description:
        if pk == 2:
            raise ObjectDoesNotExist
        return Description("A thing", "/things/1", "waiting for people")

    monkeypatch.setitem(subjects.KNOWN, "thing", subjects.Subject(lambda pk: None, describe))
    client = as_person(carol)
    assert "(now: waiting for people)" in client.get(page_of(ask(1))).content.decode()
    assert client.get(page_of(ask(2))).status_code == 200


def test_has_no_inline_style_or_script(carol: User) -> None:
    client = as_person(carol)
    request = ask()
    for address in (page_of(request), LIST, LOG, reverse("admin:approvals_auditentry_change", args=[1])):
        page = client.get(address).content.decode()
        ours = page[page.index('id="content"') :] if 'id="content"' in page else page
        assert not re.search(r"<script(?![^>]*\bsrc=)[^>]*>(?!\s*</script>)", ours), address
        assert not re.search(r"\sstyle=|\son\w+=|<style", ours), address


def test_approves_by_one_post(carol: User) -> None:
    request = ask()
    assert "Your decision is recorded. The request is approved." in decide(as_person(carol), request)
    request.refresh_from_db()
    assert request.state == "approved"
    assert request.signatures.get().reason == "sound"


def test_rejects_by_one_post(carol: User) -> None:
    request = ask()
    assert "The request is rejected." in decide(as_person(carol), request, "reject", reason="not <b>now</b>")
    page = as_person(carol).get(page_of(request)).content.decode()
    assert "not &lt;b&gt;now&lt;/b&gt;" in page
    assert 'name="decision" value="approve"' not in page
    assert 'name="decision" value="comment"' in page, "a comment may follow"


def test_tells_which_rule_refused_and_keeps_the_text(alice: User, carol: User, mallory: User) -> None:
    own = ask(proposed_by=carol)
    assert "Not recorded. Nobody signs what they proposed" in decide(as_person(carol), own)
    assert "has no such role" in decide(as_person(mallory), own)
    refused = AuditEntry.objects.filter(action="approval.refused").order_by("sequence")
    assert [(one.actor, one.outcome) for one in refused] == [("carol", "refused"), ("mallory", "refused")]
    other = ask(2)
    assert "needs a written reason" in decide(as_person(carol), other, reason=" ")
    kept = decide(as_person(carol), other, fingerprint="e" * 64, reason="my long thoughts")
    assert "not what is asked now" in kept
    assert "my long thoughts" in kept
    assert "choose one of the buttons" in decide(as_person(carol), other, "delete")
    assert set(ApprovalRequest.objects.values_list("state", flat=True)) == {"open"}


@pytest.mark.parametrize("decision", ["approve", "reject", "ask-for-changes", "comment"])
def test_refuses_a_text_that_is_too_long_in_words(decision: str, carol: User) -> None:
    said = decide(as_person(carol), ask(), decision, reason="x" * 4001)
    assert "Not recorded. A text has at most 4000 characters here, and this has 4001." in said
    assert not Signature.objects.exists()
    assert not Comment.objects.exists()


def test_says_that_a_rejection_stays_and_what_to_do(carol: User) -> None:
    request = ask()
    decide(as_person(carol), request, "reject", reason="not now")
    assert "nobody takes a rejection back, whoever gave it" in as_person(carol).get(page_of(request)).content.decode()
    assert "nobody takes a rejection back" in decide(as_person(carol), request, "revoke", reason="yes after all")


def test_offers_no_button_to_who_may_not(alice: User, mallory: User) -> None:
    request = ask()
    for user in (alice, mallory):
        page = as_person(user).get(page_of(request)).content.decode()
        assert 'value="approve"' not in page
        assert "no such role" in page


def test_wants_the_cross_site_token(carol: User) -> None:
    request = ask()
    client = Client(enforce_csrf_checks=True)
    client.force_login(carol)
    assert client.post(page_of(request), {"decision": "approve", "reason": "x"}).status_code == 403
    request.refresh_from_db()
    assert request.state == "open"


def test_shows_nothing_to_people_without_the_right() -> None:
    request = ask()
    stranger = User.objects.create(username="stranger", is_staff=True)
    for address in (page_of(request), LIST, LOG):
        assert as_person(stranger).get(address).status_code == 403
        assert Client().get(address).status_code == 302
    assert as_person(stranger).post(page_of(request), {"decision": "approve"}).status_code == 403


def test_lists_what_awaits_me(carol: User, bob: User) -> None:
    ask(1)
    ask(2, Tier.CRITICAL)
    ask(3, proposed_by=carol)
    mine = as_person(carol).get(LIST, {"awaiting": "me"}).content.decode()
    assert "Prefetch guilds 1" in mine
    assert "Prefetch guilds 2" in mine
    assert "Prefetch guilds 3" not in mine
    assert re.search(r'Awaiting my signature <span class="count">2</span>', mine)
    bobs = as_person(bob).get(LIST).content.decode()
    assert re.search(r'Awaiting my signature <span class="count">1</span>', bobs)
    assert "Prefetch guilds 3" in bobs


@pytest.mark.parametrize("name", ["approvalrequest", "auditentry"])
def test_lets_nobody_add_edit_or_delete(name: str, mallory: User) -> None:
    request = ask()
    client = as_person(mallory)
    pk = request.pk if name == "approvalrequest" else AuditEntry.objects.get().pk
    assert client.get(reverse(f"admin:approvals_{name}_add")).status_code == 403
    assert client.post(reverse(f"admin:approvals_{name}_delete", args=[pk]), {"post": "yes"}).status_code == 403
    before = AuditEntry.objects.get().payload
    client.post(reverse(f"admin:approvals_{name}_change", args=[pk]), {"because": "x", "title": "x"})
    assert AuditEntry.objects.get().payload == before
    assert "delete_selected" not in client.get(reverse(f"admin:approvals_{name}_changelist")).content.decode()


def test_sends_a_lost_reader_to_the_list(carol: User) -> None:
    answer = as_person(carol).get(reverse("admin:approvals_approvalrequest_change", args=[999]), follow=True)
    assert "There is no approval request 999" in answer.content.decode()


def write(count: int) -> None:
    with transaction.atomic():
        for number in range(count):
            audit.record("odd" if number % 2 else "even", None, because=f"reason {number}", data={"number": number})


def numbers(page: str) -> list[int]:
    return [int(found) for found in re.findall(r"/auditentry/(\d+)/change/", page)]


def follow(client: Client, address: str, relation: str) -> list[list[int]]:
    """The entries of this page and of those behind its links of this relation."""
    found = []
    while True:
        page = client.get(LOG + address).content.decode()
        found.append(numbers(page))
        link = re.search(rf'<a href="([^"]*)" rel="{relation}"', page)
        if not link:
            return found
        address = html.unescape(link[1])


def test_says_what_is_looked_for_and_how_to_get_rid_of_it(carol: User) -> None:
    write(3)
    client = as_person(carol)
    page = client.get(LOG, {"q": "reas", "action": "odd", "correlation": "x", "before": "no number"}).content.decode()
    for name, value in (("words", "reas"), ("action", "odd"), ("correlation", "x")):
        assert f"{name}: <strong>{value}</strong>" in page
    assert 'href="?q=reas&amp;correlation=x"' in page
    assert '<input type="hidden" name="correlation" value="x">' in page
    assert "Words that begin so: reas*" in page
    assert "2 entries match" in client.get(LOG, {"q": "reas*", "action": "even"}).content.decode()
    assert "Nothing matches" in client.get(LOG, {"q": "nothing*"}).content.decode()
    assert "Nothing matches" in client.get(LOG, {"q": "%!"}).content.decode()


def test_pages_through_the_log_newest_first(carol: User) -> None:
    client = as_person(carol)
    client.get(LOG)  # which is noted, once: entry 1
    write(250)
    assert follow(client, "", "next") == [list(range(251, 151, -1)), list(range(151, 51, -1)), list(range(51, 0, -1))]
    assert follow(client, "?action=odd", "next")[1] == list(range(51, 1, -2))
    assert follow(client, "?after=0", "prev")[:2] == [list(range(100, 0, -1)), list(range(200, 100, -1))]
    assert follow(client, "?after=0", "prev")[2] == list(range(251, 151, -1))  # a full page, and the newest one
    assert numbers(client.get(LOG, {"q": "reason 249"}).content.decode()) == [251]
    assert numbers(client.get(LOG, {"actor": "nobody"}).content.decode()) == []
    assert "odd" in client.get(LOG).content.decode()


def test_filters_the_log_by_subject(carol: User) -> None:
    request = ask()
    write(3)
    link = f"{LOG}?subject_kind=approvals.approvalrequest&subject_id={request.pk}"
    client = as_person(carol)
    assert numbers(client.get(link).content.decode()) == [1]
    assert link.replace("&", "&amp;") in client.get(page_of(request)).content.decode()


def test_shows_an_entry_with_before_and_after(carol: User) -> None:
    entry = audit.record("a", carol, actor=carol, was={"tier": "low"}, became={"tier": "high"}, data={"é": "<b>"})
    page = as_person(carol).get(reverse("admin:approvals_auditentry_change", args=[entry.pk])).content.decode()
    assert "<strong>tier: </strong>low" in page
    assert "<strong>tier: </strong>high" in page
    assert "<strong>é: </strong>&lt;b&gt;" in page
    assert entry.hash in page


def queries(client: Client, address: str) -> int:
    with CaptureQueriesContext(
        connection,
    ) as found:
        assert client.get(address).status_code == 200
    return len(found)


def test_keeps_its_query_budget_however_much_there_is(carol: User, dave: User) -> None:
    client = as_person(carol)
    request = ask(1, Tier.CRITICAL)
    requests.approve(request, person=dave, how=FRESH, reason="sound")
    write(5)
    client.get(LOG)  # the first look of ten minutes is noted
    before = {address: queries(client, address) for address in (LIST, LOG, page_of(request))}
    for number in range(2, 30):
        requests.approve(ask(number, Tier.CRITICAL), person=dave, how=FRESH, reason="sound")
    write(150)
    after = {address: queries(client, address) for address in before}
    assert after == before
    assert after[LIST] <= 14
    assert after[LOG] <= 12
    assert after[page_of(request)] <= 18


# --- All critical requests on one page ----------------------------------------------------------------------------

CRITICAL = reverse("admin:approvals_approvalrequest_critical")


def test_shows_every_critical_request_that_waits_and_no_other(bob: User, dave: User) -> None:
    client = as_person(dave)
    assert "No critical change waits" in client.get(CRITICAL).content.decode()
    first = requests.approve(ask(1, Tier.CRITICAL), person=bob, how=FRESH, reason="sound")
    ask(2, Tier.CRITICAL)
    ask(3, Tier.HIGH)
    requests.reject(ask(4, Tier.CRITICAL), person=dave, how=FRESH, reason="no")
    page = client.get(CRITICAL).content.decode()
    assert "2 critical requests" in page
    assert "2 can be signed by you now" in page
    for number, shown in [(1, True), (2, True), (3, False), (4, False)]:
        assert (f"Prefetch guilds {number}</a>" in page) is shown
    card = page[page.index(f'id="request-{first.pk}"') :]
    assert "Signatures so far: 1 of 2" in card
    assert "Missing: the CTO (dave)" in card
    assert page.count('name="decision" value="approve"') == 2
    assert 'type="checkbox"' not in page[page.index("content-main") :], "nothing is signed by selecting it"


def test_signs_one_of_them_and_leaves_the_others(bob: User, dave: User) -> None:
    first, second = ask(1, Tier.CRITICAL), ask(2, Tier.CRITICAL)
    client = as_person(dave)
    sent = {"request": first.pk, "decision": "approve", "reason": "sound", "fingerprint": first.fingerprint}
    answer = client.post(CRITICAL, sent)
    assert answer.headers["Location"] == f"{CRITICAL}#request-{first.pk}"
    assert first.signatures.get().person == dave
    assert not second.signatures.exists()
    page = client.post(CRITICAL, {**sent, "request": second.pk, "reason": ""}).content.decode()
    assert "needs a written reason" in page
    assert not second.signatures.exists()
    high = ask(3, Tier.HIGH)
    refused = client.post(CRITICAL, {**sent, "request": high.pk}, follow=True).content.decode()
    assert "none of the critical requests" in refused


def test_asks_for_the_code_of_one_of_them_and_keeps_its_reason(dave: User) -> None:
    client = Client()
    client.force_login(dave)
    first, second = ask(1, Tier.CRITICAL), ask(2, Tier.CRITICAL)
    sent = {"request": first.pk, "decision": "approve", "reason": "I read it.", "fingerprint": first.fingerprint}
    answer = client.post(CRITICAL, sent)
    assert "/admin/second-factor/" in answer.headers["Location"]
    assert f"request-{first.pk}" in answer.headers["Location"]
    page = client.get(CRITICAL).content.decode()
    cards = page.split('<article class="card"')
    assert ["I read it." in card for card in cards] == [False, True, False]
    assert second.pk > first.pk


def test_costs_a_bounded_number_of_queries_for_each_critical_request(dave: User) -> None:
    client = as_person(dave)
    ask(1, Tier.CRITICAL)
    one = queries(client, CRITICAL)
    for number in range(2, 30):
        ask(number, Tier.CRITICAL)
    many = queries(client, CRITICAL)
    assert "9 more" in client.get(CRITICAL).content.decode()
    assert one <= 22
    assert (many - one) / 19 <= 8


# --- What else is decided on the decision page --------------------------------------------------------------------


def test_asks_for_changes_takes_back_and_comments_on_the_page(carol: User) -> None:
    request, client = ask(), as_person(carol)
    assert "The request is changes asked for." in decide(client, request, "ask-for-changes", reason="Name it.")
    assert "Take your signature back" in client.get(page_of(request)).content.decode()
    assert "The request is open." in decide(client, request, "revoke", reason="It is named.")
    shown = decide(client, request, "comment", reason="Looks <small>.")
    assert "Your comment is recorded" in shown
    assert "Looks &lt;small&gt;." in shown
    assert request.comments.get().person == carol


def test_lets_a_deputy_choose_with_whose_right(bob: User, carol: User) -> None:
    begin = now() - dt.timedelta(hours=1)
    person("clara", Role.ARCHITECTURE)
    deputy = person("dora", Role.ARCHITECTURE)
    deputies.name_deputy(
        principal=carol, deputy=deputy, role=None, since=begin, until=now() + dt.timedelta(days=1), because="leave",
        actor=carol,
    )  # fmt: skip
    request, client = ask(), as_person(deputy)
    assert "on behalf of carol" in client.get(page_of(request)).content.decode()
    decide(client, request, **{"as": str(carol.pk)})
    signature = request.signatures.get()
    assert (signature.person, signature.on_behalf_of) == (deputy, carol)
    assert "on behalf of <strong>carol</strong>" in client.get(page_of(request)).content.decode()


def test_says_in_words_what_is_forbidden_gone_or_from_another_sign_in(db: None) -> None:
    nora = person("nora")
    client, careful = Client(raise_request_exception=False), Client(enforce_csrf_checks=True)
    for one in (client, careful):
        one.force_login(nora)
    answers = {
        403: client.get("/admin/approvals/approvalrequest/"),
        404: client.get("/admin/nothing/"),
        4030: careful.post("/admin/second-factor/", {"code": "123456"}),
    }
    words = {403: "signed in as <strong>nora</strong>", 404: "nothing at this address", 4030: "from another sign-in"}
    for kind, answer in answers.items():
        assert answer.status_code == int(str(kind)[:3])
        assert words[kind] in answer.content.decode()
        assert 'href="/admin/"' in answer.content.decode()
    assert 'href="/admin/"' in render_to_string("500.html")
