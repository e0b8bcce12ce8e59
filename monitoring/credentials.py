"""Who asks: the headers that go with a request for numbers, from the manifest and the service's environment.

The manifest is in a repository and names variables; their values are in the environment that was registered, and leave
it only in these headers.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field

from monitoring.manifest import Metrics, can_be_sent

# A variable registered as METRICS__NAME stands for NAME here, and the service's own code never gets it.
METRICS = "METRICS__"
HIDDEN = "[hidden]"


class MissingCredentials(Exception):
    """What the manifest names is not there, or no header can hold it. The message quotes no value."""


@dataclass(frozen=True)
class Access:
    """`headers` go to the target and nobody else; `secrets` are what may not be repeated anywhere."""

    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    secrets: tuple[str, ...] = field(default=(), repr=False)

    def hidden(self, text: str) -> str:
        """`text` without the secrets: the other side may repeat what it was sent."""
        for secret in self.secrets:
            text = text.replace(secret, HIDDEN)
        return text


NOBODY = Access()


def of(metrics: Metrics, environment: Mapping[str, str]) -> Access:
    """What `metrics` names, out of the service's `environment`. Raises MissingCredentials."""
    headers, secrets = dict(metrics.headers), []

    def value_of(name: str, setting: str) -> str:
        value = str(environment.get(METRICS + name) or environment.get(name) or "")
        if not value:
            raise MissingCredentials(
                f"metrics.{setting} names the variable {name}, which the service's environment does not have. Give it "
                f"with `manage.py register … --env {METRICS}{name}=…`."
            )
        if not can_be_sent(value):
            raise MissingCredentials(
                f"The variable {name}, which metrics.{setting} names, holds what a header can't: several lines, spaces "
                "around it, or letters that are not ASCII. Register it again."
            )
        secrets.append(value)
        return value

    for header, name in metrics.headers_env.items():
        headers[header] = value_of(name, f"headers_env.{header}")
    if metrics.bearer_token_env:
        headers["Authorization"] = f"Bearer {value_of(metrics.bearer_token_env, 'bearer_token_env')}"
    if metrics.username is not None and metrics.password_env:
        pair = f"{metrics.username}:{value_of(metrics.password_env, 'password_env')}"
        secrets.append(base64.b64encode(pair.encode()).decode())
        headers["Authorization"] = f"Basic {secrets[-1]}"
    # The longest first: one may be part of another.
    return Access(headers, tuple(sorted(secrets, key=len, reverse=True)))
