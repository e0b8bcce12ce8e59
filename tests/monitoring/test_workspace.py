"""One worker at a time, on real connections."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import pytest
from django.db import connection, connections

from monitoring.workspace import exclusive

pytestmark = pytest.mark.django_db(transaction=True)
T = TypeVar("T")


def elsewhere(pool: ThreadPoolExecutor, work: Callable[[], T]) -> Future[T]:
    """Run `work` in another thread, so on another connection."""

    def run() -> T:
        try:
            return work()
        finally:
            connections.close_all()

    return pool.submit(run)


def taken(key: str) -> bool:
    with exclusive(key, wait=False) as mine:
        return mine


def test_only_one_holds_it_and_others_are_free() -> None:
    with ThreadPoolExecutor(1) as pool:
        with exclusive("a", wait=False) as mine:
            assert mine
            assert elsewhere(pool, lambda: taken("a")).result(10) is False
            assert elsewhere(pool, lambda: taken("b")).result(10) is True
        assert elsewhere(pool, lambda: taken("a")).result(10) is True


def test_the_loser_does_not_release_the_winners_lock() -> None:
    with ThreadPoolExecutor(1) as pool, exclusive("a", wait=True):
        assert [elsewhere(pool, lambda: taken("a")).result(10) for _ in range(2)] == [False, False]


def test_waits_for_its_turn() -> None:
    began = threading.Event()

    def wait() -> bool:
        began.set()
        with exclusive("a", wait=True) as mine:
            return mine

    with ThreadPoolExecutor(1) as pool:
        with exclusive("a", wait=True):
            waiting = elsewhere(pool, wait)
            assert began.wait(10)
            with pytest.raises(TimeoutError):
                waiting.result(0.2)
        assert waiting.result(10) is True


def test_is_free_again_after_an_error() -> None:
    with pytest.raises(ZeroDivisionError), exclusive("a", wait=True):
        raise ZeroDivisionError
    with ThreadPoolExecutor(1) as pool:
        assert elsewhere(pool, lambda: taken("a")).result(10) is True


def test_a_dead_connection_lets_go() -> None:
    def killed() -> None:
        with exclusive("a", wait=True):
            with connection.cursor() as cursor:
                cursor.execute("SELECT pg_backend_pid()")
                backend.append(cursor.fetchone()[0])
            held.set()
            assert dead.wait(10)

    backend: list[int] = []
    held, dead = threading.Event(), threading.Event()
    with ThreadPoolExecutor(1) as pool:
        holder = elsewhere(pool, killed)
        assert held.wait(10)
        assert taken("a") is False
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_terminate_backend(%s, 5000)", backend)
        assert taken("a") is True
        dead.set()
        holder.result(10)
