"""How long a request may take to arrive.

gunicorn waits as long as anything comes: a few clients that send a byte now and then would hold all threads. Here the
whole of a body has a time. When it is over the connection is closed for reading, whatever the reader waits for, and the
view is told by an exception, so that it can still answer.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from django.http import UnreadablePostError

LONGEST_SECONDS = 30.0
LATE = f"The body took longer than {LONGEST_SECONDS:g} s to arrive."

_T = TypeVar("_T")
Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


class TooSlow(TimeoutError):
    """The body did not arrive in time. Django's request wraps it in an UnreadablePostError."""


def timely(application: Application, *, seconds: float = LONGEST_SECONDS) -> Application:
    """A WSGI application whose requests have `seconds` to arrive, under servers that name their socket."""

    def inner(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        connection = environ.get("gunicorn.socket")
        if connection is not None and environ.get("REQUEST_METHOD") not in ("GET", "HEAD"):
            environ["wsgi.input"] = _Timely(environ["wsgi.input"], connection, seconds)
        return application(environ, start_response)

    return inner


def was_late(error: UnreadablePostError) -> bool:
    """Whether a body could not be read because it took too long, and not because its sender is gone."""
    cause: BaseException | None = error
    while isinstance(cause, UnreadablePostError):  # Django wraps its own again
        cause = cause.__cause__
    return isinstance(cause, TimeoutError)


class _Timely:
    """A `wsgi.input` whose time begins with the first read."""

    def __init__(self, stream: Any, connection: socket.socket, seconds: float) -> None:
        self._stream, self._connection, self._seconds = stream, connection, seconds
        self._ends: float | None = None
        self._is_over = False

    def read(self, size: int = -1) -> bytes:
        return self._in_time(lambda: bytes(self._stream.read(size)))

    def readline(self, size: int = -1) -> bytes:
        return self._in_time(lambda: bytes(self._stream.readline(size)))

    def __iter__(self) -> Iterator[bytes]:
        return iter(self.readline, b"")

    def _in_time(self, read: Callable[[], _T]) -> _T:
        if self._ends is None:
            self._ends = time.monotonic() + self._seconds
        # Not the socket's own timeout: that is for each piece, and begins anew with every byte.
        timer = threading.Timer(max(0.0, self._ends - time.monotonic()), self._end)
        timer.daemon = True
        timer.start()
        try:
            found = read()
        finally:
            timer.cancel()
        if self._is_over:
            raise TooSlow(LATE)
        return found

    def _end(self) -> None:
        self._is_over = True
        try:
            self._connection.shutdown(socket.SHUT_RD)
        except OSError:  # it is closed already
            return
