"""gunicorn's settings: `gunicorn -c runerogue/stack/gunicorn_conf.py runerogue.wsgi`. The stack and systemd use it."""

from __future__ import annotations

import os
from typing import Any

_host = os.environ.get("RUNEROGUE_HOST", "").strip() or "127.0.0.1"
_port = os.environ.get("RUNEROGUE_PORT", "").strip() or "8000"

bind = [f"[{_host}]:{_port}" if ":" in _host else f"{_host}:{_port}"]
workers = int(os.environ.get("WEB_CONCURRENCY", "").strip() or 2)
worker_class = "gthread"
threads = 4
preload_app = True  # Django is imported once, not once for each worker
timeout = 60
graceful_timeout = 5
keepalive = 30
control_socket_disable = True  # it would be made in the user's own folder
max_requests = 20_000
max_requests_jitter = 2_000
accesslog = None
errorlog = "-"
worker_tmp_dir = "/dev/shm" if os.path.isdir("/dev/shm") else None  # noqa: PTH112,S108 (heartbeats must not touch a disk)


def on_starting(server: Any) -> None:
    """Before the first worker: log lines without visitors, and nothing left of an earlier master's processes."""
    on_reload(server)
    if os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
        from monitoring import exporting

        exporting.forget_dead()


def on_reload(server: Any) -> None:
    """gunicorn's own lines quote what was asked (a wrong request, or one that failed) and by whom."""
    from monitoring.privacy import PrivateFormatter

    for handler in server.log.error_log.handlers:
        handler.setFormatter(PrivateFormatter(server.log.error_fmt, server.log.datefmt))


def child_exit(server: Any, worker: Any) -> None:
    """Keep what a dead worker counted and forget its gauges: its files would be read for ever."""
    if os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
        from monitoring import exporting

        exporting.forget_process(worker.pid)
