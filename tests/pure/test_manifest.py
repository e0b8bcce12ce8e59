"""runerogue.toml: a bad file names the line and the fix."""

from __future__ import annotations

import pytest

from monitoring.manifest import Manifest, ManifestError, parse

GOOD = """[service]
name = "realm"
[run]
command = "gunicorn realm.wsgi --bind 127.0.0.1:{port}"
health = "/up"
[test]
command = "pytest -q --junitxml={report}"
[tuning.GUNICORN_THREADS]
values = [1, 2, 4, 8]
[protected]
paths = ["realm/auth/**"]
[metrics]
timeout_seconds = 2.5
[metrics.map]
unit = "milliseconds"
latency = "shop_ms"
"""


def test_reads_a_manifest_and_fills_in_what_is_optional() -> None:
    manifest = parse(GOOD)
    assert manifest.service.name == "realm"
    assert manifest.run.health == "/up"
    assert manifest.setup.command is None
    assert manifest.benchmark.command is None
    assert manifest.metrics.path == "/metrics"
    assert manifest.tuning["GUNICORN_THREADS"].values == (1, 2, 4, 8)
    assert manifest.protected.paths == ("realm/auth/**",)
    assert manifest.smoke.paths == ()


def test_survives_the_way_through_the_database() -> None:
    manifest = parse(GOOD)
    assert Manifest.model_validate(manifest.model_dump(mode="json")) == manifest


@pytest.mark.parametrize(
    ("was", "becomes", "line", "says"),
    [
        ("health =", "helth =", 5, "did you mean 'health'"),
        ("[test]", "[tst]", 6, "did you mean 'test'"),
        ("[protected]", "[protected]\nalso = 1", 11, "'protected.also' is not known"),
        ("values = ", "vals = ", 9, "did you mean 'values'"),
        ('[test]\ncommand = "pytest -q --junitxml={report}"\n', "", 1, r"'test' is missing.*add \[test\]"),
        ('health = "/up"\n', "", 3, "'run.health' is missing.*add health"),
        ("{port}", "8000", 4, "no {port}.*--bind 127.0.0.1:{port}"),
        ('"/up"', '"up"', 5, "not a path on the service.*start it with one"),
        ('"/up"', "/up", 5, "not valid TOML"),
        ("[service]", "[service", 1, "not valid TOML"),
        ('"realm"\n', '"Realm!"\n', 2, "not a usable name.*small letters"),
        ('"realm"\n', "3\n", 2, "should be a valid string"),
        ("realm/auth", "../auth", 11, "outside the repository"),
        ("GUNICORN_THREADS", "threads", 8, "environment variable"),
        ("[1, 2, 4, 8]", "[1]", 9, "at least 2"),
        ("2.5", "600", 13, "less than or equal to 60.*timeout_seconds = 5"),
        ("milliseconds", "hours", 15, "'seconds', 'milliseconds' or 'microseconds'.*unit ="),
        ("shop_ms", "shop{}", 16, "not the name of a metric.*as the service's metrics page shows it"),
        ("latency =", "latncy =", 16, "did you mean 'latency'"),
        ("timeout_seconds = 2.5", 'promql = "prometheus"', 13, "not the address of a Prometheus API.*http://"),
        ("timeout_seconds = 2.5", "selector = 'up or x'", 13, "does not select series"),
        ("timeout_seconds = 2.5", 'dialect = "cobol"', 13, "not a dialect.*micrometer"),
        ("[1, 2, 4, 8]", "4", 9, "should be a list.*values ="),
    ],
)
def test_a_mistake_names_line_and_fix(was: str, becomes: str, line: int, says: str) -> None:
    assert was in GOOD
    with pytest.raises(ManifestError, match=f"(?s){says}") as caught:
        parse(GOOD.replace(was, becomes, 1))
    assert caught.value.line == line
    assert str(caught.value).startswith(f"runerogue.toml, line {line}: ")
    assert caught.value.fix


def test_the_line_is_right_behind_a_text_of_several_lines() -> None:
    text = GOOD.replace('"gunicorn realm.wsgi', '"""\n  [protected]\n  gunicorn realm.wsgi').replace(
        '{port}"', '{port}"""', 1
    )
    with pytest.raises(ManifestError) as caught:
        parse(text.replace("health", "helth"))
    assert caught.value.line == 7


def test_refuses_an_endless_file() -> None:
    with pytest.raises(ManifestError, match="keep it under"):
        parse("#" * 200_000)


def test_objectives_have_defaults_and_bounds() -> None:
    assert parse(GOOD).slo.model_dump() == {
        "availability": 0.999,
        "latency_ms": 500.0,
        "latency_ratio": 0.95,
        "period_days": 28,
    }
    assert parse(GOOD + "[slo]\navailability = 0.99\nlatency_ms = 200").slo.latency_ms == 200.0
    with pytest.raises(ManifestError, match=r"line 18: slo.availability.*write something like availability = 0.999"):
        parse(GOOD + "[slo]\navailability = 99.9")
