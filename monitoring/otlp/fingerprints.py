"""SQL statements without any literal: one fingerprint for all statements that differ only in their values.

Identifiers stay. Where quotes can be read in two ways (a backslash before a quote, a quote that never ends), the rest
of the statement is dropped: a shorter fingerprint is a small loss, somebody's data in the database is not.
"""

from __future__ import annotations

import hashlib
import re
from functools import lru_cache

LONGEST_STATEMENT = 16_384  # characters that are read
LONGEST_FINGERPRINT = 2_000
REST = "…"

# Systems whose statements are SQL (names of both generations of the semantic conventions). Of all others, such as Redis
# or MongoDB, the text may be all data: only the name of the operation is used.
SQL = frozenset(
    [
        "cassandra",
        "clickhouse",
        "cockroachdb",
        "db2",
        "derby",
        "firebirdsql",
        "greenplum",
        "h2",
        "hive",
        "hsqldb",
        "ibm.db2",
        "mariadb",
        "microsoft.sql_server",
        "mssql",
        "mssqlcompact",
        "mysql",
        "oracle",
        "oracle.db",
        "other_sql",
        "postgresql",
        "presto",
        "redshift",
        "sap.hana",
        "saphana",
        "snowflake",
        "spanner",
        "gcp.spanner",
        "sqlite",
        "teradata",
        "trino",
        "vertica",
    ]
)
# Where "…" always is an identifier. Elsewhere (MySQL, and SQLite in its leniency) it may be text.
DOUBLE_QUOTES_NAME = frozenset(
    [
        "cassandra",
        "cockroachdb",
        "db2",
        "derby",
        "firebirdsql",
        "greenplum",
        "h2",
        "hsqldb",
        "ibm.db2",
        "oracle",
        "oracle.db",
        "postgresql",
        "presto",
        "redshift",
        "sap.hana",
        "saphana",
        "snowflake",
        "teradata",
        "trino",
        "vertica",
    ]
)
CACHES = frozenset({"redis", "memcached", "valkey", "keydb", "dragonfly"})

_TOKEN = re.compile(
    r"""
      (?P<space>\s+)
    | (?P<comment>--[^\n]*|\#(?![>\-=])[^\n]*)
    | (?P<block>/\*)
    | (?P<escaped>[eE]'(?:[^'\\]|\\.|'')*'(?!'))
    | (?P<text>(?:[nNbBxX]|[uU]&|_[A-Za-z0-9]{2,20})?'(?:[^']|'')*'(?!'))
    | (?P<dollar>\$(?P<tag>[A-Za-z_]\w*)?\$)
    | (?P<double>"(?:[^"]|"")*")
    | (?P<back>`[^`]*`)
    | (?P<placeholder>%\([^)]*\)s|%s|\$\d+|(?<![:\w]):[A-Za-z_]\w*|(?<![:\w]):\d+|@@?\w+|\?+(?![|&]))
    | (?P<number>(?<![\w.])(?:0[xX][0-9a-fA-F]+|(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?)(?!\w))
    | (?P<word>[^\W\d]\w*|\d\w*)
    | (?P<operator>::|:=|=>|@>|<@|!~\*|!~|~\*|<=>|<>|!=|<=|>=|\|\||&&|->>|->|\#>>|\#>|[-+*/%<>=~!^&|@?]+?)
    | (?P<other>.)
    """,
    re.VERBOSE | re.DOTALL,
)
_PLAIN_NAME = re.compile(r"[^\W\d][\w$ ]{0,62}")
_DIGITS = re.compile(r"\d{3,}")
_BEFORE_A_NAME = frozenset({"FROM", "JOIN", "INTO", "UPDATE", "TABLE"})
_ITEM = r"\?(?:::\w+)?"
_LIST = re.compile(rf"\(({_ITEM})(?:, {_ITEM})+\)")
_ARRAY = re.compile(rf"\[({_ITEM})(?:, {_ITEM})+\]")
_TUPLES = re.compile(r"(\([^()]*\))(?:, \1)+")
_SAVEPOINT = re.compile(r"(?i)^(SAVEPOINT|RELEASE SAVEPOINT|ROLLBACK TO SAVEPOINT|ROLLBACK TO|RELEASE)\b.+")
_BOOKKEEPING = re.compile(
    r"(?i)(BEGIN|START|COMMIT|ROLLBACK|SAVEPOINT|RELEASE|SET|SHOW|RESET|DISCARD|DEALLOCATE|SELECT \?$)"
)


def fingerprint(statement: str, *, system: str) -> str:
    """`statement` without literals, comments and layout; lists of values are one `(?)`. Empty when it is no SQL.

    `system` is the database as OpenTelemetry names it. At most LONGEST_FINGERPRINT characters; cut, it ends in `…`.
    """
    if system not in SQL:
        return ""
    key = hashlib.blake2b(statement.encode(errors="replace"), digest_size=16).digest()
    # The cache must not hold statements either; its key is a hash, and the text goes beside it.
    return _cached(key, system, _Unhashed(statement))


def digest(text: str) -> str:
    """A short name for a fingerprint: 16 hexadecimal digits."""
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def is_bookkeeping(text: str) -> bool:
    """Whether a fingerprint is about transactions or the session: repeated by nature, and no N+1."""
    return _BOOKKEEPING.match(text) is not None


