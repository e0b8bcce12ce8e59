"""Every action that the code can write into the audit log, read from the code: a new one is among them by itself."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
APPS = ("approvals", "monitoring", "analysis", "improvements", "runerogue")
ACTION = re.compile(r"[a-z][a-z_]*\.[a-z][a-z_-]*")
FILES = re.compile(r".*\.(py|md|html|txt|css|js|json|jsonl|csv|toml|sock|pem|svg|yml|yaml|lock|log|cfg|conf)")


def actions() -> frozenset[str]:
    """The texts that look like one in every module that records or names actions.

    More than there are (a module's own name looks like an action), never fewer: what is put together at run time
    (`alert.{state}`) counts as its beginning and "…".
    """
    found: set[str] = set()
    for app in APPS:
        for path in sorted((ROOT / app).rglob("*.py")):
            text = path.read_text(encoding="utf-8")
            if "migrations" not in path.parts and ("audit" in text or "class Action" in text):
                found.update(_in_module(ast.parse(text)))
    return frozenset(found)


def _in_module(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            if ACTION.fullmatch(node.value) and not FILES.fullmatch(node.value):
                yield node.value
        elif isinstance(node, ast.JoinedStr) and isinstance(node.values[0], ast.Constant):
            beginning = str(node.values[0].value)
            if re.fullmatch(r"[a-z][a-z_]*\.", beginning) and len(node.values) == 2:
                yield f"{beginning}…"
