"""The frame: settings, routes, Celery and the embedded engines."""
