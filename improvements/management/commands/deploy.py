"""manage.py deploy: run a registered service behind the proxy."""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from improvements import releasing
from improvements.deployers import DeployError, base_url
from monitoring.models import Service


class Command(BaseCommand):
    help = (
        "Install the head of a service's branch, start it, and give it all traffic of the service's address. A service "
        "that serves already keeps its release: improvements change it from there."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("name", help="the service's name, as registered")
        parser.add_argument("--newest", action="store_true", help="the branch's head takes over from what serves now")

    def handle(self, *args: Any, name: str, newest: bool, **options: Any) -> None:
        service = Service.objects.active().filter(name=name).first()
        if service is None:
            known = ", ".join(Service.objects.active().values_list("name", flat=True)) or "none yet"
            raise CommandError(f"There is no service {name!r}. Known: {known}. `manage.py register PATH` adds one.")
        try:
            release = releasing.deploy(service, newest=newest)
        except DeployError as error:
            raise CommandError(str(error)) from error
        self.stdout.write(f"{service.name} {release.short} serves at {base_url(service)}.")
