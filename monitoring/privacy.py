"""What may be kept of a text that came from outside: templates of routes, labels and messages without people in them.

A form can't tell every name from a word, so what is not clearly a fixed part of a route goes: too little is kept
rather than too much.
"""

from __future__ import annotations

import hashlib
import ipaddress
import logging
import re
import traceback
from collections.abc import Iterable, Mapping
from urllib.parse import unquote

LONGEST = 200  # characters of a label or a route
MOST_SEGMENTS = 10
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT"})
VALUE = "{}"  # what stands in a template for a part that changes

# The labels that signals may carry. Everything else that a source says about itself is dropped.
KEPT_LABELS = frozenset(
    {"endpoint", "method", "release", "dependency", "kind", "status", "device", "mountpoint", "rule", "category"}
)

# The segment after one of these names a person, unless it is one of the words beside.
PEOPLE = frozenset(
    {"user", "users", "people", "person", "persons", "member", "members", "customer", "customers", "u"}
    | {"account", "accounts", "profile", "profiles", "player", "players", "author", "authors"}
    | {"contact", "contacts", "patient", "patients", "employee", "employees"}
)
NOT_PEOPLE = frozenset(
    {"me", "self", "new", "add", "create", "edit", "list", "all", "search", "login", "logout", "register"}
    | {"count", "stats", "settings", "export", "import", "top", "recent", "bulk"}
)
ENDINGS = "json|xml|html?|txt|csv|js|css|svg|png|jpe?g|gif|webp|ico|pdf|php|aspx?|jsp|do|proto|yaml|yml"
_FIXED = re.compile(
    rf"""
      [a-z]+(?:[_-][a-z]+){{0,3}} (?:\.(?:{ENDINGS}))?   # word, some-words, word.json
    | [a-z]+(?:[A-Z][a-z]+){{1,3}}                       # camelCase
    | [a-z]{{1,10}}\d{{1,2}}                             # v2, oauth2
    | <[\w:.\\\[\]+*^$|-]{{1,60}}> | \{{[\w:.*]{{0,60}}\}} | :[A-Za-z_]\w{{0,30}} | \[[\w.]{{1,40}}\] | \*{{1,2}}
    """,
    re.VERBOSE,
)
_LONGEST_WORD = 32
_METHOD_AND_PATH = re.compile(r"([A-Z]{3,7}) (/.*)", re.DOTALL)

# What a person can be found by, wherever it stands: (what, the sign that takes its place).
_MARKS: tuple[tuple[re.Pattern[str], str], ...] = (
    # A URL loses who signs in with it and its query; what it asks for may be anything.
    (re.compile(r"(?<=://)[^/\s@]+@"), ""),
    (re.compile(r"(?<=[\w/}\])])\?[^\s\"'<>]+"), "?…"),
    (re.compile(r"[\w.+%-]+(?:@|%40)[\w-]+(?:\.[\w-]+)+"), "{email}"),
    (re.compile(r"\beyJ[\w-]{6,}(?:\.[\w-]*){0,2}"), "{token}"),
    (
        re.compile(
            r"(?i)\b(bearer|password|passwd|secret|[\w-]*token|[\w-]*api[_-]?key|session_?(?:id|key)?|sid|"
            r"authorization|(?:set-)?cookie)(\"?'?\s*[=:]\s*\"?'?|(?<=bearer)\s+)(?:bearer |basic )?[^\s\"',;&]+"
        ),
        r"\1\2{secret}",
    ),
    (
        re.compile(r"\b(?:sk|pk|rk|gh[opsu]|glpat|xox[abp]|akia|whsec)[_-]?[A-Za-z0-9][\w-]{11,}", re.IGNORECASE),
        "{token}",
    ),
    (re.compile(r"(?i)\b[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\b"), "{id}"),
    (re.compile(r"(?<!\w)\+\d[\d ()./-]{6,}\d"), "{number}"),
    (re.compile(r"\b(?:\d{4}[ -]){3}\d{1,7}\b|\b\d{4}[ -]\d{6}[ -]\d{5}\b"), "{number}"),
    (re.compile(r"(?<![\d.])\d{9,}(?![\d.])"), "{number}"),
)
_MAYBE_IPV4 = re.compile(r"(?<![\d.])\d{1,3}(?:\.\d{1,3}){3}(?![\d.]*\d)")
# The machines of an installation; an operator must see which of them a line is about.
_OWN_NETWORKS = tuple(
    map(
        ipaddress.ip_network,
        ("127.0.0.0/8", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "0.0.0.0/32", "::/127", "fc00::/7"),
    )
)
_MAYBE_IPV6 = re.compile(
    r"(?<![\w:.])[0-9A-Fa-f]{0,4}(?::[0-9A-Fa-f]{0,4}){2,7}(?:\d*(?:\.\d{1,3}){3})?(?:%\w+)?(?![\w:])"
)
_MAYBE_TOKEN = re.compile(r"[A-Za-z0-9+=]{16,}")
_FULL_NAME = re.compile(r"\b[A-Z][^\W\d_A-Z]+(?:['’-][^\W\d_]+)? [A-Z](?:[^\W\d_]+|['’-][^\W\d_]+)+")


