"""The audit log: appends by eight processes at once, verifying, and its page with a million entries.

A process of its own with engines of its own, which here are durable as in production: an append waits for the disk.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import psycopg

from runerogue.stack.home import PROJECT, Home
from tests import engines
from tests.bench.rows import Row

WRITERS, SECONDS = 8, 3.0
ROUNDS = 5  # medians of so many
ENTRIES = 1_000_000
ACTIONS = ("alert.firing", "alert.resolved", "approval.signed", "improvement.step", "finding.opened", "rollout.done")
PEOPLE = ("RuneRogue", "alice", "bob", "carol", "dave", "erin")


def bench() -> Iterator[Row]:
    home, owner = engines.spawn()
    try:
        engines.demand(home)
        with psycopg.connect(_superuser(home), autocommit=True) as database:
            for name in ("fsync", "synchronous_commit", "full_page_writes"):
                database.execute(f"ALTER SYSTEM SET {name} = on")
            database.execute("SELECT pg_reload_conf()")
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("DJANGO_", "RUNEROGUE_"))},
            "DATABASE_URL": home.database_url(),
            "REDIS_URL": home.redis_url(),
            "RUNEROGUE_HOME": str(home.folder),
            "SECRET_KEY": home.secret("secret_key"),
            "DJANGO_SETTINGS_MODULE": "runerogue.settings",
        }
        done = subprocess.run(
            [sys.executable, "-m", "tests.bench.bench_audit"],
            cwd=PROJECT,
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
            timeout=900,
        )
        if done.returncode:
            raise RuntimeError("the measuring process broke, see above")
        for row in json.loads(done.stdout.splitlines()[-1]):
            yield Row(**row)
    finally:
        engines.dismiss(owner)


def _superuser(home: Home) -> str:
    return psycopg.conninfo.make_conninfo(
        host=str(home.postgres_sockets),
        dbname="runerogue",
        user="postgres",
        password=home.secret("postgres_superuser"),
    )


# --- In the process of its own -----------------------------------------------------------------------------------


def main() -> None:
    import django

    django.setup()
    from django.core.management import call_command
    from django.db import connection

    call_command("migrate", verbosity=0, stdout=sys.stderr)
    with connection.cursor() as cursor:
        cursor.execute("SHOW fsync")
        assert cursor.fetchone() == ("on",)
    rows = [*_appending()]
    _fill()
    rows += [*_verifying(), *_reading()]
    print(json.dumps([row.__dict__ for row in rows]))


def _appending() -> list[Row]:
    from django.db import connection

    from approvals import audit, chain

    connection.close()
    context = multiprocessing.get_context("spawn")
    start, counts = context.Barrier(WRITERS), context.Queue()
    writers = [context.Process(target=_write, args=(number, start, counts)) for number in range(WRITERS)]
    for writer in writers:
        writer.start()
    rounds = [[counts.get() for _ in writers] for _ in range(ROUNDS)]
    for writer in writers:
        writer.join()
    checked = audit.verify()
    assert checked.fault is None, checked
    assert checked.count == WRITERS + sum(count for each in rounds for count, _ in each)
    assert checked.hash != chain.GENESIS
    rates = [sum(count / seconds for count, seconds in each) for each in rounds]
    one = _commits_alone()
    return [
        Row(
            f"audit: appends by {WRITERS} writers, no fork{_spread(rates)}",
            statistics.median(rates),
            "/s",
            target=1500,
            better="higher",
        ),
        Row("audit: durable commits of one writer of anything", one, "/s"),
    ]


def _write(number: int, start: Any, counts: Any) -> None:
    import django

    django.setup()
    from django.db import transaction

    from approvals import audit, occasion

    def one() -> None:
        with transaction.atomic():
            audit.record(
                ACTIONS[number % len(ACTIONS)],
                None,
                because="p95 0.31 s above its objective of 0.30 s",
                was="pending",
                became="firing",
                data={"writer": number, "service": "realm", "value": 0.31, "labels": {"endpoint": "/api/players"}},
            )

    with occasion.within(origin="task:bench.append", correlation=f"writer-{number}"):
        one()
        for _ in range(ROUNDS):
            start.wait()
            began, count = time.perf_counter(), 0
            while time.perf_counter() < began + SECONDS:
                one()
                count += 1
            taken = time.perf_counter() - began
            start.wait()  # or one of them could tell of two rounds before another tells of one
            counts.put((count, taken))


def _commits_alone() -> float:
    """How many commits a second the disk gives to one connection: the roof above any log that waits for it."""
    from django.db import connection

    with connection.cursor() as cursor:
        cursor.execute("CREATE TABLE bench_commits (id int)")
        began, count = time.perf_counter(), 0
        while time.perf_counter() < began + 1.5:
            cursor.execute("INSERT INTO bench_commits VALUES (1)")
            count += 1
        seconds = time.perf_counter() - began
        cursor.execute("DROP TABLE bench_commits")
    return count / seconds


def _fill() -> None:
    """A good chain of ENTRIES entries, written past the triggers: appending so many would take ten minutes."""
    from django.db import connection

    from approvals import chain
    from approvals.models import AuditHead

    names = ["sequence", "prev_hash", "hash", *(name for name in chain.COLUMNS if name != "sequence"), "payload"]
    head = AuditHead.objects.get()
    sequence, previous = head.sequence, head.hash
    with connection.cursor() as cursor:
        _triggers(cursor, "DISABLE TRIGGER USER")
        with cursor.cursor.copy(f"COPY approvals_auditentry ({', '.join(names)}) FROM STDIN") as copy:
            while sequence < ENTRIES:
                sequence += 1
                columns = _made_up(sequence)
                before, after = chain.payload_parts(columns, f'{{"became":"b","data":{{"n":{sequence}}},"was":"a"}}')
                payload = f"{before}{sequence}{after}"
                its = chain.link_hash(previous, payload)
                others = [columns[name] for name in chain.COLUMNS if name != "sequence"]
                copy.write_row([sequence, previous, its, *others, payload])
                previous = its
        _triggers(cursor, "DISABLE TRIGGER USER", "approvals_audithead")
        cursor.execute("UPDATE approvals_audithead SET sequence = %s, hash = %s", [sequence, previous])
        for table in ("approvals_auditentry", "approvals_audithead"):
            _triggers(cursor, "ENABLE TRIGGER USER", table)
        cursor.execute("VACUUM ANALYZE approvals_auditentry")


def _triggers(cursor: Any, what: str, table: str = "approvals_auditentry") -> None:
    cursor.execute(f"ALTER TABLE {table} {what}")


def _made_up(sequence: int) -> dict[str, Any]:
    """Beside what is everywhere: words and people that make an index or a walk backwards work for nothing."""
    who = sequence % len(PEOPLE)
    half = "evening" if sequence % 2 else "morning"  # both common, never together; carol's are all in the evening
    era = "founding" if sequence <= 200 else "provisional" if sequence <= ENTRIES // 2 else "settled"
    return {
        "action": ACTIONS[sequence * 7 % len(ACTIONS)],
        "actor": "grace" if sequence % 20_011 == 0 else PEOPLE[who],
        "actor_id": who or None,
        "at": f"2026-03-{1 + sequence * 27 // ENTRIES:02}T{sequence // 3600 % 24:02}:00:00.000000Z",
        "because": f"p95 {sequence % 97 / 100} s above its objective on endpoint {sequence % 1009}, {half}, {era}",
        "correlation": f"improvement-{sequence // 40}-step-{sequence // 8}",
        "on_behalf_of": "",
        "origin": "task:improvements.tasks.advance",
        "outcome": "ok",
        "sequence": sequence,
        "subject": f"Prefetch guild {sequence // 40} of players",
        "subject_id": str(sequence // 40),
        "subject_kind": "improvements.improvement",
    }


def _verifying() -> list[Row]:
    from approvals import audit

    rates = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        checked = audit.verify()
        rates.append(checked.count / (time.perf_counter() - began))
        assert checked.fault is None, checked
        assert checked.count >= ENTRIES
    rate = statistics.median(rates)
    return [Row(f"audit: entries verified{_spread(rates)}", rate, "/s", target=150_000, better="higher")]


def _spread(rates: list[float]) -> str:
    """What a neighbour on the same machine makes of it."""
    return f" ({min(rates):,.0f} to {max(rates):,.0f})"


PAGES = {
    "newest": "",
    "the last page": "?after=0",
    "an action": "?action=approval.signed",
    "a person": "?actor=carol",
    "a subject": "?subject_kind=improvements.improvement&subject_id=400",
    "a common word": "?q=objective",
    "a rare word": "?q=4017",
    "two words": "?q=prefetch+1008",
    "the beginning of a word": "?q=endp*",
    "a word nobody wrote": "?q=mallory",
    "a person and a word": "?actor=carol&q=endpoint",
    # What an index or a walk backwards would do worst.
    "a common word, in the older half only": "?q=provisional",
    "a word of the first 200 alone": "?q=founding",
    "two common words, never together": "?q=morning+evening",
    "a rare word and a common one": "?q=founding+objective",
    "a rare person and a common word": "?actor=grace&q=objective",
    "a person and a common word, never hers": "?actor=carol&q=morning",
    "a person and an action, never hers": "?actor=carol&action=alert.firing",
    "a common beginning, in the older half only": "?q=provis*",
}


def _reading() -> list[Row]:
    from django.conf import settings
    from django.contrib.auth.models import User
    from django.test import Client
    from django.urls import reverse

    settings.STORAGES["staticfiles"] = {"BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"}
    settings.ALLOWED_HOSTS = ["testserver"]
    client = Client()
    client.force_login(User.objects.create_superuser("reader"))
    address = reverse("admin:approvals_auditentry_changelist")
    client.get(address)
    rows = []
    for name, query in PAGES.items():
        times = []
        for _ in range(7):
            began = time.perf_counter()
            answer = client.get(address + query)
            times.append(1000 * (time.perf_counter() - began))
            assert answer.status_code == 200, answer
        rows.append(Row(f"audit: page of {ENTRIES:,}: {name}", statistics.median(times), "ms", target=100))
    return rows


if __name__ == "__main__":
    main()
