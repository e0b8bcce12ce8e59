"""Headers out of the manifest and the environment: what goes along, what is missing, what is never repeated."""

from __future__ import annotations

import base64

import pytest

from monitoring import credentials
from monitoring.credentials import HIDDEN, MissingCredentials
from monitoring.manifest import ManifestError, Metrics, parse

REST = '[service]\nname="a"\n[run]\ncommand="a {port}"\nhealth="/up"\n[test]\ncommand="t"\n'
TOKEN = "t0p-s3cret"


def test_a_bearer_token_comes_from_the_environment() -> None:
    access = credentials.of(Metrics(bearer_token_env="PROM_TOKEN"), {"PROM_TOKEN": TOKEN})
    assert access.headers == {"Authorization": f"Bearer {TOKEN}"}
    assert TOKEN not in repr(access)
    assert access.hidden(f"no such token: {TOKEN}") == f"no such token: {HIDDEN}"


def test_a_variable_for_measuring_takes_the_place_of_the_services_own() -> None:
    environment = {"PROM_TOKEN": "its own", "METRICS__PROM_TOKEN": TOKEN}
    access = credentials.of(Metrics(bearer_token_env="PROM_TOKEN"), environment)
    assert access.headers == {"Authorization": f"Bearer {TOKEN}"}


def test_a_login_a_tenant_and_a_key_go_along() -> None:
    metrics = Metrics(
        username="shop",
        password_env="PASSWORD",
        headers={"X-Scope-OrgID": "team-a|team-b"},
        headers_env={"X-Api-Key": "KEY"},
    )
    access = credentials.of(metrics, {"PASSWORD": "pass:word", "KEY": "k"})
    pair = base64.b64encode(b"shop:pass:word").decode()
    assert access.headers == {"X-Scope-OrgID": "team-a|team-b", "X-Api-Key": "k", "Authorization": f"Basic {pair}"}
    assert access.hidden(f"{pair} / pass:word") == f"{HIDDEN} / {HIDDEN}"


def test_nothing_named_is_nothing_sent() -> None:
    assert credentials.of(Metrics(), {"PROM_TOKEN": TOKEN}) == credentials.NOBODY


@pytest.mark.parametrize(
    ("environment", "says"),
    [
        ({}, "metrics.bearer_token_env names the variable PROM_TOKEN.*does not have.*--env METRICS__PROM_TOKEN="),
        ({"PROM_TOKEN": ""}, "does not have"),
        ({"PROM_TOKEN": f"{TOKEN}\r\nX-Evil: 1"}, "PROM_TOKEN.*several lines"),
        ({"PROM_TOKEN": f"{TOKEN}é"}, "not ASCII"),
        ({"PROM_TOKEN": f"{TOKEN}\\ "}, "spaces around it"),
    ],
)
def test_a_missing_or_unusable_variable_is_said_so_without_its_value(environment: dict[str, str], says: str) -> None:
    with pytest.raises(MissingCredentials, match=says) as refused:
        credentials.of(Metrics(bearer_token_env="PROM_TOKEN"), environment)
    assert TOKEN not in str(refused.value)


@pytest.mark.parametrize(
    ("table", "says"),
    [
        (f'bearer_token_env = "{TOKEN}"', "metrics.bearer_token_env is not the name of an environment variable"),
        ('username = "shop"', "in two ways, or by half.*password_env"),
        ('bearer_token_env = "A"\nusername = "shop"\npassword_env = "B"', "in two ways"),
        ('username = "a:b"\npassword_env = "B"', "colon"),
        (f'headers = {{Authorization = "Bearer {TOKEN}"}}', "not a header that can be given here.*bearer_token_env"),
        (f'headers = {{Cookie = "{TOKEN}"}}', "not a header"),
        ('headers = {X-Tenant = "a\\nb"}', "can't hold this value"),
        (f'headers_env = {{X-Api-Key = "{TOKEN}"}}', "not the name of an environment variable"),
        ('push = true\npromql = "http://127.0.0.1:9090"', "keep push or promql, not both"),
        ("history_days = 400", "history_days"),
    ],
)
def test_a_manifest_that_holds_a_secret_or_half_a_login_is_refused(table: str, says: str) -> None:
    with pytest.raises(ManifestError, match=says) as refused:
        parse(f"{REST}[metrics]\n{table}\n")
    assert TOKEN not in str(refused.value)
