"""Labels from what spans say: endpoints and dependencies, never a user's own words.

An endpoint is the route template, spelled as the service spells it: that is also the label that the OpenTelemetry
metrics of the same service carry. Where there is none, a raw path is made into a template here.
"""

from __future__ import annotations

import ipaddress
import re
from urllib.parse import urlsplit

from monitoring.privacy import safe_label

LONGEST_LABEL = 200
LONGEST_PATH_SEGMENTS = 8
NO_ROUTE = "(no route)"
UNNAMED = "(unnamed)"

_METHOD_FIRST = re.compile(r"^(?:HTTP )?(?:GET|HEAD|POST|PUT|PATCH|DELETE|OPTIONS|TRACE|CONNECT|QUERY)(?:\s+|$)")
_TEMPLATED = re.compile(r"[{}<>*]|/:[a-z]|\(\?P<")
_HOST = re.compile(r"(?=.{1,100}$)[a-z0-9_](?:[a-z0-9_-]*[a-z0-9_])?(?:\.[a-z0-9_](?:[a-z0-9_-]*[a-z0-9_])?)*")
_NAME = re.compile(r"[A-Za-z_][\w.$/:<>-]{0,150}")
_WORD = re.compile(r"[a-z][a-z_-]{0,30}|v\d{1,2}|[a-z]{1,20}\.(?:html?|json|xml|txt|php|js|css)")
# Parts of a route that only data looks like: numbers, UUIDs, long hexadecimal, addresses, anything percent-encoded.
_DATA = re.compile(
    r"\d+|\d[\d.,:+-]*|[0-9a-fA-F]{8}-[0-9a-fA-F-]{20,}|(?=\w*\d)[0-9a-fA-F]{8,}|.*@.*|.*%[0-9a-fA-F]{2}.*|.*\s.*"
)


def printable(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text)[:LONGEST_LABEL]


def route(template: str) -> str:
    """A route as the service gives it, as its metrics' labels have it too.

    Parts that are data and not template (a careless `http.route`) are replaced.
    """
    path = template.split("?", 1)[0] if "(?" not in template else template
    if not _TEMPLATED.search(path):
        path = "/".join("{id}" if _DATA.fullmatch(part) else part for part in path.split("/"))
    elif "@" in path:
        path = "/".join("{id}" if "@" in part else part for part in path.split("/"))
    return safe_label(printable(path)) or "/"


def template_of(path: str) -> str:
    """A raw path as a template: `/players/8123` and `/players/alice` are `/players/{id}`.

    Only small words stay, and none that follows a plural: by the habits of REST that one names a member, which may be a
    person. Two routes may so become one; a service that sends `http.route` does not have that problem.
    """
    parts = [part for part in path.split("?", 1)[0].split("#", 1)[0].split("/") if part]
    named: list[str] = []
    for part in parts[:LONGEST_PATH_SEGMENTS]:
        after_plural = bool(named) and len(named[-1]) > 3 and named[-1].endswith("s") and not named[-1].endswith("ss")
        named.append(part if _WORD.fullmatch(part) and not after_plural else "{id}")
    if len(parts) > LONGEST_PATH_SEGMENTS:
        named.append("…")
    return "/" + "/".join(named)


def endpoint(*, http_route: str, span_name: str, path: str, status: int) -> str:
    """The endpoint of a server span.

    `http_route` where there is one; else the span's name where it is a template; else the path (or the name, where that
    is a path) as a template. A request that no route took (404) has no endpoint: anybody could invent them.
    """
    if http_route:
        return route(http_route)
    name = _METHOD_FIRST.sub("", span_name, count=1).strip()
    if name and _TEMPLATED.search(name) and " " not in name:
        return route(name)
    if status == 404:
        return NO_ROUTE
    if path:
        return template_of(urlsplit(path).path if "://" in path else path)
    if name.startswith("/"):
        return template_of(name)
    return NO_ROUTE


def name(text: str) -> str:
    """A name out of somebody's code (a service, a queue, a function); runs of digits are replaced. Else UNNAMED."""
    text = text.strip()
    return re.sub(r"\d{3,}", "{id}", text)[:LONGEST_LABEL] if _NAME.fullmatch(text) else UNNAMED


def host(address: str) -> str:
    """The host of `server.address`, without port, path or user; '' for sockets and rubbish. An IP is `(address)`."""
    address = address.strip().lower()
    if "://" in address:
        try:
            address = urlsplit(address).hostname or ""
        except ValueError:
            return ""
    if not address or address.startswith("/") or "@" in address:
        return ""
    try:
        found = ipaddress.ip_address(address.strip("[]"))
    except ValueError:
        bare = address.rpartition(":")[0] if re.search(r":\d+$", address) else address
        return bare if _HOST.fullmatch(bare) and not re.fullmatch(r"[\d.]+", bare) else ""
    return "localhost" if found.is_loopback else "(address)"
