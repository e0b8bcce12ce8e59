"""Changing the policy: proposed by one person, signed like a critical change, and then put in force by itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from django.contrib.auth.models import User
from django.db import transaction
from django.db.models import Max
from django.urls import reverse
from django.utils.timezone import now

from approvals import audit, reminding, requests, roles, rulebook, terms
from approvals.fingerprint import fingerprint
from approvals.law import is_over
from approvals.models.policy import PolicyVersion
from approvals.models.request import ApprovalRequest
from approvals.policy import ANYBODY_SENIOR, PENDING, Category, RequestState, Subject, Terms, Tier, required
from approvals.rulebook import DEFAULT, Document
from approvals.subjects import Description, SubjectRef

KIND = "policy"


class NotProposed(ValueError):
    """The proposal was not made; the message says why."""


def propose(document: Document, *, actor: User, because: str) -> PolicyVersion:
    """Ask for `document` (from `rulebook.parse`) to be the policy. People sign it like a critical change.

    Lead developers, architects, the CTO and superusers may ask. Raises NotProposed.
    """
    because = because.strip()
    if not because:
        raise NotProposed("Say why the policy is to change: those who sign read it, and the log keeps it.")
    if not may_propose(actor):
        raise NotProposed("Only lead developers, architects, the CTO and superusers propose a policy.")
    with transaction.atomic():
        terms.change()
        held = terms.in_force()
        if document.digest == held.document.digest:
            raise NotProposed("This is the policy in force already: nothing would change.")
        version = PolicyVersion.objects.create(
            number=(PolicyVersion.objects.aggregate(last=Max("number"))["last"] or 0) + 1,
            document=document.as_json(),
            digest=document.digest,
            instead_of=held.number,
            proposed_by=actor,
            proposed_at=now(),
            because=because,
        )
        audit.record(
            "policy.proposed",
            version,
            actor=actor,
            because=because,
            data={"digest": version.digest, "instead_of": held.number, "changes": changes(held.document, document)},
        )
        _ask(version, held)
        return version


def may_propose(person: User) -> bool:
    held = roles.facts_of(person, scope=roles.ANYWHERE)
    return held.may_count and (person.is_superuser or bool(held.roles & ANYBODY_SENIOR))


def _ask(version: PolicyVersion, held: Terms) -> ApprovalRequest:
    document = rulebook.parse(version.document)
    requirement = required(Tier.CRITICAL, Subject(categories=frozenset({Category.SECURITY})), terms=held)
    before = held.document.as_text().splitlines()
    return requests.open_request(
        SubjectRef(KIND, version.number, f"Put {version} in force", page_of(version.number)),
        requirement=requirement,
        fingerprint=_fingerprint(version, held),
        proposed_by=version.proposed_by,
        facts={
            "what": "\n".join(f"{field}: {change}" for field, change in changes(held.document, document).items()),
            "why": version.because,
            "risk_drivers": ["the policy decides what goes live without a person"],
            "on_approve": "It is in force at once. Every request that was asked under another policy is asked again.",
            "undo": "Propose the policy that is in force now once more; it takes the same signatures.",
            "diff": rulebook.unified(before, document.as_text().splitlines()),
        },
        categories=[Category.SECURITY],
        expires_at=requests.expiry("", Tier.CRITICAL, now()),
    )


def _fingerprint(version: PolicyVersion, held: Terms) -> str:
    return fingerprint(
        patch=version.digest, evidence=[f"in place of policy {version.instead_of}"], policy_version=held.version
    )


def put_in_force(number: int) -> PolicyVersion | None:
    """Put a proposed policy in force if its signatures hold now; None when they don't, or when it came too late.

    All is checked again under locks. Of several at once, one does it.
    """
    with transaction.atomic():
        terms.change()
        version = PolicyVersion.objects.select_for_update(no_key=True).get(number=number)
        request = ApprovalRequest.objects.about(KIND, number).order_by("-pk").first()
        held = terms.in_force()
        if version.in_force_since is not None or request is None or request.policy_version != held.version:
            return None
        standing = requests.standing(request, _fingerprint(version, held))
        if not standing.satisfied:
            return None
        document = rulebook.parse(version.document)
        # The floor is not the document's to lower, and a stored one is believed no more than any other.
        if document.digest != version.digest:
            raise rulebook.PolicyError(
                (rulebook.Mistake("digest", "it is not that of the document", "propose it anew"),)
            )
        requests.used(request, standing)
        version.in_force_since = now()
        version.save(update_fields=["in_force_since"])
        audit.record(
            "policy.in_force",
            version,
            because=standing.why,
            was={"number": held.number, "digest": held.document.digest},
            became={"number": version.number, "digest": version.digest},
            data={"changes": changes(held.document, document), "request": request.pk},
        )
        return version


def put_signed_in_force() -> int:
    """Put in force what is signed and was forgotten: whoever signed last may have been cut off. How many that were."""
    signed = ApprovalRequest.objects.filter(subject_kind=KIND, state="approved").values_list("subject_id", flat=True)
    return sum(
        put_in_force(version.number) is not None
        for version in PolicyVersion.objects.proposed().filter(number__in=list(signed))
    )


def decided(number: int) -> None:
    """Somebody signed or refused a proposal."""
    put_in_force(number)
    void_overtaken()


def void_overtaken() -> int:
    """Void the proposals that were asked under other terms than hold now, and tell who signed and who proposed them.

    A proposal says what becomes otherwise than it is: once that has changed, it is not what people read and signed. How
    many that were.
    """
    voided = 0
    undecided = ApprovalRequest.objects.filter(
        subject_kind=KIND, started_at=None, state__in=[*PENDING, RequestState.APPROVED]
    )
    for pk in list(undecided.exclude(policy_version=terms.in_force().version).values_list("pk", flat=True)):
        with transaction.atomic():
            terms.stay()
            held = terms.in_force()
            row = undecided.exclude(policy_version=held.version).select_for_update(no_key=True).filter(pk=pk).first()
            if row is not None:
                version = PolicyVersion.objects.select_related("proposed_by").get(number=row.subject_id)
                because = why_overtaken(version, row, held)
                requests.void(row, because, tell_signers=True)
                subject = f"Your proposal is void: {version}"
                lines = [because, "Its page offers to propose it again, compared with what is in force now."]
                reminding.tell(row, [version.proposed_by], "overtaken", subject, lines=lines)
                voided += 1
    return voided


def why_overtaken(version: PolicyVersion, row: ApprovalRequest, held: Terms) -> str:
    if version.instead_of != held.number:
        was = f"policy {version.instead_of}" if version.instead_of else "the policy as shipped"
        return f"It was proposed in place of {was}, and policy {held.number} has come into force since."
    return (
        f"The settings beside the policy have changed since it was proposed: {row.policy_version} held then, "
        f"{held.version} holds now."
    )


def describe(number: int) -> Description:
    version = PolicyVersion.objects.get(number=number)
    return Description(str(version), page_of(number), state_of(version, terms.in_force()))


AGAIN = "Whoever still wants it proposes it again: the page of the policy offers that."


def may_propose_again(version: PolicyVersion, request: ApprovalRequest | None, held: Terms) -> bool:
    """Whether the document of a version can be asked for once more: it is not in force, nor being asked for."""
    return version.number != held.number and (request is None or request.started_at is not None or is_over(request))


def state_of(version: PolicyVersion, held: Terms) -> str:
    """What became of a version, in words."""
    if version.number == held.number:
        return "in force"
    if version.in_force_since is not None:
        return "was in force"
    if version.instead_of != held.number:
        return "overtaken by another"
    request = ApprovalRequest.objects.about(KIND, version.number).order_by("-pk").first()
    return {"open": "waiting for signatures", "approved": "signed"}.get(request.state, request.state) if request else ""


def predecessor_of(version: PolicyVersion) -> Document:
    """What the version is to stand in place of."""
    if version.instead_of == 0:
        return DEFAULT
    return Document.model_validate(PolicyVersion.objects.get(number=version.instead_of).document)


def page_of(number: int) -> str:
    return reverse("admin:approvals_policyversion_change", args=[number])


def changes(old: Document, new: Document) -> Mapping[str, Any]:
    """What changes, field → "was → became", in words."""
    return {one.field: f"{one.was or 'none'} → {one.became or 'none'}" for one in rulebook.differences(old, new)}
