"""Taking services in from real git repositories."""

from __future__ import annotations

from pathlib import Path

import pytest
from django.contrib.auth.models import User
from django.core.management import CommandError, call_command
from pytest_django.fixtures import Settings

from approvals.models import AuditEntry
from monitoring import registry
from monitoring.manifest import ManifestError
from monitoring.models import AlertRule, Service, Target
from monitoring.registry import (
    CannotRegister,
    ensure_self,
    environment_for_tests,
    refresh,
    register,
    running_environment,
)
from tests.monitoring.factories import MANIFEST, commit, git, repository

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def _home(settings: Settings, tmp_path: Path) -> None:
    settings.HOME = type(settings.HOME)(tmp_path / "home")
    settings.RUNEROGUE_HOME = tmp_path / "home"


def test_takes_a_local_repository_in_place(tmp_path: Path, alice: User) -> None:
    folder = repository(tmp_path / "realm")
    service = register(None, str(folder), environment={"DATABASE_URL": "secret"}, actor=alice)
    assert (service.name, service.branch, service.checkout) == ("realm", "main", folder)
    assert service.parsed.run.health == "/up"
    entry = AuditEntry.objects.get(action="service.registered")
    assert entry.actor == "alice"
    assert "secret" not in str(entry.payload)


def test_clones_a_url_and_follows_it(tmp_path: Path) -> None:
    origin = repository(tmp_path / "origin", branch="trunk")
    service = register("game", f"file://{origin}", environment={}, actor=None)
    assert (service.name, service.branch, service.is_remote) == ("game", "trunk", True)
    assert service.checkout == tmp_path / "home" / "services" / "game" / "repository"
    assert (service.checkout / "runerogue.toml").is_file()
    (origin / "runerogue.toml").write_text(MANIFEST.replace("/up", "/ready"))
    commit(origin, "second")
    assert refresh(service).parsed.run.health == "/ready"
    assert not list((tmp_path / "home" / "scratch").iterdir())


def test_reads_what_is_committed_not_what_lies_around(tmp_path: Path) -> None:
    folder = repository(tmp_path / "realm")
    (folder / "runerogue.toml").write_text("nonsense")
    assert register(None, str(folder), environment={}, actor=None).parsed.run.health == "/up"


def test_registering_again_refreshes_and_keeps_the_environment(tmp_path: Path) -> None:
    folder = repository(tmp_path / "realm")
    register(None, str(folder), environment={"A": "1"}, actor=None)
    again = register(None, str(folder), environment={"B": "2"}, actor=None)
    assert Service.objects.get() == again
    assert again.environment == {"A": "1", "B": "2"}
    register(None, str(folder), environment={}, actor=None)
    assert AuditEntry.objects.filter(action__startswith="service.").count() == 2, "nothing changed the third time"


def test_a_prometheus_that_the_manifest_names_no_more_is_asked_no_more(tmp_path: Path) -> None:
    folder = repository(tmp_path / "realm", MANIFEST + '[metrics]\npromql = "http://127.0.0.1:9/prometheus"\n')
    service = register(None, str(folder), environment={}, actor=None)
    assert list(Target.objects.active().values_list("url", flat=True)) == ["http://127.0.0.1:9/prometheus"]
    (folder / "runerogue.toml").write_text(MANIFEST)
    commit(folder, "second")
    refresh(service)
    assert not Target.objects.active().exists()


def test_another_repository_under_the_same_name_is_refused(tmp_path: Path) -> None:
    register(None, str(repository(tmp_path / "one")), environment={}, actor=None)
    with pytest.raises(CannotRegister, match="Choose another name"):
        register(None, str(repository(tmp_path / "two")), environment={}, actor=None)


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("ext::sh -c touch% /tmp/x://", "not supported"),
        ("ftp://example.org/a.git", "not supported"),
        ("https://alice:token@example.org/a.git", "password or token"),
        ("--upload-pack=touch://x", "not a URL"),
        ("file:///nowhere/at/all", "can't be cloned"),
    ],
)
def test_refuses_urls_that_are_unsafe_or_wrong(url: str, says: str) -> None:
    with pytest.raises(CannotRegister, match=says):
        register(None, url, environment={}, actor=None)


