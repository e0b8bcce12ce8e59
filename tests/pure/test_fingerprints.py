# ruff: noqa: E501 (tables of cases)
"""Statements without their literals."""

from __future__ import annotations

import gc
import re

import pytest

from monitoring.otlp import fingerprints
from monitoring.otlp.fingerprints import fingerprint, normalise

CASES = [
    # values of every kind
    ("SELECT * FROM players WHERE id = 8123", "SELECT * FROM players WHERE id = ?"),
    ("select 1.5, -2, +3, .5, 1e-9, 0xFF, 7.", "select ?, ?, ?, ?, ?, ?, ?"),
    ("SELECT a FROM t WHERE b = 'O''Brien' AND c = E'it\\'s' AND d = N'x'", "SELECT a FROM t WHERE b = ? AND c = ? AND d = ?"),
    ("SELECT $$free 'text'$$, $tag$ $$ $tag$", "SELECT ?, ?"),
    ("SELECT U&'d\\0061t' , X'1F', B'01'", "SELECT ?, ?, ?"),
    ("SELECT a - 1, b-1, a > -1 FROM t", "SELECT a - ?, b - ?, a > ? FROM t"),
    ("SELECT DATE '2020-01-01', x::int, ARRAY[1,2,3]", "SELECT DATE ?, x::int, ARRAY[?]"),
    # placeholders
    ("WHERE a = %s AND b = %(name)s AND c = $1 AND d = :name AND e = ? AND f = @p1", "WHERE a = ? AND b = ? AND c = ? AND d = ? AND e = ? AND f = ?"),
    # lists and rows
    ("WHERE id IN (1, 2, 3)", "WHERE id IN (?)"),
    ("WHERE id IN (%s,%s , %s)", "WHERE id IN (?)"),
    ("WHERE id IN ('a')", "WHERE id IN (?)"),
    ("WHERE id = ANY(ARRAY['a', 'b']::text[])", "WHERE id = ANY(ARRAY[?]::text[])"),
    ("INSERT INTO t (a, b) VALUES (1, 'x'), (2, 'y'), (3, DEFAULT)", "INSERT INTO t (a, b) VALUES (?), (?, DEFAULT)"),
    ("INSERT INTO t VALUES (1, now()), (2, now())", "INSERT INTO t VALUES (?, now()), (?, now())"),
    # comments and layout
    ("SELECT a -- alice@example.org\n FROM t /* route=/x/1 /* nested */ more */ WHERE b=1;", "SELECT a FROM t WHERE b = ?"),
    ("/* never ends SELECT a FROM t", ""),
    ("  SELECT\n\ta ,b\nFROM   t  ;  ", "SELECT a, b FROM t"),
    # identifiers
    ('SELECT "game_player"."id", "T4"."name" FROM "game_player" T4', 'SELECT "game_player"."id", "T4"."name" FROM "game_player" T4'),
    ("SELECT a1 FROM events_20260302, `x y`", "SELECT a1 FROM events_?, `x y`"),
    ('SELECT 1 AS "alice@example.org"', "SELECT ? AS ?"),
    ('SAVEPOINT "s140234_x1"', "SAVEPOINT ?"),
    ("ROLLBACK TO SAVEPOINT abc", "ROLLBACK TO SAVEPOINT ?"),
    ("SELECT data->>'email', tags @> '{x}' FROM t WHERE d ? 'k'", "SELECT data ->> ?, tags @> ? FROM t WHERE d ? ?"),
    # nothing can be said about what follows
    ("SELECT 'abc\\' , secret , '", "SELECT …"),
    ("SELECT a FROM t WHERE b = 'never ends", "SELECT a FROM t WHERE b = …"),
    ("SELECT $x$ never ends", "SELECT …"),
    ("", ""),
]  # fmt: skip


