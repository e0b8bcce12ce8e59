"""manage.py api_token --person NAME --name WHAT --scope read [--scope …] [--days 90]: a token without the admin."""

from __future__ import annotations

import datetime as dt
from argparse import ArgumentParser
from typing import Any

from django.contrib.auth.models import User
from django.core.management.base import BaseCommand, CommandError
from django.utils.timezone import now

from approvals import tokens
from approvals.models import Scope


class Command(BaseCommand):
    help = "Make an API token and print it, once. For machines whose person does not sign in, such as a CI's account."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--person", required=True, help="the user name that it acts as")
        parser.add_argument("--name", required=True, help="what uses it")
        parser.add_argument("--scope", action="append", required=True, choices=[str(scope) for scope in Scope])
        parser.add_argument("--days", type=int, default=90, help="how long it is valid (90)")

    def handle(self, *args: Any, **options: Any) -> None:
        person = User.objects.filter(username=options["person"]).first()
        if person is None:
            raise CommandError(f"There is no user {options['person']!r}. Make one in the admin, or with ensure_people.")
        try:
            _, text = tokens.issue(
                person,
                name=options["name"],
                scopes={Scope(name) for name in options["scope"]},
                expires_at=now() + dt.timedelta(days=options["days"], seconds=-1),
                actor=None,
            )
        except tokens.CannotIssue as reason:
            raise CommandError(str(reason)) from reason
        self.stdout.write(text)
