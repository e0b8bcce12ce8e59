"""What libraries really write, one page each, and the signals that come of it by hand calculation."""

from __future__ import annotations

import math

import pytest

from monitoring.derive import Histogram, Reading, apdex, compare, readings, within
from monitoring.dialects import APART, DIALECTS, Dialect, allowlist, method, recognise, template
from monitoring.manifest import Metrics
from monitoring.prometheus import Snapshot, parse

SECONDS = 10.0
DJANGO_ANSWERS = "django_http_responses_total_by_status_view_method_total"


def histogram(name: str, labels: str, fast: int, slow: int, unit: float = 1.0) -> str:
    """`fast` observations of 0.05 s and `slow` of 1.5 s in buckets of 0.1, 0.5, 2 and 5 s; `unit` per second."""
    le = "".join(
        f'{name}_bucket{{{labels},le="{bound}"}} {count}\n'
        for bound, count in (
            (f"{0.1 * unit:g}", fast),
            (f"{0.5 * unit:g}", fast),
            (f"{2 * unit:g}", fast + slow),
            (f"{5 * unit:g}", fast + slow),
            ("+Inf", fast + slow),
        )
    )
    return le + summary(name, labels, fast, slow, unit)


def summary(name: str, labels: str, fast: int, slow: int, unit: float = 1.0) -> str:
    total = (fast * 0.05 + slow * 1.5) * unit
    return f"{name}_sum{{{labels}}} {total}\n{name}_count{{{labels}}} {fast + slow}\n"


def derive(dialect: Dialect | None, before: str, after: str) -> list[Reading]:
    keep = allowlist(dialect, b"salt")
    snapshots = [parse(text, at=at, keep=keep) for at, text in ((100.0, before), (100.0 + SECONDS, after))]
    return readings(compare(*snapshots, dialect=dialect))


def of(found: list[Reading], **labels: str) -> dict[str, float]:
    wanted = set(labels.items())
    return {reading.signal: reading.value for reading in found if wanted == set(reading.labels)}