@pytest.mark.parametrize(("statement", "expected"), CASES)
def test_a_statement_keeps_its_shape_and_loses_its_values(statement: str, expected: str) -> None:
    assert normalise(statement, system="postgresql") == expected
    assert fingerprint(statement, system="postgresql") == expected


SECRET = "alice"
HIDING_PLACES = [
    "'{}'", "'x {} y'", "'it''s {}'", "E'a\\'{}'", "$${}$$", "$q${}$q$", "/* {} */", "-- {}\n1", "'\\'{}'", "'{}",
    "N'{}'", "_utf8'{}'", "'a' '{}'", "'\\\\' || '{}'", "\"{} {}@x\"", "$$ ' {} $$", "'/* {}'", "'-- {}'", "/* ' */ '{}'",
]  # fmt: skip


@pytest.mark.parametrize("system", ["postgresql", "mysql", "sqlite", "mssql", "oracle", "other_sql"])
@pytest.mark.parametrize("place", HIDING_PLACES)
def test_no_literal_survives_in_any_quoting(place: str, system: str) -> None:
    text = place.replace("{}", SECRET)
    found = normalise(f"SELECT a FROM t WHERE c = 4711 AND b = {text}", system=system)
    assert SECRET not in found
    assert "4711" not in found


@pytest.mark.parametrize(
    ("system", "expected"),
    [
        ("postgresql", 'SELECT "name" FROM "t"'),
        ("mysql", 'SELECT ? FROM "t"'),
        ("sqlite", 'SELECT ? FROM "t"'),
        ("other_sql", 'SELECT ? FROM "t"'),
    ],
)
def test_double_quotes_are_names_only_where_they_always_are(system: str, expected: str) -> None:
    assert normalise('SELECT "name" FROM "t"', system=system) == expected


@pytest.mark.parametrize("system", ["redis", "mongodb", "elasticsearch", "", "unheard-of"])
def test_what_is_no_sql_has_no_fingerprint(system: str) -> None:
    assert fingerprint("SET user:alice secret", system=system) == ""


def test_a_long_statement_is_read_and_kept_in_part() -> None:
    found = normalise("SELECT " + ", ".join(f"column_{'x' * 30}_{n % 90}" for n in range(3000)), system="postgresql")
    assert len(found) == fingerprints.LONGEST_FINGERPRINT
    assert found.endswith("…")
    in_a_literal = "SELECT '" + "alice " * 4000 + "'"
    assert normalise(in_a_literal, system="postgresql") == "SELECT …"


def test_normalising_again_changes_nothing() -> None:
    for statement, _ in CASES:
        once = normalise(statement, system="postgresql")
        assert normalise(once, system="postgresql") == once or "_?" in once


def test_the_cache_holds_no_statement() -> None:
    secret = "".join(("sec", "ret-in-the-cache"))
    assert fingerprint(f"SELECT '{secret}'", system="postgresql") == "SELECT ?"
    held = [thing.text for thing in gc.get_objects() if type(thing) is fingerprints._Unhashed]
    assert [text for text in held if text is not None] == []


@pytest.mark.parametrize(
    ("text", "is_it"),
    [("BEGIN", True), ("SAVEPOINT ?", True), ("SELECT ?", True), ("SET x = ?", True), ("SELECT a FROM t", False)],
)
def test_knows_what_repeats_by_nature(text: str, is_it: bool) -> None:
    assert fingerprints.is_bookkeeping(text) is is_it


def test_hostile_statements_take_no_time() -> None:
    for text in ("'" * 16_000, "(" * 16_000, "/*" * 8_000, '"' * 15_999, "$a" * 8_000, "?, " * 5_000, "(?), " * 3_000):
        assert re.search("[a-z]{20}", normalise(text, system="mysql")) is None


def test_what_a_database_would_not_keep_is_not_in_a_fingerprint() -> None:
    found = normalise("SELECT a\x00, \ud800b, \x1b[31m FROM t\x7f", system="postgresql")
    assert found.isprintable()
