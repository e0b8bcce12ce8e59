"""The dead man's switch: each of RuneRogue's background programs gives signs of life, and others notice their absence.

A sign is a row that a thread of the program writes, whatever the program is busy with. Every program watches all of
them, and so does the web side whenever metrics or alerts are asked for, so that the silent one need not tell of itself.
That a program lives does not say that it works: the collector's rounds are watched as if they were a program.
"""

from __future__ import annotations

import logging
import threading
import time
from datetime import datetime, timedelta

from django.conf import settings
from django.db import DatabaseError, connection
from django.db.models import Max
from django.utils.timezone import now

from monitoring import notifying
from monitoring.alerting import apply, effective_rules
from monitoring.alerts import Facts, Judgement, Kind, judge
from monitoring.claiming import claim
from monitoring.models import Alert, AlertRule, Heartbeat, Round, Service, labels_key

log = logging.getLogger(__name__)

EVERY_SECONDS = 15.0
# After a start of everything, all of the night's silence is no news: give the others time for their first sign.
GRACE_SECONDS = 120.0
ROUNDS = "rounds of the collector"
MISSED_ROUNDS = 3
# A program that was taken out of service for good, without taking leave, is missed for so long and then forgotten.
MISSED = timedelta(days=1)

_started = time.monotonic()
_stopping = threading.Event()
_thread: threading.Thread | None = None


def role_of(name: str) -> str:
    """What kind of program `name` (Celery's `worker@host`) is; the host changes with each start of a container."""
    return name.partition("@")[0][:60]


def beat(program: str, at: datetime) -> None:
    """Write a sign of life."""
    Heartbeat.objects.update_or_create(program=program, defaults={"at": at})


def leave(program: str) -> None:
    """A program that is stopped on purpose is not missed; if there are others of its kind, they will say so."""
    Heartbeat.objects.filter(program=program).delete()


def silences(at: datetime) -> dict[str, float]:
    """Program → seconds since its last sign of life."""
    Heartbeat.objects.filter(at__lt=at - MISSED).delete()
    found = {sign.program: max(0.0, (at - sign.at).total_seconds()) for sign in Heartbeat.objects.all()}
    last = Round.objects.filter(job="collect", started_at__gte=at - MISSED).aggregate(last=Max("started_at"))["last"]
    if last is not None:
        # In intervals it is as long as the others in seconds, whatever the interval is.
        late = (at - last).total_seconds() - (MISSED_ROUNDS - 1) * settings.METRICS_COLLECTION_INTERVAL
        found[ROUNDS] = max(0.0, late)
    return found


def watch(at: datetime) -> list[Alert]:
    """Judge every program's silence at `at`. Returns the alerts that began or ceased to fire."""
    service = Service.objects.active().filter(is_self=True).first()
    if service is None:
        return []
    moved: list[Alert] = []
    rows = list(AlertRule.objects.filter(kind=Kind.HEARTBEAT))
    rules = effective_rules(rows, service)
    silent = silences(at) if rules else {}
    opened = {
        (alert.name, alert.labels_key): alert
        for alert in Alert.objects.open()
        .filter(service=service, name__in=[row.name for row in rows])
        .select_related("service")
    }
    for row in rules:
        rule = row.plain
        for program, seconds in silent.items():
            labels = {"program": program}
            alert = opened.pop((rule.name, labels_key(labels)), None)
            facts = Facts(at.timestamp(), EVERY_SECONDS, silent_seconds=seconds)
            moved += apply(service, row, rule, alert, labels, seconds, judge(rule, facts), at)
    for alert in opened.values():
        gone = Judgement(False, limit="it took leave, or it is no longer watched")
        if alert.rule is not None:
            moved += apply(service, alert.rule, alert.rule.plain, alert, alert.labels, None, gone, at)
    return moved


def watch_if_due(at: datetime, *, running_seconds: float | None = None) -> list[Alert]:
    """`watch`, unless another program just did, or this process runs for too short a time to have seen anything."""
    running = time.monotonic() - _started if running_seconds is None else running_seconds
    if running < GRACE_SECONDS or not claim("watch programs", at=at, interval_seconds=EVERY_SECONDS):
        return []
    moved = watch(at)
    # Whoever tells people may be the one that is silent; those who notice tell them too. Nobody is told twice.
    notifying.tell(at)
    return moved


def start(program: str) -> None:
    """Give signs of life and watch the others, in a thread of this process, until `stop`."""
    global _thread
    if _thread is None:
        _stopping.clear()
        _thread = threading.Thread(target=_go_on, args=(program,), name="heartbeat", daemon=True)
        _thread.start()


def stop() -> None:
    """Take leave. Does nothing in a process that never started."""
    global _thread
    if _thread is not None:
        _stopping.set()
        _thread.join(5.0)
        _thread = None


def _go_on(program: str) -> None:
    while True:
        try:
            beat(program, now())
            for alert in watch_if_due(now()):
                log.warning("Alert %s: %s", alert, alert.message)
        except DatabaseError as error:
            # Others see that the signs stop; this thread tries again.
            log.warning("No sign of life of %s could be written: %s", program, error)
        finally:
            connection.close()
        if _stopping.wait(EVERY_SECONDS):
            break
    try:
        leave(program)
    except DatabaseError:
        log.info("%s ends without taking leave: the database does not answer.", program)
    finally:
        connection.close()
