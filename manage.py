#!/usr/bin/env python
"""Django's command line, with RuneRogue's settings."""

import os
import sys

if __name__ == "__main__":
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "runerogue.settings")
    if sys.argv[1:2] == ["demo"] and not os.environ.get("SECRET_KEY"):
        # It can start the product by itself, so it must also work on a home that has never been used.
        from runerogue.stack.home import current

        current().create()
        current().ensure_secrets()

    from django.core.management import execute_from_command_line

    from approvals import occasion

    occasion.begin_command(sys.argv)
    execute_from_command_line(sys.argv)