# Per dialect: a page on which n requests were fast and answered 200, and m were slow and answered 500, of one route.
PAGES = {
    "django-prometheus": lambda n, m: (
        histogram("django_http_requests_latency_seconds_by_view_method", 'view="/things/{id}",method="GET"', n, m)
        + f'{DJANGO_ANSWERS}{{status="200",view="/things/{{id}}",method="GET"}} {n}\n'
        + f'{DJANGO_ANSWERS}{{status="500",view="/things/{{id}}",method="GET"}} {m}\n'
        + "django_http_requests_before_middlewares_total 9\n"
    ),
    "opentelemetry": lambda n, m: (
        by_status(
            "http_server_request_duration_seconds",
            'http_route="/things/{id}",http_request_method="GET",otel_scope_name="x",url_scheme="http"',
            "http_response_status_code",
            n,
            m,
        )
        + 'http_server_active_requests{http_request_method="GET"} 3\n'
    ),
    "opentelemetry-1.20": lambda n, m: by_status(
        "http_server_duration_milliseconds",
        'http_route="/things/{id}",http_method="GET",http_scheme="http",net_host_name="h"',
        "http_status_code",
        n,
        m,
        1000,
    ),
    "micrometer": lambda n, m: (
        by_status(
            "http_server_requests_seconds",
            'application="shop",error="none",exception="none",method="GET",uri="/things/{id}"',
            "status",
            n,
            m,
        )
        + 'http_server_requests_seconds_max{method="GET",uri="/things/{id}"} 1.5\n'
        + "jvm_threads_live_threads 40\nprocess_files_open_files 12\nprocess_files_max_files 4096\n"
    ),
    "flask-exporter": lambda n, m: (
        by_status("flask_http_request_duration_seconds", 'method="GET",path="/things/17"', "status", n, m)
        + f'flask_http_request_total{{method="GET",status="200"}} {n}\n'
        + 'flask_exporter_info{version="0.23.0"} 1\n'
    ),
    "starlette-exporter": lambda n, m: (
        histogram(
            "starlette_request_duration_seconds",
            'app_name="s",method="GET",path="/things/{id}",status_code="200"',
            n,
            0,
        )
        + histogram(
            "starlette_request_duration_seconds",
            'app_name="s",method="GET",path="/things/{id}",status_code="500"',
            0,
            m,
        )
        + f'starlette_requests_total{{app_name="s",method="GET",path="/things/{{id}}",status_code="200"}} {n}\n'
        + f'starlette_requests_total{{app_name="s",method="GET",path="/things/{{id}}",status_code="500"}} {m}\n'
        + 'starlette_requests_in_progress{app_name="s",method="GET"} 3\n'
    ),
    "starlette-prometheus": lambda n, m: (
        histogram("starlette_requests_processing_time_seconds", 'method="GET",path_template="/things/{id}"', n, m)
        + f'starlette_responses_total{{method="GET",path_template="/things/{{id}}",status_code="200"}} {n}\n'
        + f'starlette_responses_total{{method="GET",path_template="/things/{{id}}",status_code="500"}} {m}\n'
    ),
    "prom-client": lambda n, m: (
        by_status("http_request_duration_seconds", 'method="get",route="/things/:id"', "status_code", n, m)
        + "nodejs_eventloop_lag_seconds 0.001\n"
    ),
    "prom-client-ms": lambda n, m: by_status(
        "http_request_duration_ms", 'method="GET",route="/things/:id"', "code", n, m, 1000
    ),
    "promhttp": lambda n, m: (
        by_status("http_request_duration_seconds", 'handler="/things/{id}",method="get"', "code", n, m)
        + f'promhttp_metric_handler_requests_total{{code="200"}} {n + m}\n'
        + 'go_gc_duration_seconds{quantile="0.5"} NaN\ngo_threads 9\nhttp_requests_in_flight 3\n'
    ),
    "prometheus-fastapi-instrumentator": lambda n, m: (
        histogram("http_request_duration_seconds", 'handler="/things/{id}",method="GET"', n, m)
        + f'http_requests_total{{handler="/things/{{id}}",method="GET",status="2xx"}} {n}\n'
        + f'http_requests_total{{handler="/things/{{id}}",method="GET",status="5xx"}} {m}\n'
        + f'http_requests_total{{handler="/metrics",method="GET",status="2xx"}} {5 * n}\n'
        + "http_requests_inprogress 3\n"
    ),
    "http": lambda n, m: by_status("http_request_duration_seconds", 'uri="/things/{id}",method="GET"', "status", n, m),
}


def by_status(name: str, labels: str, status: str, n: int, m: int, unit: float = 1.0) -> str:
    fine, failed = f'{labels},{status}="200"', f'{labels},{status}="500"'
    return histogram(name, fine, n, 0, unit) + histogram(name, failed, 0, m, unit)


@pytest.mark.parametrize("name", PAGES)
def test_knows_a_dialect_by_itself_and_gives_its_numbers(name: str) -> None:
    page = PAGES[name]
    before, after = page(100, 0), page(180, 20)
    spoken = recognise(parse(after, at=0.0).layout)
    assert spoken is not None
    assert spoken.name == name
    for dialect in (None, spoken):
        found = derive(dialect, before, after)
        endpoint = "/things/:id" if name.startswith("prom-client") else "/things/{id}"
        for labels in ({"endpoint": endpoint, "method": "GET"}, {"endpoint": "*", "method": "*"}):
            assert of(found, **labels) == pytest.approx(
                {
                    "requests_per_second": 10.0,  # 100 in 10 s
                    "error_ratio": 0.2,
                    "latency_mean_ms": 340.0,  # (80 × 0.05 + 20 × 1.5) / 100
                    "latency_p50_ms": 62.5,  # 50 of 80 in the bucket up to 0.1
                    "latency_p95_ms": 1625.0,  # 0.5 + 1.5 × 15/20
                    "latency_p99_ms": 1925.0,
                    "apdex": 0.9,  # 80 satisfied, 20 within 2 s
                    "slow_ratio": 0.2,
                }
            ), name
    levels = of(found)
    if "progress" in after or "active" in after or "in_flight" in after:
        assert levels["requests_in_flight"] == 3
    if name == "micrometer":
        assert (levels["threads"], levels["open_fds"], levels["max_fds"]) == (40, 12, 4096)
    if name == "promhttp":
        assert levels["threads"] == 9


