"""A body that trickles is given up, and one that arrives is not touched."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import pytest

from approvals import bodies

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    ours, theirs = socket.socketpair()
    yield ours, theirs
    ours.close()
    theirs.close()


def asked(server: socket.socket, seconds: float, method: str = "POST") -> Any:
    """The `wsgi.input` that an application is given."""
    given: list[Any] = []
    application = bodies.timely(lambda environ, start: given.append(environ["wsgi.input"]) or [], seconds=seconds)
    # A buffered file waits for all that it is asked for, as gunicorn's body does.
    environ = {"gunicorn.socket": server, "wsgi.input": server.makefile("rb"), "REQUEST_METHOD": method}
    application(environ, lambda *_: None)
    return given[0]


def test_a_body_that_never_ends_is_given_up_and_can_be_answered(pair: Pair) -> None:
    server, client = pair
    client.sendall(b"a few bytes")
    body = asked(server, 0.05)
    with pytest.raises(bodies.TooSlow, match="took longer than"):
        body.read(100)
    with pytest.raises(bodies.TooSlow):
        body.read(1)
    server.sendall(b"HTTP/1.1 408 Request Timeout\r\n\r\n")
    assert client.recv(100).startswith(b"HTTP/1.1 408")


def test_a_body_that_arrives_is_read_in_any_way(pair: Pair) -> None:
    server, client = pair
    client.sendall(b"one\ntwo\nthree")
    client.shutdown(socket.SHUT_WR)
    body = asked(server, 30.0)
    assert body.read(4) == b"one\n"
    assert body.readline() == b"two\n"
    assert list(body) == [b"three"]


def test_what_has_no_body_and_other_servers_are_left_alone(pair: Pair) -> None:
    stream = object()
    seen: list[Any] = []
    application = bodies.timely(lambda environ, start: seen.append(environ["wsgi.input"]) or [])
    application({"gunicorn.socket": pair[0], "wsgi.input": stream, "REQUEST_METHOD": "GET"}, lambda *_: None)
    application({"wsgi.input": stream, "REQUEST_METHOD": "POST"}, lambda *_: None)
    assert seen == [stream, stream]
