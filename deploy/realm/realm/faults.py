"""Faults on demand, for drills: slow, failing, crashing, leaking or busy requests.

The faults are read from `faults.json` in Realm's folder (REALM_FAULTS_FILE names another file), which may change
while Realm runs. No file means no faults. /up and /metrics are spared unless "everything" is true.

    python -m realm.faults set latency_ms=400 error_ratio=0.2 only_views=player-list,leaderboard
    python -m realm.faults show
    python -m realm.faults clear
"""

import json
import logging
import os
import random
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from django.http import JsonResponse

logger = logging.getLogger(__name__)

SPARED_VIEWS = {"up", "metrics"}
RECHECK_SECONDS = 0.1
CRASH_EXIT_CODE = 70

# The largest value of each number: a typing mistake in a drill must not take the machine down.
LIMITS = {
    "latency_ms": 60_000,
    "latency_ratio": 100,
    "cpu_ms": 60_000,
    "leak_bytes": 100_000_000,
    "error_ratio": 1,
    "crash_ratio": 1,
    "crash_after_ratio": 1,
}


class FaultsError(ValueError):
    """The faults are not valid. The message says which one and what is allowed."""


@dataclass(frozen=True)
class Faults:
    latency_ms: float = 0  # wait before the view
    latency_ratio: float = 0  # wait after the view, so many times as long as it took: 1 makes it twice as slow
    cpu_ms: float = 0  # burn processor time before the view
    leak_bytes: int = 0  # keep this much memory for ever, per request
    error_ratio: float = 0  # share of requests answered with 500 instead of the view
    crash_ratio: float = 0  # share of requests that kill the process before the view
    crash_after_ratio: float = 0  # share of requests that kill it after the view, before the response
    only_views: tuple[str, ...] = ()  # names from urls.py; empty means all
    everything: bool = False  # also /up and /metrics

    @classmethod
    def from_dict(cls, values):
        """Check `values` and return the faults. Raises FaultsError."""
        if not isinstance(values, dict):
            raise FaultsError("the faults must be one JSON object")
        known = {field.name for field in fields(cls)}
        for name, value in values.items():
            if name not in known:
                raise FaultsError(f"there is no fault {name!r}; known: {', '.join(sorted(known))}")
            if name in LIMITS:
                number = isinstance(value, int | float) and not isinstance(value, bool)
                if not number or not 0 <= value <= LIMITS[name]:
                    raise FaultsError(f"{name} must be a number from 0 to {LIMITS[name]}, not {value!r}")
        if not isinstance(values.get("everything", False), bool):
            raise FaultsError("everything must be true or false")
        views = values.get("only_views", [])
        if not isinstance(views, list) or not all(isinstance(view, str) for view in views):
            raise FaultsError("only_views must be a list of view names")
        return cls(**{**values, "only_views": tuple(views), "leak_bytes": int(values.get("leak_bytes", 0))})

    def concern(self, view_name):
        if view_name in SPARED_VIEWS and not self.everything:
            return False
        return not self.only_views or view_name in self.only_views


NO_FAULTS = Faults()


def faults_file():
    default = Path(__file__).resolve().parent.parent / "faults.json"
    return Path(os.environ.get("REALM_FAULTS_FILE") or default)


class FaultFile:
    """The faults in a file, read again when the file has changed, looked at no more than every RECHECK_SECONDS."""

    def __init__(self, path):
        self.path = path
        self._faults = NO_FAULTS
        self._version = None
        self._checked_at = float("-inf")

    def faults(self):
        # Threads may race here; the worst that happens is that two of them read the file.
        if time.monotonic() - self._checked_at >= RECHECK_SECONDS:
            self._checked_at = time.monotonic()
            try:
                stat = self.path.stat()
                version = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
            except OSError:
                version = None
            if version != self._version:
                self._faults = self._read() if version else NO_FAULTS
                self._version = version
        return self._faults

    def _read(self):
        try:
            faults = Faults.from_dict(json.loads(self.path.read_text()))
        except FileNotFoundError:
            return NO_FAULTS
        except (OSError, ValueError) as error:
            logger.error("%s is ignored, no fault is active: %s", self.path, error)
            return NO_FAULTS
        logger.warning("Faults from %s are active: %s", self.path, changed(faults))
        return faults


_leaked = []


class FaultMiddleware:
    def __init__(self, get_response):
        self.get_response = get_response
        self.file = FaultFile(faults_file())
        self.random = random.Random()

    def __call__(self, request):
        response = self.get_response(request)
        if ratio := getattr(request, "latency_ratio", 0):
            time.sleep(ratio * (time.perf_counter() - request.began))
        ratio = getattr(request, "crash_after_ratio", 0)
        if ratio and self.random.random() < ratio:
            crash("after the view")
        return response

    def process_view(self, request, view, args, kwargs):
        faults = self.file.faults()
        if faults is NO_FAULTS or not faults.concern(request.resolver_match.view_name):
            return None
        request.crash_after_ratio = faults.crash_after_ratio
        request.latency_ratio, request.began = faults.latency_ratio, time.perf_counter()
        if faults.leak_bytes:
            _leaked.append(b"\x01" * faults.leak_bytes)  # not zeros: those would cost no memory until written to
        if faults.latency_ms:
            time.sleep(faults.latency_ms / 1000)
        if faults.cpu_ms:
            burn(faults.cpu_ms / 1000)
        if self.random.random() < faults.crash_ratio:
            crash("before the view")
        if self.random.random() < faults.error_ratio:
            return JsonResponse({"error": "This failure was asked for by faults.json."}, status=500)
        return None


def burn(seconds):
    until = time.thread_time() + seconds
    while time.thread_time() < until:
        pass


def crash(when):
    logger.error("Crashing %s, as asked for by the faults", when)
    os._exit(CRASH_EXIT_CODE)


def changed(faults):
    """The faults that differ from none, as a dictionary ready for JSON."""
    return {name: value for name, value in asdict(faults).items() if value != getattr(NO_FAULTS, name)}


def write(path, faults):
    """Replace the file in one step, so that a running Realm never reads half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".faults-")
    with os.fdopen(handle, "w") as file:
        json.dump(changed(faults), file)
        os.fchmod(file.fileno(), 0o644)  # Realm may run as another user
    os.replace(temporary, path)


def parse_setting(text):
    name, equals, value = text.partition("=")
    if not equals:
        raise FaultsError(f"{text!r} is not of the form name=value")
    if name == "only_views":
        return name, [view for view in value.split(",") if view]
    try:
        return name, json.loads(value)
    except ValueError:
        raise FaultsError(f"{value!r} is not a valid value of {name}") from None


def main(arguments):
    """The command line. Returns the exit code."""
    path = faults_file()
    match arguments:
        case ["set", *settings] if settings:
            try:
                current = json.loads(path.read_text()) if path.exists() else {}
            except ValueError:
                print(f"Not changed: {path} is not valid JSON. Clear it first.", file=sys.stderr)
                return 2
            try:
                faults = Faults.from_dict({**current, **dict(map(parse_setting, settings))})
            except FaultsError as error:
                print(f"Not changed: {error}", file=sys.stderr)
                return 2
            write(path, faults)
        case ["clear"]:
            path.unlink(missing_ok=True)
        case ["show"]:
            pass
        case _:
            print(__doc__, file=sys.stderr)
            return 2
    try:
        print(path.read_text())
    except FileNotFoundError:
        print("{}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