def test_each_dialect_has_a_page() -> None:
    assert {*PAGES, "node-exporter"} == {dialect.name for dialect in DIALECTS}


def test_a_summary_gives_what_it_can() -> None:
    def page(n: int) -> str:
        labels = 'method="GET",outcome="SUCCESS",status="200",uri="/things"'
        name = "http_server_requests_seconds"
        return f'{name}{{{labels},quantile="0.95"}} NaN\n' + summary(name, labels, n, 0)

    assert of(derive(None, page(5), page(25)), endpoint="/things", method="GET") == pytest.approx(
        {"requests_per_second": 2.0, "error_ratio": 0.0, "latency_mean_ms": 50.0}
    )


def test_a_histogram_with_nothing_but_infinity_gives_no_quantile() -> None:
    def page(n: int) -> str:
        return f'http_request_duration_seconds_bucket{{code="200",le="+Inf"}} {n}\n' + summary(
            "http_request_duration_seconds", 'code="200"', n, 0
        )

    found = derive(None, page(0), page(20))
    assert of(found, endpoint="*", method="*") == pytest.approx(
        {"requests_per_second": 2.0, "error_ratio": 0.0, "latency_mean_ms": 50.0}
    )
    assert len(found) == 3, "without a route in the labels there is only the whole"


def test_numbers_that_are_none_make_none() -> None:
    good = PAGES["micrometer"](10, 5)
    for broken in ("_count", "_sum", 'le="0.5"'):
        lines = [line.rpartition(" ")[0] + " NaN" if broken in line else line for line in good.splitlines()]
        found = of(derive(None, PAGES["micrometer"](0, 0), "\n".join(lines) + "\n"), endpoint="*", method="*")
        assert not any(math.isnan(value) for value in found.values())
        if broken == "_count":
            assert found == {}
        if broken == "_sum":
            assert "latency_mean_ms" not in found
            assert found["requests_per_second"] == 1.5


def test_answers_that_are_counted_by_other_labels_are_not_mixed_in() -> None:
    def page(n: int) -> str:
        return histogram("http_request_duration_seconds", 'handler="/things",method="GET"', n, 0) + (
            f'http_requests_total{{code="200"}} {n}\n'
        )

    found = of(derive(None, page(0), page(20)), endpoint="*", method="*")
    assert found["requests_per_second"] == 2.0
    assert "error_ratio" not in found


# --- Dependencies and hosts --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "labels", "status", "kind", "unit"),
    [
        (
            "http_client_request_duration_seconds",
            'server_address="pay.test",server_port="443",http_request_method="POST"',
            "http_response_status_code",
            "http",
            1,
        ),
        ("http_client_duration_milliseconds", 'net_peer_name="pay.test"', "http_status_code", "http", 1000),
        ("http_client_requests_seconds", 'client_name="pay.test",method="GET",uri="/x"', "status", "http", 1),
    ],
)
def test_what_is_called_is_a_dependency(name: str, labels: str, status: str, kind: str, unit: float) -> None:
    found = derive(None, by_status(name, labels, status, 0, 0, unit), by_status(name, labels, status, 80, 20, unit))
    assert of(found, dependency="pay.test", kind=kind) == pytest.approx(
        {
            "dependency_calls_per_second": 10.0,
            "dependency_error_ratio": 0.2,
            "dependency_latency_mean_ms": 340.0,
            "dependency_latency_p95_ms": 1625.0,
        }
    )
    assert of(found, endpoint="*", method="*") == {}, "calls are no requests"


def test_a_failed_call_without_a_status_is_an_error() -> None:
    name = "db_client_operation_duration_seconds"
    fine, failed = 'db_system_name="postgresql"', 'db_system_name="postgresql",error_type="timeout"'
    after = histogram(name, fine, 30, 0) + histogram(name, failed, 0, 10)
    found = of(derive(None, histogram(name, fine, 0, 0), after), dependency="postgresql", kind="database")
    assert found["dependency_error_ratio"] == 0.25
    assert found["dependency_calls_per_second"] == 4.0


