"""The Celery application and the schedule: what this system does all day.

A message is a hint, never the truth. Each task looks into the database for what is due, so a lost or doubled message
costs a tick and nothing else. django-celery-beat lets an operator change the times in the admin.
"""

from __future__ import annotations

import atexit
import os
from typing import Any

from celery import Celery
from celery.schedules import crontab
from celery.signals import beat_init, worker_ready, worker_shutdown

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "runerogue.settings")

from django.conf import settings

app = Celery("runerogue")
app.conf.update(
    broker_url=settings.CELERY_BROKER_URL,
    broker_connection_retry_on_startup=True,
    task_ignore_result=True,
    task_acks_late=True,
    task_default_queue="analysis",
    task_routes={
        # A test suite takes minutes; a collection round must not stand behind it.
        "monitoring.tasks.measure_quality": {"queue": "analysis"},
        "monitoring.tasks.seal": {"queue": "analysis"},
        # Reads weeks of samples: nothing for the queue that must not wait.
        "monitoring.tasks.set_baselines": {"queue": "analysis"},
        # It may run a service's code for a while, which no round waits for.
        "monitoring.tasks.map_routes": {"queue": "analysis"},
        # It reads the whole log.
        "monitoring.tasks.verify_audit": {"queue": "analysis"},
        "monitoring.tasks.*": {"queue": "collect"},
        "analysis.tasks.*": {"queue": "analysis"},
        # Where `advance` goes depends on the step: see improvements.tasks.
        "improvements.tasks.tick": {"queue": "rollout"},
        "improvements.tasks.*": {"queue": "analysis"},
        # A slow mail server must keep no rollout waiting.
        "approvals.tasks.send_letters": {"queue": "collect"},
        "approvals.tasks.*": {"queue": "rollout"},
    },
    worker_prefetch_multiplier=1,
    worker_hijack_root_logger=False,
    beat_scheduler="django_celery_beat.schedulers:DatabaseScheduler",
    beat_max_loop_interval=1,
    timezone="UTC",
)


def every(seconds: int, task: str) -> dict[str, object]:
    # A tick that waited longer than its interval is worthless: the next one sees everything it would have seen.
    return {"task": task, "schedule": float(seconds), "options": {"expires": max(seconds, 10)}}


app.conf.beat_schedule = {
    "collect": every(settings.METRICS_COLLECTION_INTERVAL, "monitoring.tasks.collect"),
    "backfill": every(settings.METRICS_COLLECTION_INTERVAL, "monitoring.tasks.backfill"),
    "measure quality": every(600, "monitoring.tasks.measure_quality"),
    "seal": every(600, "monitoring.tasks.seal"),
    "notify": every(settings.NOTIFY_SECONDS, "monitoring.tasks.notify"),
    "set baselines": every(1800, "monitoring.tasks.set_baselines"),
    "map routes": every(settings.ANALYSIS_INTERVAL, "monitoring.tasks.map_routes"),
    "analyse": every(settings.ANALYSIS_INTERVAL, "analysis.tasks.analyse"),
    "tick": every(settings.TICK_SECONDS, "improvements.tasks.tick"),
    "suggest": every(settings.TICK_SECONDS, "improvements.tasks.suggest"),
    "tidy": every(30, "improvements.tasks.tidy"),
    "review": every(600, "improvements.tasks.review"),
    "send digests": every(300, "improvements.tasks.send_digests"),
    "checkpoint audit log": every(30, "approvals.tasks.checkpoint"),
    "watch audit checkpoints": every(300, "monitoring.tasks.watch_checkpoints"),
    "verify audit log": {"task": "monitoring.tasks.verify_audit", "schedule": crontab(hour=2, minute=40)},
    "expire approvals": every(60, "approvals.tasks.expire"),
    "send letters": every(settings.NOTIFY_SECONDS, "approvals.tasks.send_letters"),
    "tidy sign-ins": every(60, "approvals.tasks.tidy_sign_ins"),
}
app.autodiscover_tasks()


@worker_ready.connect
@beat_init.connect
def give_signs_of_life(sender: Any = None, **kwargs: Any) -> None:
    """Beside its work, each program says that it is there and looks after the others."""
    from monitoring import heartbeats  # after Django is set up

    heartbeats.start(heartbeats.role_of(getattr(sender, "hostname", None) or "beat"))


@worker_shutdown.connect
def take_leave(sender: Any = None, **kwargs: Any) -> None:
    """A program that was stopped is not missed."""
    from monitoring import heartbeats

    heartbeats.stop()


atexit.register(take_leave)
