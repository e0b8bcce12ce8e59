"""`make bench [ONLY=pattern]`: run tests/bench/bench_*.py, print one table, write bench.json under RUNEROGUE_HOME."""

from __future__ import annotations

import fnmatch
import importlib
import json
import os
import platform
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from runerogue.stack.home import current
from tests.bench.rows import Row

HEADINGS = ("what", "value", "target", "met", "peer", "ratio")


def names(only: str) -> list[str]:
    """The benchmarks whose name matches: a part of it, or a pattern with `*`."""
    found = sorted(path.stem.removeprefix("bench_") for path in Path(__file__).parent.glob("bench_*.py"))
    pattern = only if any(sign in only for sign in "*?[") else f"*{only}*"
    return [name for name in found if fnmatch.fnmatch(name, pattern)]


def measure(name: str) -> list[Row]:
    """Run one benchmark. Whatever it raises becomes a row: one broken measurement does not cost the others."""
    rows: list[Row] = []
    try:
        rows.extend(importlib.import_module(f"tests.bench.bench_{name}").bench())
    except Exception as error:  # noqa: BLE001 (told in the table, with the traceback above it)
        traceback.print_exc()
        rows.append(Row(name, float("nan"), "", error=f"{type(error).__name__}: {error}".splitlines()[0]))
    return rows


def number(value: float, unit: str) -> str:
    shown = f"{value:,.0f}" if abs(value) >= 1000 or value == int(value) else f"{value:,.3g}"
    return f"{shown} {unit}".strip()


def cells(row: Row) -> tuple[str, ...]:
    if row.error:
        return (row.what, "failed", row.error, "NO", "", "")
    sign = "≤" if row.better == "lower" else "≥"
    return (
        row.what,
        number(row.value, row.unit),
        "" if row.target is None else f"{sign} {number(row.target, row.unit)}",
        {None: "", True: "yes", False: "NO"}[row.met],
        "" if row.peer is None else f"{row.peer} {number(row.peer_value or 0, row.unit)}",
        "" if row.ratio is None else f"{row.ratio:.2f}×",
    )


def table(rows: Sequence[Row]) -> str:
    lines = [HEADINGS, *map(cells, rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEADINGS))]
    shown = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    return "\n".join([shown[0], "  ".join("─" * width for width in widths), *shown[1:]])


def main(only: str = "") -> int:
    chosen = names(only)
    if not chosen:
        print(f"No benchmark matches {only!r}. There are: {', '.join(names(''))}", file=sys.stderr)
        return 2
    rows: list[Row] = []
    for name in chosen:
        print(f"· {name}", flush=True)
        started = time.monotonic()
        rows.extend(measure(name))
        print(f"  {time.monotonic() - started:.0f} s", flush=True)
    print("\n" + table(rows) + "\n")
    home = current()
    home.folder.mkdir(parents=True, exist_ok=True)
    report = {
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "rows": [
            {**asdict(row), "value": None if row.error else row.value, "met": row.met, "ratio": row.ratio}
            for row in rows
        ],
    }
    path = home.folder / "bench.json"
    path.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    print(f"Written to {path}")
    return 1 if any(row.met is False for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:2]))
