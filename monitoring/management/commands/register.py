"""`manage.py register PATH-OR-URL [--name N] [--branch B] [--env K=V …]`: have a service watched."""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from monitoring import registry


class Command(BaseCommand):
    help = "Have a service watched and improved, from the folder or URL of its git repository."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("repository", help="a folder with a git repository, or a git URL")
        parser.add_argument("--name", help="instead of the manifest's")
        parser.add_argument("--branch", help="instead of the one that is checked out")
        parser.add_argument(
            "--env", action="append", default=[], metavar="NAME=VALUE", help="for the service's processes; repeatable"
        )

    def handle(self, *args: Any, **options: Any) -> None:
        environment = {}
        for pair in options["env"]:
            key, sign, value = pair.partition("=")
            if not sign:
                raise CommandError(f"--env {key} has no value. Write --env {key}=VALUE.")
            environment[key] = value
        try:
            service = registry.register(
                options["name"], options["repository"], environment=environment, actor=None, branch=options["branch"]
            )
        except (registry.CannotRegister, registry.ManifestError) as error:
            raise CommandError(str(error)) from error
        self.stdout.write(f"{service.name} is registered: {service.repository}, branch {service.branch}.")
