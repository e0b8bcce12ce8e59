"""On which occasion the code at hand acts: a request, a task, a command or a step. The audit log notes it.

A context variable holds it, so that nobody has to hand it down to where something is recorded.
"""

from __future__ import annotations

import re
import sys
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar, Token
from dataclasses import dataclass, replace
from typing import Any

from django.http import HttpRequest, HttpResponseBase

from approvals import whence

HEADER = "X-Request-ID"
SANE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{7,63}")  # what is accepted from outside, and nothing else
CARRIED = "runerogue_correlation"  # the header of a Celery message


@dataclass(frozen=True)
class Occasion:
    """`origin`: "address:" and a pseudonym, "task:" or "command:" and a name. `correlation`: the same for all of it."""

    origin: str = ""
    correlation: str = ""
    # (kind, id) of what a request has recorded; None where no request is. Not by the correlation, which may come from
    # outside and so from another request.
    told: set[tuple[str, str]] | None = None


_current: ContextVar[Occasion | None] = ContextVar("occasion", default=None)
_of_this_process = Occasion()
_of_tasks: dict[str, Token[Occasion | None]] = {}


def current() -> Occasion:
    """The occasion at hand; that of the command when nothing else began."""
    return _current.get() or _of_this_process


@contextmanager
def within(
    *, origin: str | None = None, correlation: str | None = None, told: set[tuple[str, str]] | None = None
) -> Iterator[Occasion]:
    """Everything in this block belongs to the same occasion; what is not given stays as it was."""
    changes: dict[str, Any] = {"origin": origin, "correlation": correlation, "told": told}
    occasion = replace(current(), **{name: value for name, value in changes.items() if value is not None})
    token = _current.set(occasion)
    try:
        yield occasion
    finally:
        _current.reset(token)


def begin_command(arguments: Sequence[str] = sys.argv) -> None:
    """This process is one run of `manage.py NAME`. Only the name is kept: arguments may hold secrets."""
    global _of_this_process
    name = arguments[1] if len(arguments) > 1 and SANE_NAME.fullmatch(arguments[1]) else "manage"
    _of_this_process = Occasion(f"command:{name}", uuid.uuid4().hex)


SANE_NAME = re.compile(r"[a-z][a-z0-9_-]{0,60}")


# --- Requests ----------------------------------------------------------------------------------------------------


class OccasionMiddleware:
    """A request is one occasion. Its correlation id comes back as X-Request-ID, and from outside if it is sane."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        given = request.headers.get(HEADER, "")
        correlation = given if SANE.fullmatch(given) else uuid.uuid4().hex
        known = whence.origin_of(request)
        with within(origin=f"address:{known}" if known else "", correlation=correlation, told=set()):
            response = self.get_response(request)
        response.headers[HEADER] = correlation
        return response


# --- Tasks -------------------------------------------------------------------------------------------------------


def follow_tasks() -> None:
    """Have every Celery task be an occasion that keeps the correlation id of whoever sent it."""
    from celery import signals

    signals.before_task_publish.connect(_carry, dispatch_uid="approvals.occasion.carry")
    signals.task_prerun.connect(_begin_task, dispatch_uid="approvals.occasion.begin")
    signals.task_postrun.connect(_end_task, dispatch_uid="approvals.occasion.end")


def _carry(headers: dict[str, Any] | None = None, **kwargs: Any) -> None:
    if headers is not None and current().correlation:
        headers.setdefault(CARRIED, current().correlation)


def _begin_task(task_id: str = "", task: Any = None, **kwargs: Any) -> None:
    carried = task.request.get(CARRIED) or (task.request.get("headers") or {}).get(CARRIED)
    _of_tasks[task_id] = _current.set(Occasion(f"task:{task.name}"[:80], str(carried or task_id)[:64]))


def _end_task(task_id: str = "", **kwargs: Any) -> None:
    if (token := _of_tasks.pop(task_id, None)) is not None:
        _current.reset(token)
