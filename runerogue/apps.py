from django.apps import AppConfig


class RunerogueConfig(AppConfig):
    name = "runerogue"

    def ready(self) -> None:
        # Not in __init__: the stack is part of this package and must work before there are any settings.
        from runerogue.celery import app

        app.set_default()
