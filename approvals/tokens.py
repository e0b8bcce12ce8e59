"""API tokens: made once, checked with every request, revoked for good."""

from __future__ import annotations

import datetime as dt
import hashlib
import hmac
import re
import secrets
from collections.abc import Collection

from django.contrib.auth.models import User
from django.db import transaction
from django.http import HttpRequest
from django.utils.timezone import now

from approvals import audit, roles
from approvals.models import ApiToken, Scope
from approvals.policy import Role

LONGEST = dt.timedelta(days=366)
FORM = re.compile(r"rr_([A-Za-z0-9]{8})_[A-Za-z0-9_-]{43}")
ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
NOBODYS = "0" * 64
# Reading is for everybody of the staff. Superusers may do all of it but sign: that is a role's.
SCOPE_ROLES: dict[Scope, frozenset[Role]] = {
    Scope.OPERATE: frozenset(roles.OPERATING_ROLES),
    Scope.REPORT: frozenset(roles.OPERATING_ROLES),
    Scope.APPROVE: frozenset({Role.LEAD, Role.ARCHITECTURE, Role.CTO}),
}


class CannotIssue(ValueError):
    """A token that nobody may have; the message says why and what to do."""


def may_hold(person: User, scope: Scope) -> bool:
    """Whether `person` may do now what `scope` is for."""
    if not person.is_active:
        return False
    if scope is Scope.READ:
        return True
    if person.is_superuser and scope is not Scope.APPROVE:
        return True
    # Of which services they are is asked when the token is used.
    held = roles.facts_of(person, scope=roles.ANYWHERE)
    if held.is_service_account and scope is Scope.APPROVE:
        return False
    return bool(held.roles & SCOPE_ROLES[scope])


def issue(
    person: User, *, name: str, scopes: Collection[Scope], expires_at: dt.datetime, actor: User | None
) -> tuple[ApiToken, str]:
    """A new token of `person` and its text, which is told here and never again. Raises CannotIssue."""
    name = name.strip()
    if not name:
        raise CannotIssue("A token needs a name that says what uses it.")
    if not scopes:
        raise CannotIssue(f"A token needs at least one scope: {', '.join(Scope)}.")
    if not now() < expires_at <= now() + LONGEST:
        raise CannotIssue(f"A token expires, {LONGEST.days} days from now at the latest.")
    for scope in scopes:
        if not may_hold(person, scope):
            raise CannotIssue(f"{person} has no role for the scope {scope}: a token may do no more than its person.")
    prefix = "rr_" + "".join(secrets.choice(ALPHABET) for _ in range(8))
    text = f"{prefix}_{secrets.token_urlsafe(32)}"
    with transaction.atomic():
        token = ApiToken.objects.create(
            name=name[:100],
            person=person,
            prefix=prefix,
            digest=digest_of(text),
            scopes=sorted(str(scope) for scope in scopes),
            expires_at=expires_at,
        )
        audit.record(
            "apitoken.issued",
            token,
            actor=actor,
            data={"person": person.get_username(), "scopes": token.scopes, "expires_at": expires_at},
        )
    return token, text


def revoke(token: ApiToken, *, actor: User | None, because: str = "") -> bool:
    """End `token` now. Whether it was this call that ended it."""
    with transaction.atomic():
        ended = ApiToken.objects.filter(pk=token.pk, revoked_at=None).update(revoked_at=now())
        if ended:
            audit.record("apitoken.revoked", token, actor=actor, because=because)
    token.refresh_from_db(fields=["revoked_at"])
    return bool(ended)


def find(text: str) -> ApiToken | None:
    """The usable token that `text` is; None for anything else. Notes the day of its use."""
    form = FORM.fullmatch(text)
    if form is None:
        return None
    at = now()
    token = ApiToken.objects.usable(at).select_related("person").filter(prefix=f"rr_{form[1]}").first()
    # The same work for an unknown prefix as for a wrong secret, and no early end at the first wrong character.
    if not hmac.compare_digest(digest_of(text), token.digest if token else NOBODYS) or token is None:
        return None
    today = at.date()
    if token.last_used_on != today:
        ApiToken.objects.filter(pk=token.pk).update(last_used_on=today)
    return token


def sent_with(request: HttpRequest) -> str | None:
    """The text after `Authorization: Bearer`; None when the header is missing or of another kind."""
    kind, _, text = request.META.get("HTTP_AUTHORIZATION", "").partition(" ")
    return text.strip() if kind.lower() == "bearer" else None


def bearer(request: HttpRequest, scope: Scope) -> ApiToken | None:
    """The token that came with `request`, if it is usable for `scope` and its person still may do that."""
    text = sent_with(request)
    token = find(text) if text else None
    return token if token and token.allows(scope) and may_hold(token.person, scope) else None


def digest_of(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
