from time import monotonic

from django.core.management.base import BaseCommand, CommandError

from game.models import Item, Player
from game.seeding import seed_world


class Command(BaseCommand):
    help = "Fill the database with an invented world. Does nothing when there is one of this size; see --fresh."

    def add_arguments(self, parser):
        parser.add_argument("--players", type=int, default=5_000)
        parser.add_argument("--guilds", type=int, default=250)
        parser.add_argument("--items", type=int, default=40_000)
        parser.add_argument("--trades", type=int, default=15_000)
        parser.add_argument("--number", type=int, default=1, help="The same number gives the same world.")
        parser.add_argument("--fresh", action="store_true", help="Start over, losing all rows there are.")

    def handle(self, *, players, guilds, items, trades, number, fresh, **options):
        if players < 2 or guilds < 1 or items < 2 or trades < 0:
            raise CommandError("A world needs at least 2 players, 1 guild and 2 items.")
        if not fresh and Player.objects.count() == players and Item.objects.count() == items:
            self.stdout.write("The world is there already.")
            return
        if not fresh and Player.objects.exists():
            raise CommandError("There is a world of another size. Say --fresh to replace it.")
        started = monotonic()
        rows = seed_world(guilds=guilds, players=players, items=items, trades=trades, number=number)
        self.stdout.write(f"Made {rows} rows in {monotonic() - started:.1f} s.")
