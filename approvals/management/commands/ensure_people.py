"""manage.py ensure_people --demo: the people of the demonstration."""

from __future__ import annotations

import json
import secrets
from argparse import ArgumentParser
from typing import Any

from django.contrib.auth.models import User
from django.core.management.base import BaseCommand, CommandError
from django.db import transaction
from django.utils.timezone import now

from approvals import audit, roles, second_factor
from approvals.policy import Role

DEMO = {
    "alice": Role.VIEWER,
    "bob": Role.LEAD,
    "carol": Role.ARCHITECTURE,
    "dave": Role.CTO,
    "erin": Role.ON_CALL,
}


class Command(BaseCommand):
    help = (
        "Create the demonstration's people where they are missing: alice (viewer), bob (lead developer), "
        "carol (architecture team), dave (CTO), erin (on-call). Prints the random passwords of new ones, once, and the "
        "keys that their authenticator apps need."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--demo", action="store_true", help="say that these people are wanted here")
        parser.add_argument("--reset", action="store_true", help="give people who exist a new password and key, too")
        parser.add_argument("--json", action="store_true", help="print one JSON object: name → role, password and key")

    def handle(self, *args: Any, **options: Any) -> None:
        if not options["demo"]:
            raise CommandError(
                "Nothing done. Say --demo: these people may sign, so they belong in a demonstration only."
            )
        people = {name: ensure(name, role, reset=options["reset"]) for name, role in DEMO.items()}
        if options["json"]:
            self.stdout.write(json.dumps(people))
            return
        for name, person in people.items():
            password, key = person["password"] or "(has a password already)", person["key"] or "(has a key already)"
            self.stdout.write(f"{name:<6} {person['role']:<13} {password:<24} {key}")


@transaction.atomic
def ensure(name: str, role: Role, *, reset: bool) -> dict[str, str | None]:
    """The person with this role; their password, and the key of their authenticator, when this call set it."""
    user, created = User.objects.get_or_create(username=name, defaults={"is_staff": True})
    password = None
    if created or reset:
        password = secrets.token_urlsafe(15)
        user.set_password(password)
        user.save(update_fields=["password"])  # recorded, as every new password is
        if created:
            audit.record("person.created", user, because="manage.py ensure_people")
    key = None
    if reset or not second_factor.has_device(user):
        device = second_factor.enrol_at_the_machine(user, now(), because="manage.py ensure_people")
        key = second_factor.shown_key(device)
    roles.grant(user, role, because="manage.py ensure_people")
    return {"role": str(role), "password": password, "key": key}
