"""What guards RuneRogue is protected from RuneRogue."""

from __future__ import annotations

import pytest
from django.conf import settings

from improvements.checks import scan
from monitoring.manifest import FILE, parse

PROTECTED = parse((settings.BASE_DIR / FILE).read_text()).protected.paths


@pytest.mark.parametrize("pattern", PROTECTED)
def test_every_protected_path_exists(pattern: str) -> None:
    assert list(settings.BASE_DIR.glob(pattern)), f"{pattern} protects nothing: was it renamed?"


@pytest.mark.parametrize(
    "path",
    [
        *(
            f"improvements/{name}.py"
            for name in ("approving", "ticking", "rolling", "pipeline", "proving", "releasing")
        ),
        *(f"improvements/{name}.py" for name in ("stopping", "outcome", "verdict", "risk", "categories")),
        "improvements/models/lifecycle.py",
        "improvements/checks/staging.py",
        # Who is told, and that somebody notices silence: no improvement may silence what watches it.
        *(f"monitoring/{name}.py" for name in ("notifying", "routing", "composing", "rounds", "heartbeats")),
        "monitoring/notifiers/email.py",
        "improvements/digest/sending.py",
        "monitoring/sandbox.py",
        "monitoring/repository.py",
        *(f"approvals/{name}.py" for name in ("policy", "posting", "telling")),
        "runerogue.toml",
    ],
)
def test_no_improvement_touches_what_guards_it(path: str) -> None:
    assert (settings.BASE_DIR / path).is_file()
    assert scan.protected_reason(path, PROTECTED)