def test_a_node_exporter_tells_of_its_host_and_not_of_itself() -> None:
    def page(busy: float, idle: float, disk: float) -> str:
        return (
            f'node_cpu_seconds_total{{cpu="0",mode="idle"}} {idle}\nnode_cpu_seconds_total{{cpu="0",mode="iowait"}} 1\n'
            f'node_cpu_seconds_total{{cpu="0",mode="user"}} {busy}\n'
            f'node_cpu_seconds_total{{cpu="1",mode="idle"}} {idle}\n'
            f'node_cpu_seconds_total{{cpu="1",mode="system"}} {busy}\n'
            "node_memory_MemTotal_bytes 8e9\nnode_memory_MemAvailable_bytes 2e9\n"
            'node_filesystem_size_bytes{device="/dev/a",fstype="ext4",mountpoint="/"} 100\n'
            'node_filesystem_free_bytes{device="/dev/a",fstype="ext4",mountpoint="/"} 30\n'
            'node_filesystem_avail_bytes{device="/dev/a",fstype="ext4",mountpoint="/"} 20\n'
            'node_filesystem_size_bytes{device="tmpfs",fstype="tmpfs",mountpoint="/run"} 10\n'
            'node_filesystem_free_bytes{device="tmpfs",fstype="tmpfs",mountpoint="/run"} 0\n'
            'node_filesystem_avail_bytes{device="tmpfs",fstype="tmpfs",mountpoint="/run"} 0\n'
            f'node_disk_io_time_seconds_total{{device="a"}} {disk}\nnode_disk_io_time_seconds_total{{device="b"}} 0\n'
            f"process_cpu_seconds_total {busy}\nprocess_resident_memory_bytes 1e7\nprocess_open_fds 9\n"
        )

    found = derive(None, page(5, 100, 3), page(8, 107, 7))
    assert of(found) == pytest.approx(
        {
            "host_cpu_percent": 30.0,  # 6 of 20 s
            "host_memory_percent": 75.0,
            "disk_used_percent": 100 * 70 / 90,  # as df does it
            "host_disk_busy_percent": 40.0,
        }
    )
    assert len(found) == 4


# --- The manifest maps anything else -----------------------------------------------------------------------------


def test_the_manifest_maps_other_names() -> None:
    metrics = Metrics.model_validate(
        {
            "map": {
                "latency": "shop_request_time",
                "unit": "milliseconds",
                "endpoint": "page",
                "method": "verb",
                "status": "answer",
                "requests_in_flight": "shop_busy",
                "concurrent_users": "shop_sessions",
            }
        }
    )

    def page(n: int, m: int) -> str:
        return (
            by_status("shop_request_time", 'page="cart",verb="GET"', "answer", n, m, 1000)
            + "shop_busy 4\nshop_sessions 9\n"
        )

    found = derive(metrics.spoken, page(0, 0), page(80, 20))
    assert of(found, endpoint="cart", method="GET")["latency_mean_ms"] == pytest.approx(340.0)
    assert of(found, endpoint="cart", method="GET")["error_ratio"] == pytest.approx(0.2)
    assert of(found)["requests_in_flight"] == 4
    assert of(found)["concurrent_users"] == 9
    assert derive(None, page(0, 0), page(80, 20)) == []


def test_a_mapped_name_replaces_that_of_the_dialect() -> None:
    metrics = Metrics.model_validate({"dialect": "micrometer", "map": {"endpoint": "route"}})
    assert metrics.spoken is not None
    assert (metrics.spoken.latency, metrics.spoken.endpoint) == ("http_server_requests_seconds", ("route",))
    assert Metrics.model_validate({"dialect": "micrometer"}).spoken == next(
        d for d in DIALECTS if d.name == "micrometer"
    )
    assert Metrics().spoken is None


