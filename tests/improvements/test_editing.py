"""A person's patch in place of the author's, and what is known around an improvement."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.utils import timezone
from django.utils.html import escape

from approvals import requests
from approvals.models import ApprovalRequest, AuditEntry, Letter
from improvements import authoring, circumstances, editing, releasing
from improvements.editing import CannotEdit
from improvements.models import Improvement, LostRace, State
from improvements.outcome import Outcome, Verdict
from monitoring import budgeting
from monitoring.models import QualityReport
from tests.improvements.world import Shop
from tests.monitoring.factories import MANIFEST, samples
from tests.people import FRESH, give_second_factor

pytestmark = pytest.mark.django_db

HIGH: dict[str, Any] = {"lines": 500, "traffic_share": 1.0}
EDITED = """\
diff --git a/app.py b/app.py
--- a/app.py
+++ b/app.py
@@ -1 +1 @@
-price = 1
+price = 7
"""


@pytest.fixture
def shop(shop: Shop) -> Shop:
    """A shop that says in its manifest what is protected."""
    shop.commit({"runerogue.toml": MANIFEST})
    releasing.deploy(shop.service, newest=True)
    return shop


def edit(shop: Shop, who: User, diff: str = EDITED, because: str = "smaller, as carol asked") -> State:
    return editing.edit(shop.improvement, diff=diff, actor=who, because=because)


def test_goes_the_whole_way_again_with_what_a_person_wrote(shop: Shop, bob: User, carol: User) -> None:
    User.objects.filter(pk=carol.pk).update(email="carol@example.org")
    shop.propose(**HIGH)
    shop.tick()
    request = ApprovalRequest.objects.get()
    requests.ask_for_changes(request, person=carol, how=FRESH, reason="smaller")
    assert shop.tick() is State.AWAITING_APPROVAL
    assert edit(shop, bob) is State.AUTHORING
    request.refresh_from_db()
    assert (request.state, request.because) == ("void", "bob edited the patch: smaller, as carol asked")
    outcome = shop.run(authoring.write)
    assert isinstance(outcome, Outcome)
    assert outcome.verdict is Verdict.PASS, outcome.reason
    assert shop.repository.text(shop.improvement.head_commit, "app.py") == "price = 7\n"
    assert shop.improvement.diff.endswith("-price = 1\n+price = 7\n")
    assert list(shop.improvement.edited_by.all()) == [bob]
    assert outcome.evidence[0].content["places"] == {"app.py": [0]}
    entry = AuditEntry.objects.get(action="improvement.edited")
    assert (entry.actor, entry.because) == ("bob", "smaller, as carol asked")


def test_is_edited_on_a_page_that_loses_nothing(shop: Shop, bob: User, carol: User, client: Client) -> None:
    shop.propose(**HIGH)
    shop.tick()
    request = ApprovalRequest.objects.get()
    requests.ask_for_changes(request, person=carol, how=FRESH, reason="Make it <smaller>.")
    page = f"/admin/improvements/improvement/{shop.improvement.pk}/edit/"
    client.force_login(bob)
    shown = client.get(page).content.decode()
    assert "Make it &lt;smaller&gt;." in shown
    assert escape(shop.improvement.diff.splitlines()[0]) in shown
    broken = EDITED.replace("-price = 1", "-price = 2").replace("\n", "\r\n")
    refused = client.post(page, {"diff": broken, "because": "smaller"}).content.decode()
    assert "Not taken. The patch can&#x27;t be applied" in refused
    assert "-price = 2" in refused
    sent = {"diff": EDITED.replace("\n", "\r\n"), "because": "smaller"}
    assert "Your patch is taken." in client.post(page, sent, follow=True).content.decode()
    shop.reload()
    assert shop.improvement.state == State.AUTHORING
    assert "this is" in client.get(page).content.decode()
    client.force_login(User.objects.create(username="guest", is_staff=True))
    assert client.post(page, sent).status_code == 302
    assert AuditEntry.objects.filter(action="improvement.edited").count() == 1


def test_tells_the_signers_and_lets_nobody_sign_their_own_edit(shop: Shop, carol: User) -> None:
    User.objects.filter(pk=carol.pk).update(email="carol@example.org")
    shop.propose(**HIGH)
    shop.tick()
    requests.approve(ApprovalRequest.objects.get(), person=carol, how=FRESH, reason="I read it.")
    edit(shop, carol)
    assert Letter.objects.filter(person=carol, subject__startswith="Your signature is void").count() == 1
    shop.patch({"app.py": "price = 7\n" + "spare = 0\n" * 499})
    Improvement.objects.filter(pk=shop.improvement.pk).update(state=State.AWAITING_APPROVAL)
    shop.tick()
    again = ApprovalRequest.objects.get(state="open")
    with pytest.raises(requests.Refused, match="Nobody signs what they edited"):
        requests.approve(again, person=carol, how=FRESH, reason="Mine.")


def test_takes_no_signature_from_a_tab_that_shows_the_patch_before_it_was_edited(
    shop: Shop, bob: User, carol: User, client: Client
) -> None:
    shop.propose(**HIGH)
    shop.tick()
    request = ApprovalRequest.objects.get()
    page = f"/admin/approvals/approvalrequest/{request.pk}/change/"
    client.force_login(carol)
    give_second_factor(client)
    assert request.fingerprint in client.get(page).content.decode()
    edit(shop, bob)
    sent = {"decision": "approve", "reason": "I read it.", "fingerprint": request.fingerprint}
    said = client.post(page, sent).content.decode()
    assert "Not recorded. This request is void" in said
    assert "bob edited the patch: smaller, as carol asked" in said
    assert not request.signatures.exists()


def named(path: str, old: str = "price = 1") -> str:
    return EDITED.replace("app.py", path).replace("-price = 1", f"-{old}")


NEW = "diff --git a/{0} b/{0}\nnew file mode 100644\n--- /dev/null\n+++ b/{0}\n@@ -0,0 +1 @@\n+one\n"
CANNOT = {
    "nothing": ("", "Give a unified diff"),
    "no diff": ("price = 7", "can't be applied"),
    "another file": (named("app.py", "price = 9"), "can't be applied"),
    "a protected path": (NEW.format("approvals/policy.py"), "may not"),
    "outside": (NEW.format("../../evil.py"), "can't be applied"),
    "a link": (NEW.format("evil.py").replace("100644", "120000"), "symbolic link"),
    "too long": (EDITED + " " * editing.LONGEST_DIFF, "at most"),
    "bytes": (EDITED.replace("price = 7", "price = \0"), "no text"),
}


@pytest.mark.parametrize("what", CANNOT)
def test_takes_no_patch_that_does_not_fit_or_may_not(shop: Shop, bob: User, what: str) -> None:
    shop.propose()
    diff, why = CANNOT[what]
    with pytest.raises(CannotEdit, match=why):
        edit(shop, bob, diff)
    assert shop.reload().state == State.AWAITING_APPROVAL
    assert not shop.improvement.edited_diff


def test_takes_it_from_who_may_with_a_reason_while_it_waits(shop: Shop, bob: User, alice: User) -> None:
    shop.propose()
    with pytest.raises(CannotEdit, match="alice may not"):
        edit(shop, alice)
    with pytest.raises(CannotEdit, match="Say what you changed"):
        edit(shop, bob, because=" ")
    with pytest.raises(CannotEdit, match="as it is already"):
        edit(shop, bob, shop.improvement.diff)
    Improvement.objects.update(state=State.STAGING)
    shop.reload()
    with pytest.raises(CannotEdit, match="this is staging"):
        edit(shop, bob)


def test_loses_the_race_with_a_start(shop: Shop, bob: User, monkeypatch: pytest.MonkeyPatch) -> None:
    shop.propose()
    tried = editing.tried

    def meanwhile(improvement: Improvement, diff: str) -> str:
        Improvement.objects.update(state=State.ROLLING_OUT)
        return tried(improvement, diff)

    monkeypatch.setattr(editing, "tried", meanwhile)
    with pytest.raises(LostRace):
        edit(shop, bob)
    assert shop.reload().state == State.ROLLING_OUT
    assert not shop.improvement.edited_diff


# --- What is known around it ---------------------------------------------------------------------------------------


def report(shop: Shop, kind: str, content: dict[str, Any], commit: str, **fields: Any) -> None:
    QualityReport.objects.create(
        service=shop.service, commit=commit, kind=kind, content=content, source="CI", sha256=str(content)[:64], **fields
    )


def test_voids_a_signature_when_the_branch_has_a_new_vulnerability(shop: Shop, carol: User) -> None:
    shop.propose(**HIGH)
    report(shop, "sarif", {"vulnerabilities": 1, "vulnerable": ["CVE-1"]}, shop.improvement.base_commit)
    shop.tick()
    requests.approve(ApprovalRequest.objects.get(), person=carol, how=FRESH, reason="I know.")
    report(shop, "sarif", {"vulnerabilities": 2, "vulnerable": ["CVE-1", "CVE-2"]}, shop.improvement.base_commit)
    assert shop.tick() is State.AWAITING_APPROVAL
    old, new = ApprovalRequest.objects.order_by("pk")
    assert (old.state, new.state) == ("void", "open")
    assert "CVE-2" in old.because
    assert "CVE-1," not in old.because


def test_counts_a_change_as_security_while_a_vulnerability_is_open(shop: Shop) -> None:
    shop.propose()
    report(shop, "sarif", {"vulnerabilities": 1, "vulnerable": ["CVE-1"]}, shop.improvement.base_commit)
    assert shop.tick() is State.AWAITING_APPROVAL
    request = ApprovalRequest.objects.get()
    assert (request.tier, "security" in request.categories) == ("low", True)
    assert "A change about security never goes ahead without a person" in request.needs.reason


def test_knows_checks_that_fail_of_branch_and_patch(shop: Shop) -> None:
    shop.propose()
    assert circumstances.read(shop.improvement, timezone.now()).failing_checks == frozenset()
    failed = {"passed": [], "failed": ["test_price"], "skipped": 0}
    report(shop, "junit", failed, shop.improvement.head_commit, on_main=False)
    assert circumstances.read(shop.improvement, timezone.now()).failing_checks == {"tests of the patch"}
    report(shop, "junit", failed, shop.improvement.base_commit)
    assert circumstances.read(shop.improvement, timezone.now()).failing_checks == {
        "tests of the patch",
        "tests of the branch",
    }


def test_knows_the_same_error_budget_that_holds_a_rollout(shop: Shop) -> None:
    at, whole = timezone.now(), {"endpoint": "*", "method": "*"}
    shop.propose()
    assert circumstances.read(shop.improvement, at).budget_left is None, "nothing is known without traffic"
    # In the first and in the last minute of the period, a thousand requests in all.
    for until, failed in ((at - timedelta(days=28) + timedelta(minutes=2), 0.0), (at, 0.5)):
        samples(shop.service, "requests_per_second", [500.0], until=until, **whole)
        samples(shop.service, "error_ratio", [failed], until=until, **whole)
        # A single endpoint's series is a part of the service's.
        samples(shop.service, "error_ratio", [1.0], until=until, endpoint="/players")
    known = circumstances.read(shop.improvement, at)
    assert known.budget_exhausted
    assert "is gone: 250 of 1,000" in str(budgeting.holds(shop.service.name, at).hold)
