"""The drill on a real Realm: what it starts, finds, and leaves behind."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest
from django.db import connection

from monitoring.drilling import FAULTS
from runerogue import realm_drill

pytestmark = [pytest.mark.slow, pytest.mark.django_db(transaction=True)]


def test_finds_a_fault_in_a_real_realm_and_leaves_nothing_behind(tmp_path: Path) -> None:
    failing = next(fault for fault in FAULTS if fault.name == "errors 20 %")
    told: list[str] = []
    report = realm_drill.drill(
        tmp_path,
        runs=1,
        interval_seconds=0.6,
        rate=40.0,
        most_seconds=60.0,
        faults=[failing],
        learning_rounds=2,
        tell=told.append,
    )
    (found,) = report.detections
    assert (found.fault, found.runs, found.found) == ("errors 20 %", 1, 1)
    assert set(found.first_rules) <= {"error-ratio", "errors-unusual", "error-budget-fast"}
    assert (report.subject, report.clean.alerts) == ("Realm", 0)
    assert told[-1].startswith("errors 20 %: ")
    assert list(tmp_path.iterdir()) == []
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM pg_database WHERE datname LIKE 'realm_drill_%%'")
        assert cursor.fetchone() == (0,)
    assert not [child for child in psutil.Process().children(recursive=True) if "realm" in " ".join(child.cmdline())]


def test_every_fault_of_the_drill_has_its_switch() -> None:
    assert list(realm_drill.SWITCHES) == [fault.name for fault in FAULTS]
