"""How long a sign-in lasts: until a time after it, or until nothing was asked for a while, or until somebody ends it.

And what is kept in it: what somebody typed before they were led elsewhere.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable

from django.conf import settings
from django.contrib import messages
from django.contrib.auth import SESSION_KEY
from django.contrib.auth.models import AnonymousUser, User
from django.contrib.sessions.models import Session
from django.db import transaction
from django.http import HttpRequest, HttpResponse
from django.utils.timezone import now

from approvals import audit, passwords, signing_in
from approvals.signing_in import BEGAN, SEEN

NOTED_EVERY = dt.timedelta(minutes=1)  # a write with every request would cost more than the requests


def why_over(session: dict[str, float], at: dt.datetime) -> str:
    """Why a sign-in whose session holds these times is over; "" while it is not."""
    moment = at.timestamp()
    if moment - session.get(SEEN, moment) > settings.SESSION_IDLE_MINUTES * 60:
        return f"Nothing was asked for {settings.SESSION_IDLE_MINUTES} minutes."
    if moment - session.get(BEGAN, moment) > settings.SESSION_HOURS * 3600:
        return f"A sign-in lasts {settings.SESSION_HOURS} hours."
    return ""


def end_all(person: User, *, but: str | None = None) -> int:
    """End every session of `person`, except the one with the key `but`; how many were ended.

    Sessions do not say in a column whose they are, so all that live are read: some hundred for a team, seldom.
    """
    live = Session.objects.filter(expire_date__gt=now()).exclude(session_key=but or "")
    theirs = [one.pk for one in live.iterator() if one.get_decoded().get(SESSION_KEY) == str(person.pk)]
    return Session.objects.filter(pk__in=theirs).delete()[0]


def sign_out_everywhere(person: User, *, actor: User, because: str = "") -> int:
    """End every session of `person` and record it."""
    with transaction.atomic():
        ended = end_all(person)
        audit.record("signin.sessions_ended", person, actor=actor, because=because, data={"sessions_ended": ended})
    return ended


# --- What was typed and must survive a detour, such as the one to the second factor ------------------------------

TYPED = "typed"
LONGEST, MOST = 10_000, 20  # characters of a text, and texts in one session


def keep_typed(request: HttpRequest, text: str, *, form: str = "", page: str = "") -> None:
    """Remember what was typed in the form of that name on `page` (the one of `request`), until `forget_typed` there."""
    kept = {**request.session.get(TYPED, {}), (page or request.path) + form: text[:LONGEST]}
    request.session[TYPED] = dict(list(kept.items())[-MOST:])


def typed(request: HttpRequest, *, form: str = "") -> str:
    """What was typed on this page before the detour; "" when nothing was."""
    return str(request.session.get(TYPED, {}).get(request.path + form, ""))


def forget_typed(request: HttpRequest, *, form: str = "", page: str = "") -> None:
    """It was used."""
    used, kept = (page or request.path) + form, request.session.get(TYPED, {})
    if used in kept:
        request.session[TYPED] = {page: text for page, text in kept.items() if page != used}


# --- The middleware ----------------------------------------------------------------------------------------------


class SessionAges:
    """Ends sign-ins that are over, before anything is done in their name; remembers browsers of those that began."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        if request.COOKIES.get(settings.SESSION_COOKIE_NAME) and SESSION_KEY in request.session:
            self._look(request, now())
        with passwords.changed_by(request):
            response = self.get_response(request)
        signing_in.write_down(request, response)
        return response

    def _look(self, request: HttpRequest, at: dt.datetime) -> None:
        session = request.session
        if because := why_over({name: session[name] for name in (BEGAN, SEEN) if name in session}, at):
            # Asked by its key before the session is gone: `request.user` looks at the session when it is first used.
            person = User.objects.filter(pk=session[SESSION_KEY]).first()
            session.flush()
            request.user = AnonymousUser()
            if person:
                with transaction.atomic():
                    audit.record("signin.ended", person, actor=person, because=because)
            if not request.path.startswith("/api/"):
                messages.info(request, f"{because} Sign in again; it leads back to where you were.")
        elif BEGAN not in session:
            session[BEGAN] = session[SEEN] = at.timestamp()
        elif at.timestamp() - session[SEEN] > NOTED_EVERY.total_seconds():
            session[SEEN] = at.timestamp()
