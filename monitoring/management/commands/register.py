"""`manage.py register PATH-OR-URL [--name N] [--branch B] [--env K=V …]`: have a service watched."""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError

from monitoring import addresses, hosts, registry


class Command(BaseCommand):
    help = "Have a service watched and improved, from the folder or URL of its git repository."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("repository", help="a folder with a git repository, or a git URL")
        parser.add_argument("--name", help="instead of the manifest's")
        parser.add_argument("--branch", help="instead of the one that is checked out")
        parser.add_argument(
            "--env", action="append", default=[], metavar="NAME=VALUE", help="for the service's processes; repeatable"
        )
        parser.add_argument(
            "--metrics-url", metavar="URL", help="where its metrics are, if it runs elsewhere and not under RuneRogue"
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
            if options["metrics_url"]:
                registry.watch(service, options["metrics_url"])
        except (registry.CannotRegister, registry.ManifestError) as error:
            raise CommandError(str(error)) from error
        self.stdout.write(f"{service.name} is registered: {service.repository}, branch {service.branch}.")
        if service.parsed.metrics.push and not options["metrics_url"]:
            self.stdout.write(
                f"It sends its metrics itself: start it with OTEL_EXPORTER_OTLP_ENDPOINT={settings.PUBLIC_URL}, "
                f"OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf and OTEL_SERVICE_NAME={service.name}. From outside of "
                'MONITORING_ALLOWED_NETWORKS also OTEL_EXPORTER_OTLP_HEADERS="Authorization=Bearer%20rr_…", a token '
                "with the scope report."
            )
        for url in filter(None, (service.parsed.metrics.promql, options["metrics_url"])):
            if hosts.may_be_reached(url):
                continue
            host, port = addresses.split(url)
            self.stdout.write(
                f"Its metrics are at {host}:{port}, which nobody has approved yet, so nothing is asked there. A lead "
                "developer, an architect or the CTO approves it in the admin under External services; at this machine: "
                f"`manage.py approve_host {host}:{port} --because …` (with --private if its address is a private one)."
            )
