"""The Celery application and the schedule: what this system does all day.

A message is a hint, never the truth. Each task looks into the database for what is due, so a lost or doubled message
costs a tick and nothing else. django-celery-beat lets an operator change the times in the admin.
"""

from __future__ import annotations

import os

from celery import Celery

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
        # It may run a service's code for a while, which no round waits for.
        "monitoring.tasks.map_routes": {"queue": "analysis"},
        "monitoring.tasks.*": {"queue": "collect"},
        "analysis.tasks.*": {"queue": "analysis"},
        # Where `advance` goes depends on the step: see improvements.tasks.
        "improvements.tasks.tick": {"queue": "rollout"},
        "improvements.tasks.*": {"queue": "analysis"},
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
    "map routes": every(settings.ANALYSIS_INTERVAL, "monitoring.tasks.map_routes"),
    "analyse": every(settings.ANALYSIS_INTERVAL, "analysis.tasks.analyse"),
    "tick": every(settings.TICK_SECONDS, "improvements.tasks.tick"),
    "suggest": every(settings.TICK_SECONDS, "improvements.tasks.suggest"),
    "tidy": every(30, "improvements.tasks.tidy"),
    "expire approvals": every(60, "approvals.tasks.expire"),
}
app.autodiscover_tasks()
