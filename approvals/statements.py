"""Signed statements about the audit log, in files outside the database: who holds only the database can't rewrite them.

Lines are appended under a lock, synced to the disk and never rewritten; each also goes to the program's output, so that
whatever ships logs keeps a copy.
"""

from __future__ import annotations

import datetime as dt
import fcntl
import json
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
SHIPPED = "audit statement %s"  # written by a formatter that withholds nothing; see LOGGING

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


def newest(kind: str = "") -> tuple[dict[str, Any], str] | None:
    """The last statement (of a kind) and its digest, without verifying what was before: of years there are many.

    None where there is none. Raises StatementsUnusable for a line that is no statement.
    """
    try:
        for path in sorted(folder().glob("*.jsonl"), reverse=True):
            for line in reversed(path.read_text(encoding="utf-8").split("\n")):
                if line and (told := json.loads(line)) and kind in ("", told["kind"]):
                    return told, chain.digest_of(line)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StatementsUnusable(f"The audit checkpoints in {folder()} can't be read: {error}.") from error
    return None


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

    Raises StatementsUnusable rather than continue after a line that was tampered with.
    """
    if newest() is None:
        private = _new_key(CURRENT)
        public = public_half(private)
        if settings.AUDIT_PUBLIC_KEY not in ("", public):
            raise StatementsUnusable(
                f"AUDIT_PUBLIC_KEY pins a key, and there is neither a checkpoint in {folder()} nor that key in "
                f"{key_folder()}. Restore both from a copy."
            )
        _write(_signed("key", {"public": public}, 1, chain.GENESIS, private, at))
    private, told, digest = _in_force()
    line = _signed(kind, fields, told["number"] + 1, digest, private, at)
    _write(line)
    return {**fields, "number": told["number"] + 1}, chain.digest_of(line)


def sign(body: dict[str, Any]) -> dict[str, Any]:
    """`body`, signed by the key in force, outside the chain of statements: the manifest of an export."""
    private, _, _ = _in_force()
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


def _signed(
    kind: str, fields: dict[str, Any], number: int, previous: str, private: Ed25519PrivateKey, at: dt.datetime
) -> str:
    body = {
        **fields,
        "kind": kind,
        "number": number,
        "previous": previous,
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
    log.info(SHIPPED, line)


# --- Keys --------------------------------------------------------------------------------------------------------


def public_half(private: Ed25519PrivateKey) -> str:
    """As 64 hex digits."""
    return private.public_key().public_bytes_raw().hex()


def _in_force() -> tuple[Ed25519PrivateKey, dict[str, Any], str]:
    """The key that signs now, with the last statement, which it signed or which introduced it, and its digest."""
    if (last := newest()) is None:
        raise StatementsUnusable(f"There is no audit key yet in {key_folder()}: the first checkpoint makes it.")
    told, digest = last
    introduced = {"key": told.get("public"), "rotation": told.get("new_public")}.get(told["kind"])
    key_id = chain.key_id_of(introduced) if introduced else told.get("key_id")
    for name in (CURRENT, NEXT):
        private = _load(name)
        if private is None or chain.key_id_of(public_half(private)) != key_id:
            continue
        if not introduced and not chain.is_signed(told, public_half(private)):
            raise StatementsUnusable(
                f"{folder()}: statement {told.get('number')} is not signed by the key in force. Nothing is added to "
                "what can't be trusted: see manage.py verify_audit."
            )
        if name == NEXT:  # it was introduced, and then the rotation was cut short
            (key_folder() / NEXT).replace(key_folder() / CURRENT)
        return private, told, digest
    raise StatementsUnusable(
        f"{key_folder()} does not hold the key that signs the audit checkpoints ({key_id}). Restore current.pem from a "
        "copy."
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
