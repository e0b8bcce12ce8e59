"""One running stack per home: a lock that the kernel lets go of when its holder ends, so it can't go stale."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Holder:
    """Who runs the stack of a home, and where it can be reached (empty while it starts)."""

    pid: int
    address: str = ""


class LockHeldError(Exception):
    """Another process holds the lock."""


@dataclass(frozen=True)
class Lock:
    """The lock while it is held."""

    descriptor: int

    def tell(self, holder: Holder) -> None:
        """Write who holds it, for `holder_of`."""
        text = json.dumps(asdict(holder)).encode()
        os.ftruncate(self.descriptor, 0)
        os.pwrite(self.descriptor, text, 0)


@contextmanager
def hold(path: Path) -> Iterator[Lock]:
    """Hold the lock for as long as the block runs; LockHeldError when somebody else has it."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise LockHeldError from None
        # Between open and flock the last holder may have removed the file: then this lock is on nothing.
        if _is_same(path, descriptor):
            break
        os.close(descriptor)
    try:
        yield Lock(descriptor)
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def holder_of(path: Path) -> Holder | None:
    """Who holds the lock now; None when nobody does."""
    try:
        descriptor = os.open(path, os.O_RDWR)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        try:
            return Holder(**json.loads(os.pread(descriptor, 4096, 0)))
        except (ValueError, TypeError):
            return Holder(pid=0)  # it was taken a moment ago and not written yet
    else:
        return None
    finally:
        os.close(descriptor)


def _is_same(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
