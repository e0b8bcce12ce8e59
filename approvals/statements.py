"""Signed statements about the audit log, in files outside the database: who holds only the database can't rewrite them.

Lines are appended under a lock, synced to the disk and never rewritten; each also goes to the program's output, so that
whatever ships logs keeps a copy.
"""

from __future__ import annotations

import datetime as dt
import fcntl
import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from django.conf import settings

from approvals import chain

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

log = logging.getLogger(__name__)

CURRENT, NEXT = "current.pem", "next.pem"


class StatementsUnusable(RuntimeError):
    """The files of statements can't be read or written, or are not what was written. The message says what to do."""


def folder() -> Path:
    return Path(settings.AUDIT_CHECKPOINT_DIR)


def key_folder() -> Path:
    return Path(settings.AUDIT_KEY_DIR)


# --- Reading -----------------------------------------------------------------------------------------------------


def lines() -> list[str]:
    """Every statement as it was written, oldest first; none where nothing was ever written. StatementsUnusable."""
    try:
        found = [path.read_text(encoding="utf-8") for path in sorted(folder().glob("*.jsonl"))]
        if folder().exists() and not os.access(folder(), os.R_OK | os.X_OK):
            raise PermissionError(f"no right to list {folder()}")
    except (OSError, UnicodeDecodeError) as error:
        raise StatementsUnusable(
            f"The audit checkpoints in {folder()} can't be read: {error}. Give RuneRogue's user the right to "
            "read them, or restore the files from a copy or from the shipped logs."
        ) from error
    return [line for text in found for line in text.split("\n") if line]


def read() -> chain.Statements:
    """The statements, verified up to the first bad one. Raises StatementsUnusable."""
    return chain.read_statements(lines(), pinned=settings.AUDIT_PUBLIC_KEY)


# --- Writing -----------------------------------------------------------------------------------------------------


@contextmanager
def locked() -> Iterator[None]:
    """Nobody else appends. Raises StatementsUnusable where the folder can't be written."""
    try:
        folder().mkdir(parents=True, exist_ok=True)
        key_folder().mkdir(parents=True, exist_ok=True, mode=0o700)
        handle = os.open(folder() / "lock", os.O_CREAT | os.O_RDWR, 0o600)
    except OSError as error:
        raise StatementsUnusable(
            f"The audit checkpoints in {folder()} can't be written: {error}. Until they can, nothing outside the "
            "database shows a rewritten log."
        ) from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def append(kind: str, fields: dict[str, Any], *, at: dt.datetime) -> tuple[dict[str, Any], str]:
    """Sign one statement and write it, under `locked`. Returns it with its digest. Makes the first key when needed.

    Raises StatementsUnusable rather than continue files that were tampered with.
    """
    known = read()
    if known.fault:
        raise StatementsUnusable(f"{folder()}: {known.fault} Nothing is added to files that can't be trusted.")
    if not known.all:
        private = _new_key(CURRENT)
        _write(_signed("key", {"public": public_half(private)}, known, private, at))
        known = read()
        if known.fault:
            raise StatementsUnusable(f"{known.fault} AUDIT_PUBLIC_KEY pins another key than {key_folder()} holds.")
    private = _key_in_force(known)
    line = _signed(kind, fields, known, private, at)
    _write(line)
    return {**fields, "number": len(known.all) + 1}, chain.digest_of(line)


def sign(body: dict[str, Any]) -> dict[str, Any]:
    """`body`, signed by the key in force, outside the chain of statements: the manifest of an export."""
    private = _key_in_force(read())
    told = {**body, "key_id": chain.key_id_of(public_half(private))}
    return {**told, "signature": private.sign(chain.spelled(told).encode()).hex()}


def rotate(at: dt.datetime) -> tuple[dict[str, Any], str]:
    """A new key, introduced by the one in force, which is then forgotten. Returns the statement and its digest.

    Cut short at any point it can be repeated: the new key is kept before it is introduced.
    """
    with locked():
        private = _new_key(NEXT)
        public = public_half(private)
        told, digest = append("rotation", {"new_key_id": chain.key_id_of(public), "new_public": public}, at=at)
        (key_folder() / NEXT).replace(key_folder() / CURRENT)
        _sync_folder(key_folder())
    return told, digest


def _signed(kind: str, fields: dict[str, Any], known: chain.Statements, private: Ed25519PrivateKey, at: Any) -> str:
    body = {
        **fields,
        "kind": kind,
        "number": len(known.all) + 1,
        "previous": known.digests[-1] if known.digests else chain.GENESIS,
        "key_id": chain.key_id_of(public_half(private)),
        "at": at.astimezone(dt.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
    }
    return chain.spelled({**body, "signature": private.sign(chain.spelled(body).encode()).hex()})


def _write(line: str) -> None:
    path = folder() / f"{dt.datetime.now(dt.UTC):%Y-%m}.jsonl"
    newest = max(folder().glob("*.jsonl"), default=path)
    path = max(path, newest)  # a clock that went back must not put a line before earlier ones
    is_new = not path.exists()
    try:
        with path.open("ab") as file:
            file.write(line.encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        if is_new:
            _sync_folder(folder())
    except OSError as error:
        raise StatementsUnusable(f"{path} can't be written: {error}") from error
    log.info("audit statement %s", line)


# --- Keys --------------------------------------------------------------------------------------------------------


def public_half(private: Ed25519PrivateKey) -> str:
    """As 64 hex digits."""
    return private.public_key().public_bytes_raw().hex()


def _key_in_force(known: chain.Statements) -> Ed25519PrivateKey:
    for name in (CURRENT, NEXT):
        private = _load(name)
        if private is not None and public_half(private) == known.public:
            if name == NEXT:  # introduced, and then the rotation was cut short
                (key_folder() / NEXT).replace(key_folder() / CURRENT)
            return private
    raise StatementsUnusable(
        f"{key_folder()} does not hold the key that signs the audit checkpoints ({chain.key_id_of(known.public)}). "
        "Restore current.pem from a copy."
        if known.public
        else f"There is no audit key yet in {key_folder()}: the first checkpoint makes it."
    )


def _load(name: str) -> Ed25519PrivateKey | None:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        private = load_pem_private_key((key_folder() / name).read_bytes(), password=None)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise StatementsUnusable(f"The audit key {key_folder() / name} can't be read: {error}") from error
    if not isinstance(private, Ed25519PrivateKey):
        raise StatementsUnusable(f"{key_folder() / name} is no Ed25519 key.")
    return private


def _new_key(name: str) -> Ed25519PrivateKey:
    """A key in a file that only this user reads, whole on the disk before anything is signed with it.

    A key that is there already was made by a start that was cut short, and nothing is signed with it yet: it is used.
    """
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    if (known := _load(name)) is not None:
        return known
    private = Ed25519PrivateKey.generate()
    text = private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    with tempfile.NamedTemporaryFile(dir=key_folder(), delete=False) as file:  # mode 0600
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    Path(file.name).replace(key_folder() / name)
    _sync_folder(key_folder())
    return private


def _sync_folder(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