def route_template(path: str) -> str:
    """The route of a path or URL: no host, no query, no fragment, and `{}` for each segment that may change.

    `/players/17/items?token=…` gives `/players/{}/items`. A segment stays if it is a plain word or a placeholder of a
    framework (`<int:pk>`, `{id}`, `:id`). At most ten segments and 200 characters.
    """
    path = re.sub(r"^[A-Za-z][A-Za-z0-9+.-]*://[^/?#]*", "", path)
    # A placeholder of a regular expression has question marks of its own.
    path = re.sub(r"\(\?P?<(\w+)>(?:[^()]|\([^()]*\))*\)", r"<\1>", path)
    path = re.split(r"[?#;]", path, maxsplit=1)[0]
    segments = path.strip("^$").split("/")
    kept: list[str] = []
    for number, raw in enumerate(segments):
        if number > MOST_SEGMENTS:
            kept.append("*")
            break
        before = segments[number - 1].lower() if number else ""
        kept.append(_segment(unquote(raw), after=before))
    return "/".join(kept)[:LONGEST] or "/"


def _segment(segment: str, *, after: str) -> str:
    if not segment:
        return ""
    if segment[0] in "<{:[*" and _FIXED.fullmatch(segment):
        return segment
    if len(segment) > _LONGEST_WORD or not _FIXED.fullmatch(segment):
        return VALUE
    return VALUE if after in PEOPLE and segment not in NOT_PEOPLE else segment


def scrub(text: str, *, own_addresses: bool = True) -> str:
    """A message without addresses, tokens, numbers of cards and phones, query strings and secrets.

    For texts of our own programs that may quote something. Names of people stay: no form tells them from words. So do
    loopback and private addresses, unless `own_addresses` is False.
    """

    def address(match: re.Match[str]) -> str:
        return "{address}" if _is_address(match[0], own=not own_addresses) else match[0]

    for pattern, sign in _MARKS:
        text = pattern.sub(sign, text)
    text = _MAYBE_IPV6.sub(address, _MAYBE_IPV4.sub(address, text))
    return _MAYBE_TOKEN.sub(lambda match: "{token}" if _is_token(match[0]) else match[0], text)


def safe_label(value: str, *, longest: int = LONGEST) -> str:
    """A label's value as it may be kept: paths as their templates, and nothing by which a person can be found."""
    value = "".join(sign if sign.isprintable() else "_" for sign in value[: 4 * longest])
    if "://" in value or value.startswith(("/", "^")):
        return route_template(value)[:longest]
    if both := _METHOD_AND_PATH.fullmatch(value):
        return f"{both[1]} {route_template(both[2])}"[:longest]
    return _FULL_NAME.sub("{name}", scrub(value, own_addresses=False))[:longest]


def safe_labels(labels: Mapping[str, str], *, kept: Iterable[str] = KEPT_LABELS) -> dict[str, str]:
    """The labels whose names are in `kept`, with values as they may be stored."""
    names = frozenset(kept)
    return {name: safe_label(value) for name, value in labels.items() if name in names}


def pseudonym(text: str, *, key: str) -> str:
    """Tells two texts apart without saying what they are, to nobody who lacks `key`. 16 hexadecimal digits."""
    return hashlib.blake2b(text.encode("utf-8", "replace"), key=key.encode()[:64], digest_size=8).hexdigest()


class PrivateFormatter(logging.Formatter):
    """Writes log lines without what visitors sent: their paths as templates, no hosts, and everything scrubbed."""

    def format(self, record: logging.LogRecord) -> str:
        if record.name.startswith(("django.request", "django.security", "django.server", "gunicorn")):
            record = logging.makeLogRecord(record.__dict__)
            if isinstance(record.args, tuple):
                record.args = tuple(_as_asked(part) for part in record.args)
            record.msg = re.sub(r"'[^']*'", "'…'", str(record.msg))
            record.msg = re.sub(r"(?s)(?<=^Invalid request) from ip=.*", ".", record.msg)  # gunicorn quotes its lines
            if record.exc_info and record.exc_info[0]:
                # What an exception says may quote the request that caused it; where it happened does not.
                frames = "".join(traceback.format_tb(record.exc_info[2]))
                record.exc_text = f"Traceback (most recent call last):\n{frames}{record.exc_info[0].__name__}"
        return scrub(super().format(record))


def _as_asked(part: object) -> object:
    """An argument of Django's own log lines: the path, the method (both the visitor's), or words of Django's."""
    if not isinstance(part, str):
        return part
    if part.startswith("/"):
        return route_template(part)
    return "other" if part == part.upper() and part not in METHODS else part


def _is_address(text: str, *, own: bool) -> bool:
    """Whether `text` is an IP address; one of an installation's own networks only counts if `own`."""
    try:
        found = ipaddress.ip_address(text)
    except ValueError:
        return False
    return own or not any(found in network for network in _OWN_NETWORKS)


def _is_token(text: str) -> bool:
    """Long, and digits all over: no word and no name of a class looks like that."""
    digits = sum(sign.isdigit() for sign in text)
    return digits >= 3 and digits < len(text) and len(re.findall(r"\d[A-Za-z]|[A-Za-z]\d", text)) >= 3
