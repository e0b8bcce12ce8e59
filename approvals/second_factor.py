"""The second factor of whoever is signed in: when it was given last, kept in the session."""

from __future__ import annotations

import datetime as dt

from django.http import HttpRequest

from approvals.policy import Channel, How

GIVEN_AT = "second_factor_at"  # in the session: seconds since 1970


def note(request: HttpRequest, at: dt.datetime) -> None:
    """Remember that the person gave a second factor `at` that time; the caller has verified it."""
    request.session[GIVEN_AT] = at.timestamp()


def how(request: HttpRequest, at: dt.datetime) -> How:
    """How the person behind a page's request decides."""
    given = request.session.get(GIVEN_AT)
    return How(Channel.PAGE, None if given is None else at.timestamp() - float(given))
