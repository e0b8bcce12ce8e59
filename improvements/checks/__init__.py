"""Checks of a patch. Each is a function from folders and a manifest to one Outcome; it moves no state and keeps
nothing.

A check that could not look says NO_DATA, never PASS.
"""

from __future__ import annotations

# Evidence is stored, hashed and read by people: text in it is cut to this many characters.
MOST_CHARACTERS = 20_000


def shortened(text: str, most: int = MOST_CHARACTERS) -> str:
    """The end of a long text, where the trouble usually is."""
    return text if len(text) <= most else f"… ({len(text) - most:,} characters before)\n{text[-most:]}"
