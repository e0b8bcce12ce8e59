from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

from runerogue.stack.home import PROJECT, Home, HomeError, current


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_asking_creates_nothing(home: Home) -> None:
    assert home.secret("secret_key") == ""
    assert home.port() == 8000
    assert home.service_ports() == ()
    assert home.database_url().startswith("postgresql://runerogue@/runerogue?host=")
    assert not home.folder.exists()


def test_keeps_others_out(home: Home) -> None:
    home.create()
    home.ensure_secrets()
    assert mode(home.run) == mode(home.logs) == mode(home.valkey) == 0o700
    assert mode(home.secrets_file) == 0o600
    # Root's PostgreSQL runs as a user of its own, who passes through but sees nothing.
    assert mode(home.folder) == (0o711 if os.geteuid() == 0 else 0o700)


def test_secrets_stay_what_they_are(home: Home) -> None:
    home.create()
    home.ensure_secrets()
    before = {name: home.secret(name) for name in ("secret_key", "postgres_superuser", "postgres_runerogue")}
    home.set_secret("one_more", "x")
    home.ensure_secrets()
    assert {name: home.secret(name) for name in before} == before
    assert len(set(before.values())) == 3
    assert all(len(value) >= 50 for value in before.values())
    home.set_secret("one_more", None)
    assert home.secret("one_more") == ""


def test_urls_carry_the_password_and_survive_odd_paths(tmp_path: Path) -> None:
    home = Home(tmp_path / "a home & 100%")
    home.create()
    home.set_secret("postgres_runerogue", "p/w?")
    assert home.database_url() == (
        f"postgresql://runerogue:p%2Fw%3F@/runerogue?host={tmp_path!s}/a%20home%20%26%20100%25/pg"
    )
    assert home.redis_url(database=3).endswith("/a%20home%20%26%20100%25/run/valkey.sock?db=3")
    assert home.broker_url(database=3).endswith("valkey.sock?virtual_host=3")


def test_remembers_ports(home: Home) -> None:
    home.create()
    home.remember_ports(http=8010, services=(8100, 8101, 8102, 8103))
    assert home.port() == 8010
    assert home.service_ports() == (8100, 8101, 8102, 8103)
    assert json.loads(home.ports_file.read_text()) == {"http": 8010, "services": [8100, 8101, 8102, 8103]}


def test_says_so_when_a_file_is_damaged(home: Home) -> None:
    home.create()
    home.secrets_file.write_text("{")
    with pytest.raises(HomeError, match="damaged"):
        home.secret("secret_key")


def test_says_so_when_the_folder_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(HomeError, match="Set RUNEROGUE_HOME to a folder that you may write to"):
        Home(tmp_path / "file" / "home").create()


def test_is_the_var_folder_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RUNEROGUE_HOME", raising=False)
    assert current().folder == PROJECT / "var"
    monkeypatch.setenv("RUNEROGUE_HOME", "elsewhere")
    assert current().folder == Path.cwd() / "elsewhere"
