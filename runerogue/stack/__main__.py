"""`python -m runerogue.stack run [--demo] [--quick] | stop | status`."""

from __future__ import annotations

import argparse
import sys

from runerogue.stack.home import HomeError, current


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m runerogue.stack", description="RuneRogue with everything it needs."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="start everything and stay in the foreground")
    run.add_argument("--demo", action="store_true", help="with Realm, its load and a quick pace")
    run.add_argument("--quick", action="store_true", help="with the demonstration's quick pace, without Realm")
    commands.add_parser("stop", help="stop it, from another terminal")
    commands.add_parser("status", help="what runs")
    chosen = parser.parse_args()

    from runerogue.stack.errors import StackError

    try:
        from runerogue.stack import foreground

        home = current()
        match chosen.command:
            case "run":
                return foreground.run(home, demo=chosen.demo, quick=chosen.quick)
            case "stop":
                return foreground.stop(home)
            case _:
                return foreground.status(home)
    except (StackError, HomeError) as error:
        print(f"runerogue: {error}", file=sys.stderr, flush=True)
        return 1


if __name__ == "__main__":
    sys.exit(main())
