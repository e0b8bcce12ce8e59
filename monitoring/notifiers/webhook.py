"""Notices as signed JSON over HTTP, in RuneRogue's own form and in the one of Prometheus' Alertmanager."""

from __future__ import annotations

import hashlib
import hmac
import json
import time
from typing import Any
from urllib.parse import urlsplit

import httpx

from monitoring import outbound
from monitoring.notifiers.seam import Line, Message, NotSent, Undeliverable

LARGEST_ANSWER_BYTES = 64 * 1024
LONGEST_PATIENCE_SECONDS = 900.0
SHORTEST_SECRET = 16
LATER = (408, 409, 423, 425, 429)  # of the 4xx, those that may pass by themselves
NOBODY = "0001-01-01T00:00:00Z"  # how Alertmanager writes "not ended"


def client(timeout_seconds: float) -> httpx.Client:
    """What every webhook is called with: approved hosts only, no redirects, no proxies."""
    return outbound.open_client(timeout_seconds=timeout_seconds)


def signature(secret: str, timestamp: str, body: bytes) -> str:
    """`sha256=` and the hexadecimal HMAC-SHA256 of timestamp, a full stop, and the body as it is sent."""
    return "sha256=" + hmac.new(secret.encode(), timestamp.encode() + b"." + body, hashlib.sha256).hexdigest()


class WebhookNotifier:
    """RuneRogue's own JSON. Always signed: a receiver can know who speaks."""

    name = "webhook"
    is_signed_always = True

    def __init__(self, *, timeout_seconds: float = 15.0) -> None:
        self.timeout_seconds = timeout_seconds

    def body(self, message: Message) -> dict[str, Any]:
        return message.as_json()

    def obstacle(self, address: str, secret: str) -> str:
        try:
            parts = urlsplit(address)
            host = parts.hostname
        except ValueError:
            host = None
        if not host or parts.scheme not in ("http", "https"):
            return "The address of a webhook begins with https:// or http:// and names a host."
        if parts.username or parts.password:
            return "The address must not hold a user or a password: it is shown to people. The secret signs instead."
        if (secret or self.is_signed_always) and len(secret) < SHORTEST_SECRET:
            return f"It needs a secret of at least {SHORTEST_SECRET} characters, which the receiver checks."
        return ""

    def send(self, message: Message, *, address: str, secret: str) -> str:
        body = json.dumps(self.body(message), ensure_ascii=False, separators=(",", ":")).encode()
        timestamp = str(int(time.time()))
        headers = {
            "content-type": "application/json",
            "idempotency-key": message.key,
            "x-runerogue-timestamp": timestamp,
        }
        if secret:
            headers["x-runerogue-signature"] = signature(secret, timestamp, body)
        deadline = time.monotonic() + self.timeout_seconds
        late = f"It did not answer within {self.timeout_seconds:g} s."
        try:
            with (
                client(self.timeout_seconds) as http,
                http.stream("POST", address, content=body, headers=headers) as answer,
            ):
                received = 0
                for chunk in answer.iter_raw():
                    received += len(chunk)
                    if received > LARGEST_ANSWER_BYTES:
                        break  # the status says it all
                    if time.monotonic() > deadline:
                        raise NotSent(late)
                return _judged(answer)
        except httpx.TimeoutException as error:
            raise NotSent(late) from error
        except outbound.Refused as error:
            # It names the host and how to approve it, and nothing else of the address.
            raise NotSent(str(error)) from error
        except httpx.InvalidURL as error:
            raise Undeliverable("The address of the webhook can't be understood.") from error
        except httpx.HTTPError as error:
            # Its text may hold the address, and an address may hold a token.
            raise NotSent(f"It can't be reached ({type(error).__name__}).") from error


class AlertmanagerNotifier(WebhookNotifier):
    """The JSON that Prometheus' Alertmanager posts (version 4), for receivers that exist. Signed if it has a secret."""

    name = "alertmanager"
    is_signed_always = False

    def body(self, message: Message) -> dict[str, Any]:
        status = "resolved" if message.kind == "resolved" else "firing"
        lines = message.lines or (
            Line(0, message.kind, message.service, message.severity, message.body, message.at, message.url),
        )
        alerts = [_as_alertmanager(line, message, status) for line in lines]
        shared = set.intersection(*(set(alert["labels"].items()) for alert in alerts))
        return {
            "version": "4",
            "groupKey": message.thread or message.key,
            "truncatedAlerts": 0,
            "status": status,
            "receiver": "runerogue",
            "groupLabels": {"service": message.service},
            "commonLabels": dict(sorted(shared)),
            "commonAnnotations": {},
            "externalURL": message.url,
            "alerts": alerts,
        }


def _as_alertmanager(line: Line, message: Message, status: str) -> dict[str, Any]:
    labels = {**line.labels, "alertname": line.name, "service": line.service, "severity": line.severity}
    return {
        "status": status,
        "labels": labels,
        "annotations": {"summary": message.subject, "description": line.text},
        "startsAt": line.starts_at.replace("+00:00", "Z"),
        "endsAt": line.ends_at.replace("+00:00", "Z") or NOBODY,
        "generatorURL": line.url,
        "fingerprint": hashlib.sha256(json.dumps(labels, sort_keys=True).encode()).hexdigest()[:16],
    }


def _judged(answer: httpx.Response) -> str:
    status = answer.status_code
    if answer.is_success:
        return f"answered {status}"
    if answer.is_redirect:
        raise Undeliverable(
            f"It answered {status} and points elsewhere; redirects are not followed. Give its new address."
        )
    told = f"It answered {status}."
    if 400 <= status < 500 and status not in LATER:
        raise Undeliverable(told)
    patience = answer.headers.get("retry-after", "")
    seconds = min(float(patience), LONGEST_PATIENCE_SECONDS) if patience.isascii() and patience.isdigit() else None
    raise NotSent(told, after_seconds=seconds)
