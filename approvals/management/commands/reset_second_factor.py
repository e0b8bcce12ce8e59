"""manage.py reset_second_factor: for when no administrator is left who could."""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from django.contrib.auth.models import User
from django.core.management.base import BaseCommand, CommandError
from django.utils.timezone import now

from approvals import second_factor


class Command(BaseCommand):
    help = "Take the second factor of somebody who lost it, sign them out everywhere, tell them, and record it."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("name", help="whose")
        parser.add_argument("--because", required=True, help="how you know that this person asked")

    def handle(self, *args: Any, **options: Any) -> None:
        person = User.objects.filter(username=options["name"]).first()
        if person is None:
            raise CommandError(f"There is no user {options['name']!r}.")
        try:
            second_factor.reset_at_the_machine(person, because=options["because"], at=now())
        except second_factor.NotAllowed as refused:
            raise CommandError(str(refused)) from refused
        self.stdout.write(f"{person} has no second factor any more, and sets a new one up after signing in.")