def test_says_what_is_wrong_with_a_folder(tmp_path: Path) -> None:
    with pytest.raises(CannotRegister, match="no folder"):
        register(None, str(tmp_path / "nowhere"), environment={}, actor=None)
    plain = tmp_path / "plain"
    plain.mkdir()
    with pytest.raises(CannotRegister, match="git init"):
        register(None, str(plain), environment={}, actor=None)
    folder = repository(tmp_path / "realm")
    (folder / "inside").mkdir()
    with pytest.raises(CannotRegister, match="repository's root"):
        register(None, str(folder / "inside"), environment={}, actor=None)
    with pytest.raises(CannotRegister, match="no-such-branch"):
        register(None, str(folder), environment={}, actor=None, branch="no-such-branch")
    git(folder, "rm", "--quiet", "runerogue.toml")
    commit(folder, "gone")
    with pytest.raises(CannotRegister, match=r"has no runerogue\.toml"):
        register(None, str(folder), environment={}, actor=None)


def test_refuses_a_repository_that_makes_git_run_programs(tmp_path: Path) -> None:
    folder = repository(tmp_path / "realm")
    service = register(None, str(folder), environment={}, actor=None)
    git(folder, "config", "filter.evil.smudge", "touch /tmp/x")
    for again in (lambda: register(None, str(folder), environment={}, actor=None), lambda: refresh(service)):
        with pytest.raises(CannotRegister, match=r"run other programs \(filter\.evil\.smudge\).*fresh clone"):
            again()


def test_cloning_tells_helpers_none_of_our_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spy = tmp_path / "ssh"
    spy.write_text(f"#!/bin/sh\nenv > {tmp_path}/told\nexit 1\n")
    spy.chmod(0o755)
    for name, value in {"GIT_SSH": str(spy), "DATABASE_URL": "secret", "SSH_AUTH_SOCK": "/agent"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(CannotRegister, match="can't be cloned"):
        register("game", "git@example.org:game.git", environment={}, actor=None)
    told = (tmp_path / "told").read_text()
    assert "SSH_AUTH_SOCK=/agent" in told
    assert "DATABASE_URL" not in told
    assert "SECRET_KEY" not in told


def test_tests_may_have_an_environment_of_their_own(tmp_path: Path) -> None:
    folder = repository(tmp_path / "realm")
    given = {"DATABASE_URL": "live", "MODE": "x", "TESTING__DATABASE_URL": "throwaway", "TESTING__EXTRA": "1"}
    service = register(None, str(folder), environment=given, actor=None)
    assert running_environment(service) == {"DATABASE_URL": "live", "MODE": "x"}
    assert environment_for_tests(service) == {"DATABASE_URL": "throwaway", "MODE": "x", "EXTRA": "1"}


def test_a_bad_manifest_names_its_line(tmp_path: Path) -> None:
    folder = repository(tmp_path / "realm", MANIFEST.replace("health", "helth"))
    with pytest.raises(ManifestError, match="line 5"):
        register(None, str(folder), environment={}, actor=None)


def test_runerogue_is_its_own_first_service(settings: Settings) -> None:
    settings.RUNEROGUE_HOST, settings.RUNEROGUE_PORT = "0.0.0.0", 8123
    service = ensure_self()
    assert (service.name, service.is_self) == ("runerogue", True)
    assert Target.objects.get().url == "http://127.0.0.1:8123/metrics"
    assert AlertRule.objects.exists()
    settings.RUNEROGUE_PORT = 8124
    assert ensure_self() == service
    assert Target.objects.active().get().url == "http://127.0.0.1:8124/metrics"
    assert refresh(service) == service


def test_runerogue_watches_itself_without_being_a_checkout(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "runerogue.toml").write_text((settings.BASE_DIR / "runerogue.toml").read_text())
    settings.BASE_DIR = tmp_path
    assert ensure_self().branch == "main"


@pytest.mark.parametrize(
    ("host", "url"),
    [("127.0.0.1", "127.0.0.1"), ("::1", "[::1]"), ("::", "[::1]"), ("10.0.0.3", "10.0.0.3")],
)
def test_scrapes_itself_where_it_listens(settings: Settings, host: str, url: str) -> None:
    settings.RUNEROGUE_HOST, settings.RUNEROGUE_PORT = host, 8000
    assert registry.own_metrics_url() == f"http://{url}:8000/metrics"


def test_the_commands_say_what_they_did(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = repository(tmp_path / "realm")
    call_command("register", str(folder), "--env", "A=b=c", "--name", "other")
    assert "other is registered" in capsys.readouterr().out
    assert Service.objects.get().environment == {"A": "b=c"}
    call_command("ensure_self")
    assert "watches itself at" in capsys.readouterr().out
    with pytest.raises(CommandError, match="no value"):
        call_command("register", str(folder), "--env", "A")
    with pytest.raises(CommandError, match="no folder"):
        call_command("register", str(tmp_path / "nowhere"))
    with pytest.raises(CommandError, match="environment variable"):
        call_command("register", str(folder), "--env", "A-B=1")
