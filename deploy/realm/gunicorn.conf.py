"""How gunicorn serves Realm. It reads this file from the current folder by itself."""

import os

worker_class = "gthread"
workers = 1  # one process, so that /metrics shows all of it without a shared folder
threads = int(os.environ.get("GUNICORN_THREADS", "1"))
keepalive = 75  # longer than a proxy in front keeps an idle connection, so that the proxy is the one to close it
timeout = 30
graceful_timeout = 10
control_socket_disable = True


def post_fork(server, worker):
    """Start tracing in the worker: the exporter's thread would not survive the fork."""
    if os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT"):
        from realm import tracing

        tracing.start()