class _Unhashed:
    """A statement on its way into the cached function; all of them are equal, so only the hash tells them apart."""

    __slots__ = ("text",)

    def __init__(self, text: str) -> None:
        self.text: str | None = text

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Unhashed)

    def __hash__(self) -> int:
        return 0


@lru_cache(maxsize=4096)
def _cached(key: bytes, system: str, statement: _Unhashed) -> str:
    # The cache keeps its arguments: what it keeps is emptied.
    text, statement.text = statement.text, None
    return normalise(text or "", system=system)


def normalise(statement: str, *, system: str) -> str:
    """What `fingerprint` does, without its cache."""
    was_cut = len(statement) > LONGEST_STATEMENT
    statement = statement[:LONGEST_STATEMENT]
    pieces: list[str] = []
    place, spaced = 0, False
    while place < len(statement):
        found = _TOKEN.match(statement, place)
        assert found is not None  # `other` takes any character
        kind, text = found.lastgroup, found[0]
        if found["dollar"] is not None:
            kind = "dollar"
        end = found.end()
        if kind in ("space", "comment"):
            place, spaced = end, True
            continue
        if kind == "block":
            place, spaced = _after_comment(statement, place), True
            continue
        piece: str | None = text
        if kind == "escaped":
            piece = "?"
        elif kind == "text":
            piece = None if "\\'" in text else "?"
        elif kind == "dollar":
            closing = statement.find(text, end)
            piece, end = ("?", closing + len(text)) if closing >= 0 else (None, end)
        elif kind == "double":
            piece = None if '\\"' in text else _double(text, system, pieces, statement[end : end + 1])
        elif kind == "back":
            piece = _name(text)
        elif kind in ("placeholder", "number"):
            piece = "?"
        elif kind == "word":
            piece = _DIGITS.sub("?", text) if not text[0].isdigit() else "?"
        elif kind == "other" and not text.isprintable():
            piece = "?"  # a NUL or half a surrogate pair: nothing that a database would keep
        elif text in "'\"`\\":
            piece = None  # a quote that never ends
        if piece is None:
            _append(pieces, REST, spaced=True)
            was_cut = False
            break
        _append(pieces, piece, spaced=spaced)
        place, spaced = end, False
    if was_cut:
        _append(pieces, REST, spaced=True)
    return _collapsed("".join(pieces))


def _append(pieces: list[str], piece: str, *, spaced: bool) -> None:
    """Add a token with one spelling of the layout, however it was written."""
    last = pieces[-1].strip() if pieces else ""
    if piece == "?" and last in ("-", "+") and _is_sign(pieces):
        pieces.pop()
        pieces.append("?" if not pieces or pieces[-1].endswith(("(", "[")) else " ?")
        return
    tight = (
        not pieces
        or piece in (",", ")", "]", ".", ";", "::")
        or last in ("(", "[", ".", "::")
        or (piece in ("(", "[") and not spaced)
    )
    pieces.append(piece if tight else f" {piece}")


def _is_sign(pieces: list[str]) -> bool:
    """Whether the last token, a minus or plus, belongs to the number after it and is no operation on two."""
    if len(pieces) < 2:
        return True
    before = pieces[-2].strip()
    return before in ("(", "[", ",", "=", "<", ">", "<=", ">=", "<>", "!=", "+", "-", "*", "/", "%", "||") or (
        before.upper() in ("AND", "OR", "SELECT", "BETWEEN", "LIMIT", "OFFSET", "THEN", "ELSE", "WHEN", "IN", "LIKE")
    )


def _after_comment(statement: str, place: int) -> int:
    """The end of the comment that begins at `place`. They nest in PostgreSQL; one that never ends takes the rest.

    MySQL runs what is inside `/*! … */`, but it is version-dependent garnish: it is left out like any comment.
    """
    depth = 0
    for mark in re.finditer(r"/\*|\*/", statement[place:]):
        depth += 1 if mark[0] == "/*" else -1
        if depth == 0:
            return place + mark.end()
    return len(statement)


def _double(text: str, system: str, pieces: list[str], following: str) -> str:
    before = pieces[-1].strip().upper() if pieces else ""
    is_name = (
        system in DOUBLE_QUOTES_NAME or (system == "sqlite" and "." in (before, following)) or before in _BEFORE_A_NAME
    )
    return _name(text) if is_name else "?"


def _name(text: str) -> str:
    """A quoted identifier. One that does not look like a name may be data in the wrong quotes."""
    return _DIGITS.sub("?", text) if _PLAIN_NAME.fullmatch(text[1:-1]) else "?"


def _collapsed(text: str) -> str:
    for pattern in (_LIST, _ARRAY):
        text = pattern.sub(lambda found: found[0][0] + found[1] + found[0][-1], text)
    text = _TUPLES.sub(r"\1", text).rstrip("; ")
    if savepoint := _SAVEPOINT.match(text):
        text = f"{savepoint[1].upper()} ?"  # every one has a name of its own
    return text if len(text) <= LONGEST_FINGERPRINT else text[: LONGEST_FINGERPRINT - 1] + REST
