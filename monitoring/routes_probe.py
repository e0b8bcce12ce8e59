"""The routes of a Django service, from its URL configuration, and whether all of them are measured.

Run as a program it prints them as JSON: `python routes_probe.py SETTINGS_MODULE`, by the service's own interpreter,
which knows nothing of RuneRogue. Only the standard library and Django are imported.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from typing import Any

MEASURES_ALL = {"PrometheusAfterMiddleware"}  # django-prometheus: every resolved view, under its name


def names(patterns: Any, namespaces: tuple[str, ...] = ()) -> Iterator[str]:
    """What `request.resolver_match.view_name` will be for each route."""
    for pattern in patterns:
        if hasattr(pattern, "url_patterns"):
            inner = (*namespaces, pattern.namespace) if pattern.namespace else namespaces
            yield from names(pattern.url_patterns, inner)
        else:
            yield ":".join([*namespaces, pattern.name or pattern.lookup_str])


def measures_all(middleware: list[str]) -> bool:
    """Whether one of the middleware classes, or what it is made of, measures every request."""
    from django.utils.module_loading import import_string

    found = (import_string(path) for path in middleware)
    return any(parent.__name__ in MEASURES_ALL for one in found for parent in getattr(one, "__mro__", ()))


def routes() -> dict[str, Any]:
    """Of the Django that is set up in this process."""
    from django.conf import settings
    from django.urls import get_resolver

    return {
        "names": sorted(set(names(get_resolver().url_patterns))),
        "measures_all": measures_all(list(settings.MIDDLEWARE)),
    }


def main() -> None:
    # As `manage.py` does; what stands there is this file's folder, whose modules are not the service's.
    sys.path[0] = os.getcwd()  # noqa: PTH109
    os.environ["DJANGO_SETTINGS_MODULE"] = sys.argv[1]
    import django

    django.setup()
    print(json.dumps(routes()))  # noqa: T201 (this is its answer)


if __name__ == "__main__":
    main()
