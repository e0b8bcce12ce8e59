"""`manage.py ensure_self`: RuneRogue watches itself. Run at every start, after the migrations."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandError

from approvals import configuration
from monitoring import registry


class Command(BaseCommand):
    help = "Make RuneRogue one of its own services, and the default alert rules where they are missing."

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            service = registry.ensure_self()
        except (registry.CannotRegister, registry.ManifestError, OSError) as error:
            raise CommandError(str(error)) from error
        configuration.note()
        self.stdout.write(f"{service.name} watches itself at {registry.own_metrics_url()}.")
