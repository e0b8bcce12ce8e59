"""manage.py document_lifecycle: write the lifecycle's tables into docs/architecture.md."""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand

from improvements import documenting


class Command(BaseCommand):
    help = "Write the tables of the lifecycle into docs/architecture.md, from the code. A test fails when they are old."

    def handle(self, *args: Any, **options: Any) -> None:
        page = settings.BASE_DIR / "docs" / "architecture.md"
        page.write_text(documenting.rewritten(page.read_text()))
        self.stdout.write(f"Wrote {page}.")
