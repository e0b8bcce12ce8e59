"""What stops the stack: a sentence for a person, and nothing else."""

from __future__ import annotations


class StackError(Exception):
    """The stack can't start or go on. The text says what happened, to what, and what to do next."""
