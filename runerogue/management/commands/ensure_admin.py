"""The first administrator, when there is none yet, with a one-time password that the stack shows once."""

from __future__ import annotations

import secrets
from typing import Any

from django.contrib.auth import get_user_model
from django.core.management.base import BaseCommand
from django.db import transaction

from runerogue.stack import home as stack_home

USERNAME = "admin"


class Command(BaseCommand):
    help = "Make the user `admin` with a random password if nobody may enter the admin yet."

    def handle(self, *args: Any, **options: Any) -> None:
        home = stack_home.current()
        users = get_user_model().objects
        if users.filter(is_superuser=True, is_active=True).exists():
            return
        password = secrets.token_urlsafe(12)
        with transaction.atomic():
            users.create_superuser(username=USERNAME, email="", password=password)
            # Kept until it was shown: a start that fails after this point must not lose the only way in.
            home.create()
            home.set_secret(stack_home.ADMIN_PASSWORD, password)
        self.stdout.write(f"User {USERNAME} made; the one-time password is in {home.secrets_file}")
