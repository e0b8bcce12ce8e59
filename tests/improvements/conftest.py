"""A shop for every test that asks for one: its repository, its deployer and its address are its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from improvements import deployers, releasing
from tests.improvements.world import STEP_SECONDS, PretendDeployer, Shop, Site, answering, make_repository


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_repository(tmp_path_factory.mktemp("template") / "shop")


@pytest.fixture(scope="session")
def _site() -> Iterator[Site]:
    with answering() as site:
        yield site


@pytest.fixture
def deployer(settings: Any, monkeypatch: pytest.MonkeyPatch, _site: Site) -> PretendDeployer:
    """A fresh deployer, which `deployer_for` gives to everybody."""
    settings.DEPLOYER = "memory"
    _site.status = 200
    fresh = PretendDeployer(site=_site)
    monkeypatch.setitem(deployers._made, "memory", fresh)
    return fresh


@pytest.fixture
def shop(
    db: None,
    settings: Any,
    monkeypatch: pytest.MonkeyPatch,
    template: Path,
    tmp_path: Path,
    deployer: PretendDeployer,
) -> Shop:
    """A service that is deployed, at a pace that a test can follow."""
    settings.ROLLOUT_STEPS = (10, 50, 100)
    settings.ROLLOUT_STEP_SECONDS = settings.BAKE_SECONDS = STEP_SECONDS
    settings.ROLLOUT_STEP_REQUESTS = 100
    settings.WATCH_SECONDS = 2 * STEP_SECONDS
    settings.METRICS_COLLECTION_INTERVAL = 1
    settings.SERVICE_PORTS = (8100, 8101)  # nobody listens there
    settings.RUNEROGUE_HOME = tmp_path / "home"
    # Nothing that the deployer of dictionaries starts needs longer.
    monkeypatch.setattr(releasing, "READY_TIMEOUT_SECONDS", 0.2)
    return Shop.open(template, tmp_path / "shop", deployer)
