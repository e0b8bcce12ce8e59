"""manage.py demo: the whole loop on Realm, with or without a person."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from argparse import ArgumentParser
from collections.abc import Callable
from typing import Any

import httpx
from django.conf import settings
from django.contrib.auth.models import User
from django.core.management import call_command
from django.core.management.base import BaseCommand, CommandError
from django.utils.timezone import now
from django_otp.oath import hotp

from approvals import requests, second_factor
from approvals.models import ApprovalRequest, Authenticator
from approvals.models.authenticator import STEP_SECONDS, TOLERANCE_STEPS
from approvals.policy import Channel, How
from improvements.deployers import base_url
from improvements.models import Improvement, State
from runerogue import realm, story
from runerogue.stack import lock

# The load on Realm: well below what its single thread can take, so that a slow player list is the code's fault.
REQUESTS_PER_SECOND = 12.0
SABOTAGE: dict[str, dict[str, Any]] = {
    "latency": {"latency_ms": 250},
    "errors": {"error_ratio": 0.5},
    "crash": {"crash_ratio": 0.3},
}
UNTIL = {"promoted": State.PROMOTED, "rolled_back": State.ROLLED_BACK}
DEAD_ENDS = {State.FAILED, State.DISMISSED, State.REJECTED, State.EXPIRED, State.STUCK, State.ROLLED_BACK}


class Command(BaseCommand):
    help = (
        "Show the loop on Realm, the demonstration service: measured, found, written, proven, signed, rolled out. "
        "Runs against the running product, or one that it starts and stops itself. Prints what happened; the exit code "
        "is 0 only if the story ended as asked."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--serve", action="store_true", help="bring Realm and its load up, and stay (`make demo` does this)"
        )
        parser.add_argument(
            "--against-running", action="store_true", help="never start the product; fail if it is not running"
        )
        parser.add_argument("--approve-as", metavar="NAME", help="sign as this person, such as bob, a lead developer")
        parser.add_argument(
            "--until",
            choices=sorted(UNTIL),
            help="how the story should end (default: promoted, or rolled_back with --sabotage)",
        )
        parser.add_argument(
            "--sabotage", choices=sorted(SABOTAGE), help="give the candidate a fault that its tests don't see"
        )
        parser.add_argument(
            "--rate", type=float, default=REQUESTS_PER_SECOND, help="requests per second of load (default %(default)s)"
        )
        parser.add_argument(
            "--timeout",
            type=float,
            default=600,
            metavar="SECONDS",
            help="give up after this long (default %(default)s)",
        )
        parser.add_argument(
            "--json", action="store_true", help="print one JSON object at the end, and nothing else on standard output"
        )

    def handle(self, *args: Any, **options: Any) -> None:
        if lock.holder_of(settings.HOME.lock) is None:
            if options["serve"] or options["against_running"]:
                raise CommandError("RuneRogue is not running on this home. `make demo` starts it together with Realm.")
            self._with_product_of_our_own()
            return
        call_command("ensure_people", demo=True, json=True, stdout=_Nowhere())
        if options["serve"]:
            self._serve(options["rate"])
        else:
            self._story(options)

    # -- serve -------------------------------------------------------------------------------------------------------

    def _serve(self, rate: float) -> None:
        """Realm and its load until this process is ended. Restarted, it goes on with the Realm that is there."""
        service = realm.current() or realm.bring_up_afresh()
        load = realm.Load(service, rate=rate, report_file=settings.RUNEROGUE_HOME / "scratch" / "load.json")
        self.stdout.write(f"{service.name} serves at {base_url(service)}; {rate:g} requests per second.")
        try:
            while load.is_running():
                time.sleep(1)
        finally:
            load.stop()

    # -- story -------------------------------------------------------------------------------------------------------

    def _with_product_of_our_own(self) -> None:
        """Start the product with demo pacing, run this command against it, and stop it whatever happens."""
        self._tell("RuneRogue is not running on this home: starting it for this story.")
        stack = [sys.executable, "-m", "runerogue.stack"]
        product = subprocess.Popen([*stack, "run", "--quick"], stdout=sys.stderr)
        try:
            _wait_for(_is_ready, 180, product)
            code = subprocess.run([sys.executable, *sys.argv, "--against-running"]).returncode
        finally:
            subprocess.run([*stack, "stop"], stdout=sys.stderr, timeout=120)
            product.wait(timeout=60)
        sys.exit(code)

    def _story(self, options: dict[str, Any]) -> None:
        until = options["until"] or ("rolled_back" if options["sabotage"] else "promoted")
        person = self._signer(options["approve_as"])
        began = time.monotonic()
        deadline = began + options["timeout"]
        self._tell("Bringing up a fresh Realm …")
        service = realm.bring_up_afresh()
        result: dict[str, Any] = {"service": service.name, "until": until, "sabotage": options["sabotage"]}
        load = realm.Load(
            service, rate=options["rate"], report_file=settings.RUNEROGUE_HOME / "scratch" / f"load-{service.name}.json"
        )
        before_rollout: dict[str, Any] = {}
        state, told = None, ""
        try:
            while time.monotonic() < deadline:
                improvement = story.improvement_of(service)
                if improvement is None:
                    time.sleep(0.25)
                    continue
                state = State(improvement.state)
                if state.value != told:
                    told = state.value
                    self._tell(f"{time.monotonic() - began:6.1f} s  improvement {improvement.pk}: {state.label}")
                if state is State.AWAITING_APPROVAL:
                    before_rollout = load.report() or before_rollout
                    self._sign(improvement, person, options["sabotage"])
                if state is UNTIL[until] or state in DEAD_ENDS or improvement.settled_at:
                    break
                if not load.is_running():
                    raise CommandError(
                        "The load generator ended early; its last report is in scratch/ of RUNEROGUE_HOME."
                    )
                time.sleep(0.1)
            result |= story.result(service, load.stop(), before_rollout)
        finally:
            load.stop()
        result["seconds"] = round(time.monotonic() - began, 1)
        result["state"] = state.value if state else None
        problems = self._problems(result, until, options["sabotage"])
        result["ok"], result["problems"] = not problems, problems
        self._print(result, as_json=options["json"])
        if problems:
            sys.exit(1)

    def _signer(self, name: str | None) -> User | None:
        if name is None:
            self._tell("Nobody signs for you: open the admin, Approval requests, when the request is there.")
            return None
        try:
            return User.objects.get(username=name)
        except User.DoesNotExist:
            known = ", ".join(User.objects.values_list("username", flat=True))
            raise CommandError(f"There is no person {name!r} to sign as. Known: {known}.") from None

    def _sign(self, improvement: Improvement, person: User | None, sabotage: str | None) -> None:
        request = ApprovalRequest.objects.open().about("improvement", improvement.pk).first()
        if request is None or person is None:
            return
        if sabotage:
            # After the proofs and before the traffic: a fault that only shows up in production.
            candidate = improvement.service.releases.get(commit=improvement.head_commit)
            realm.set_faults(candidate, SABOTAGE[sabotage])
        try:
            requests.approve(
                request,
                person=person,
                how=self._how(person),
                reason="Read the patch and its evidence in the demonstration.",
            )
        except requests.Refused as refused:
            raise CommandError(f"{person} may not sign: {refused}") from refused
        self._tell(f"          signed by {person.username}")

    def _how(self, person: User) -> How:
        """With a code of the person's own authenticator, computed as their app would, and verified as any other.

        A code counts once, so right after another story this waits for the next one, half a minute at most.
        """
        device = Authenticator.objects.of(person.pk).first()
        if device is None:
            raise CommandError(f"{person} has no authenticator. `manage.py ensure_people --demo` gives one to bob.")
        step = max(int(time.time()) // STEP_SECONDS, device.last_step + 1)
        while step > int(time.time()) // STEP_SECONDS + TOLERANCE_STEPS:
            time.sleep(0.2)
        if not second_factor.verify(person, f"{hotp(device.key, step):06d}", now()):
            wait = second_factor.seconds_to_wait(person)
            raise CommandError(f"The code of {person} was refused; {wait} seconds to wait after wrong ones.")
        return How(Channel.PROGRAM, second_factor_age_seconds=0.0)

    def _problems(self, result: dict[str, Any], until: str, sabotage: str | None) -> list[str]:
        """What keeps this story from being the one that was asked for; empty when it is."""
        problems = []
        if result["state"] != UNTIL[until].value:
            problems.append(f"it ended in {result['state']}, not in {UNTIL[until].value}")
        if not result["audit"]["verified"]:
            problems.append(f"the audit log does not verify: {result['audit']['fault']}")
        if result["load"]["posts_run_twice"] != 0:
            problems.append(f"POSTs run twice: {result['load']['posts_run_twice']} (None: not known)")
        if until == "promoted" and result["load"]["failed_during_rollout"]:
            problems.append(f"{result['load']['failed_during_rollout']} requests failed during the rollout")
        if until == "rolled_back" and result.get("serving") != {result.get("old_release"): 100}:
            problems.append(f"the old release does not have all traffic: {result.get('serving')}")
        return problems

    def _print(self, result: dict[str, Any], *, as_json: bool) -> None:
        if as_json:
            self.stdout.write(json.dumps(result, indent=2))
            return
        ending = "as asked" if result["ok"] else "otherwise than asked: " + "; ".join(result["problems"])
        self.stdout.write(f"The story ended {ending}.")
        for name in (
            "state",
            "seconds",
            "finding",
            "seconds_per_stage",
            "before",
            "after",
            "traffic_back_seconds",
            "load",
            "audit",
        ):
            self.stdout.write(f"  {name.replace('_', ' ')}: {result.get(name)}")

    def _tell(self, text: str) -> None:
        self.stderr.write(text)


def _is_ready() -> bool:
    holder = lock.holder_of(settings.HOME.lock)
    if holder is None or not holder.address:
        return False
    try:
        return httpx.get(f"{holder.address}/health/ready", timeout=2, trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


class _Nowhere:
    """Passwords of the demonstration's people are for the screen of whoever asks for them, not for a log."""

    def write(self, text: str) -> None:
        return None

    def flush(self) -> None:
        return None


def _wait_for(ready: Callable[[], bool], seconds: float, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        if process.poll() is not None:
            raise CommandError(f"RuneRogue did not start (exit code {process.returncode}); what it said is above.")
        if time.monotonic() > deadline:
            raise CommandError(f"RuneRogue was not ready after {seconds:.0f} s; see its logs under RUNEROGUE_HOME.")
        time.sleep(0.2)