# --- What is kept ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("endpoint", "kept"),
    [
        ("/players/8123", "/players/{id}"),
        ("/players/8123/items/7?token=secret#top", "/players/{id}/items/{id}"),
        ("/files/3f2a9c1e-7d44-4b7e-9d1b-0a1b2c3d4e5f", "/files/{id}"),
        ("/mail/alice@example.org/inbox", "/mail/{id}/inbox"),
        ("/mail/alice%40example.org", "/mail/{id}"),
        ("https://user:pw@shop.test/cart/99", "/cart/{id}"),
        ("GET /orders/{id}", "/orders/{id}"),
        ("/api/v1/players", "/api/v1/players"),
        ("/oauth2/token", "/oauth2/token"),
        ("/things/<int:pk>/edit", "/things/<int:pk>/edit"),
        ("/things/:thingId42000", "/things/:thingId42000"),
        ("^api/(?P<pk>[0-9]+)/$", "api/<pk>/"),
        ("admin:auth_user_change", "admin:auth_user_change"),
        ("alice@example.org", "{id}"),
        ("/" + "x" * 300, "/{id}"),
        ("name\n\x00", "name__"),
        ("", ""),
    ],
)
def test_a_path_is_kept_as_its_template(endpoint: str, kept: str) -> None:
    assert template(endpoint) == kept
    assert template(kept) == kept


def test_methods_are_few() -> None:
    assert [method(value) for value in ("get", "POST", "HACK", "")] == ["GET", "POST", "other", "other"]


def test_no_label_is_kept_that_nobody_needs() -> None:
    def page(n: int) -> str:
        return "".join(
            histogram(
                "http_request_duration_seconds",
                f'handler="/players/{8000 + user}?q=alice",method="GET",user="alice{user}",client="10.0.0.{user}"',
                n * (user + 1),
                0,
            )
            for user in range(3)
        )

    snapshot = parse(page(1), at=0.0, keep=allowlist(None, b"salt"))
    names = {label for _, labels in snapshot.layout.series for label, _ in labels}
    assert names == {APART, "handler", "le", "method"}
    assert not any(word in repr(snapshot.layout.series) for word in ("alice", "10.0.0", "8000", "800"))
    found = derive(None, page(10), page(20))
    assert of(found, endpoint="/players/{id}", method="GET")["requests_per_second"] == pytest.approx(6.0)
    assert of(found, endpoint="/players/{id}", method="GET")["latency_p50_ms"] == pytest.approx(50.0)


def test_series_that_only_differ_in_what_is_not_kept_are_reset_each_on_its_own() -> None:
    def page(one: int, two: int) -> str:
        name = "http_request_duration_seconds"
        return histogram(name, 'handler="/a",pod="1"', one, 0) + histogram(name, 'handler="/a",pod="2"', two, 0)

    # 100 + 100, then one pod began anew and served 10: 10 + 50, where the sum alone would say 160 since its restart.
    found = derive(None, page(100, 100), page(10, 150))
    assert of(found, endpoint="*", method="*")["requests_per_second"] == pytest.approx(6.0)


# --- Apdex -------------------------------------------------------------------------------------------------------


def test_apdex_and_slow_ones_come_from_the_buckets() -> None:
    bounds = (0.1, 0.5, 1.0, 2.0, math.inf)
    observed = Histogram(bounds, (50.0, 70.0, 80.0, 90.0, 100.0), 60.0, 100.0)
    assert within(0.5, observed) == 70
    assert within(0.3, observed) == pytest.approx(60)
    assert within(0.05, observed) == pytest.approx(25)
    assert within(3.0, observed) is None, "ten took more than two seconds, nobody knows how much"
    assert apdex(0.5, observed) == pytest.approx((70 + 20 / 2) / 100)
    assert apdex(0.6, observed) is None
    assert within(3.0, Histogram(bounds, (50.0, 70.0, 80.0, 100.0, 100.0), 60.0, 100.0)) == 100
    assert within(0.5, Histogram((math.inf,), (5.0,), 1.0, 5.0)) is None
    assert apdex(0.5, Histogram()) is None


def test_the_latency_that_satisfies_is_the_services_own() -> None:
    before, after = (
        Snapshot.of(at, parse(PAGES["micrometer"](n, n), at=at).values) for at, n in ((0.0, 0), (10.0, 50))
    )
    for satisfying_ms, expected in ((500.0, 0.75), (125.0, 0.5), (2000.0, 1.0)):
        found = of(readings(compare(before, after), satisfying_ms=satisfying_ms), endpoint="*", method="*")
        assert found["apdex"] == pytest.approx(expected), satisfying_ms
