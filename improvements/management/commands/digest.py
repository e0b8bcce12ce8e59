"""manage.py digest [--week 2026-W47] [--to NAME] [--print text|html]: send the weekly digest, or look at one."""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from django.contrib.auth.models import User
from django.core.management.base import BaseCommand, CommandError
from django.utils.timezone import now

from approvals import posting
from improvements.digest import rendering, sending, weeks
from improvements.digest.composing import compose, last_week, reader_of
from improvements.digest.parts import Facts


class Command(BaseCommand):
    help = (
        "Without anything: send the digests that are due, as the schedule does. With --to: send that person a copy at "
        "once, or print it."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--to", default="", metavar="NAME", help="the user name of the reader")
        parser.add_argument("--week", default="", help="such as 2026-W47; the last one by default")
        parser.add_argument("--print", default="", choices=["text", "html"], help="print it and send nothing")

    def handle(self, *args: Any, **options: Any) -> None:
        if not options["to"]:
            if options["week"] or options["print"]:
                raise CommandError("Name the reader with --to: what a digest says depends on their rights.")
            self.stdout.write(self.sent_to_all())
            return
        user = User.objects.filter(username=options["to"]).first()
        if user is None:
            raise CommandError(f"There is no user {options['to']!r}.")
        reader = reader_of(user)
        try:
            week = weeks.parse(options["week"]) if options["week"] else last_week(reader.zone, now())
            if options["print"]:
                digest = compose(reader, Facts.of(week, reader.zone, now()))
                self.stdout.write(
                    rendering.as_text(digest) if options["print"] == "text" else rendering.as_html(digest)
                )
            else:
                self.stdout.write(sending.send_copy(user, week, at=now(), actor=None))
        except (ValueError, posting.NotSent, posting.Undeliverable) as error:
            raise CommandError(str(error)) from error

    def sent_to_all(self) -> str:
        if obstacle := sending.obstacle():
            raise CommandError(obstacle)
        ended = sending.run(now())
        return ", ".join(f"{number} {state.label}" for state, number in ended.items() if number) or "Nothing is due."
