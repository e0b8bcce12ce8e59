"""When started by root: the user that PostgreSQL runs as, and its way to the files that it needs.

PostgreSQL refuses to run as root. Its user may have no way to the home or to the wheel's programs, because a folder on
the way is closed to others (/root is the usual one). Such a folder gets one ACL entry, "this user may pass through":
less than `chmod o+x`, and nobody else gains anything.
"""

from __future__ import annotations

import os
import pwd
import shutil
import stat
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

from runerogue.stack.errors import StackError

POSTGRES_USER = "runerogue-postgres"

_ACL = "system.posix_acl_access"
_OWNER, _USER, _GROUP, _MASK, _OTHERS = 0x01, 0x02, 0x04, 0x10, 0x20
_NOBODY_ID = 0xFFFFFFFF
_EXECUTE = 1


def ensure_user(name: str = POSTGRES_USER) -> pwd.struct_passwd:
    """The system user `name`, created when missing. StackError when it can't be."""
    try:
        return pwd.getpwnam(name)
    except KeyError:
        pass
    useradd = shutil.which("useradd") or shutil.which("useradd", path="/usr/sbin:/sbin")
    if useradd is None:
        raise StackError(
            f"PostgreSQL does not run as root and there is no `useradd` here to make a user for it. "
            f"Make a system user named {name}, run as an ordinary user, or set DATABASE_URL."
        )
    command = [
        useradd,
        "--system",
        "--no-create-home",
        "--home-dir",
        "/nonexistent",
        "--shell",
        "/usr/sbin/nologin",
        name,
    ]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        return pwd.getpwnam(name)
    except KeyError:
        raise StackError(
            f"PostgreSQL does not run as root, and its system user {name} could not be made: {made.stderr.strip()}. "
            "Run as an ordinary user, or set DATABASE_URL."
        ) from None


def can_enter(folder: Path, user: pwd.struct_passwd) -> bool:
    """True when `user` can pass through `folder` and everything above it. Asked of the kernel, not worked out."""
    return (
        subprocess.run(
            ["/bin/sh", "-c", 'cd "$0"', str(folder)],
            user=user.pw_uid,
            group=user.pw_gid,
            extra_groups=[],
            cwd="/",
            capture_output=True,
            check=False,
        ).returncode
        == 0
    )


def let_in(folder: Path, user: pwd.struct_passwd, say: Callable[[str], None]) -> None:
    """See to it that `user` can pass through to `folder`. StackError naming the closed folder when there is no way."""
    for step in [*reversed(folder.resolve().parents), folder.resolve()]:
        if can_enter(step, user):
            continue
        try:
            _allow_passage(step, user.pw_uid)
        except (OSError, AttributeError) as error:
            raise _closed(step, folder, user, str(error)) from error
        if not can_enter(step, user):
            raise _closed(step, folder, user, "an ACL entry did not help")
        say(f"Let {user.pw_name} pass through {step} (an ACL entry for this user alone)")


def open_programs(folder: Path) -> None:
    """Make an installed wheel's programs readable for everybody, as they would be with the usual umask."""
    for path in [folder, *folder.rglob("*")]:
        mode = path.lstat().st_mode
        if stat.S_ISLNK(mode):
            continue
        wanted = mode | stat.S_IROTH | (stat.S_IXOTH if mode & stat.S_IXUSR else 0)
        if wanted != mode:
            path.chmod(wanted)


def _closed(step: Path, folder: Path, user: pwd.struct_passwd, why: str) -> StackError:
    return StackError(
        f"PostgreSQL does not run as root, and its user {user.pw_name} can't get to {folder}: {step} is closed to "
        f"others ({why}). Set RUNEROGUE_HOME to a folder outside of {step}, such as /var/lib/runerogue (and keep this "
        f"checkout outside of it too), or run `chmod o+x {step}`."
    )


def _allow_passage(folder: Path, uid: int) -> None:
    """Add "user `uid`: execute" to the folder's access ACL (the kernel's binary form, version 2)."""
    mode = folder.stat().st_mode
    try:
        raw = os.getxattr(folder, _ACL)
        entries = {(tag, who): rights for tag, rights, who in struct.iter_unpack("<HHI", raw[4:])}
    except OSError:
        entries = {
            (_OWNER, _NOBODY_ID): mode >> 6 & 7,
            (_GROUP, _NOBODY_ID): mode >> 3 & 7,
            (_OTHERS, _NOBODY_ID): mode & 7,
        }
    mask = entries.get((_MASK, _NOBODY_ID), entries[_GROUP, _NOBODY_ID])
    entries[_USER, uid] = entries.get((_USER, uid), 0) | _EXECUTE
    entries[_MASK, _NOBODY_ID] = mask | _EXECUTE
    packed = b"".join(struct.pack("<HHI", tag, rights, who) for (tag, who), rights in sorted(entries.items()))
    os.setxattr(folder, _ACL, struct.pack("<I", 2) + packed)
