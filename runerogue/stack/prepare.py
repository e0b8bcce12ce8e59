"""What needs Django before the processes may start: migrations, static files, the first administrator.

One process for all three, run by the stack as `python -m runerogue.stack.prepare`: starting Django is most of the time.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import sys
from pathlib import Path

from runerogue.stack import home as stack_home


def main() -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "runerogue.settings")
    import django
    from django.conf import settings
    from django.core.management import call_command

    django.setup()
    call_command("migrate", interactive=False, verbosity=0)
    print("Migrations applied")
    stamp = Path(settings.STATIC_ROOT) / ".stamp"
    wanted = _fingerprint([Path(folder) for folder in settings.STATICFILES_DIRS])
    if not stamp.exists() or stamp.read_text() != wanted:
        call_command("collectstatic", interactive=False, verbosity=0)
        stamp.write_text(wanted)
        print("Static files collected")
    call_command("ensure_self")
    call_command("ensure_admin")
    if "--demo" in sys.argv[1:]:
        _ensure_signer(settings.HOME)


def _ensure_signer(home: stack_home.Home) -> None:
    """The demonstration's people; what bob, who may sign, signs in with is kept until the ready screen has shown it."""
    from django.core.management import call_command

    told = io.StringIO()
    call_command("ensure_people", demo=True, json=True, stdout=told)
    bob = json.loads(told.getvalue())["bob"]
    for name, value in ((stack_home.SIGNER_PASSWORD, bob["password"]), (stack_home.SIGNER_KEY, bob["key"])):
        if value:
            home.set_secret(name, value)


def _fingerprint(folders: list[Path]) -> str:
    """Changes when a static file of the project or an installed package changes."""
    lock = stack_home.PROJECT / "uv.lock"
    files = [lock, *(path for folder in folders for path in sorted(folder.rglob("*")) if path.is_file())]
    seen = [f"{path}:{path.stat().st_mtime_ns}:{path.stat().st_size}" for path in files if path.exists()]
    return hashlib.sha256("\n".join(seen).encode()).hexdigest()


if __name__ == "__main__":
    main()
