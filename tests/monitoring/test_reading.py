"""Samples as arrays."""

from __future__ import annotations

from datetime import timedelta

import numpy as np
import pytest

from monitoring import reading
from tests.monitoring.factories import INTERVAL, T0, ServiceFactory, samples

pytestmark = pytest.mark.django_db


def test_gives_each_series_in_order_of_time() -> None:
    service = ServiceFactory()
    samples(service, "x", [1.0, 2.0, 3.0], until=T0, endpoint="a", release="r1")
    samples(service, "x", [9.0], until=T0, endpoint="b", release="r1")
    samples(service, "y", [7.0], until=T0, endpoint="a")
    samples(ServiceFactory(), "x", [5.0], until=T0, endpoint="a")
    first, second = reading.arrays(service, "x", since=T0 - timedelta(hours=1), until=T0)
    assert first.labels == {"endpoint": "a", "release": "r1"}
    np.testing.assert_array_equal(first.value, [1.0, 2.0, 3.0])
    np.testing.assert_allclose(first.at, T0.timestamp() - np.array([180.0, 120.0, 60.0]))
    assert first.value.dtype == first.at.dtype == np.float64
    assert second.labels["endpoint"] == "b"


def test_labels_choose_and_the_range_is_half_open() -> None:
    service = ServiceFactory()
    samples(service, "x", [1.0, 2.0, 3.0], until=T0, endpoint="a")
    samples(service, "x", [4.0], until=T0, endpoint="b")
    (found,) = reading.arrays(service, "x", since=T0 - 3 * INTERVAL, until=T0 - INTERVAL, labels={"endpoint": "a"})
    np.testing.assert_array_equal(found.value, [1.0, 2.0])
    assert reading.arrays(service, "x", since=T0, until=T0 + INTERVAL) == []
    assert reading.arrays(service, "x", since=T0 - INTERVAL, until=T0, labels={"endpoint": "c"}) == []


def test_latest_is_the_newest_and_of_equally_new_the_whole() -> None:
    service = ServiceFactory()
    assert reading.latest(service, "x") is None
    samples(service, "x", [1.0, 2.0], until=T0, endpoint="*", release="r")
    samples(service, "x", [8.0, 9.0], until=T0, endpoint="*")
    samples(service, "x", [5.0], until=T0 - INTERVAL, endpoint="a")
    assert reading.latest(service, "x") == 9.0
    assert reading.latest(service, "x", release="r") == 2.0
    assert reading.latest(service, "x", endpoint="a") == 5.0
    assert reading.latest(service, "x", endpoint="b") is None


def test_usual_is_the_median_once_there_is_enough() -> None:
    service = ServiceFactory()
    samples(service, "x", [1.0, 100.0, 3.0], until=T0)
    window = {"since": T0 - timedelta(days=1), "until": T0, "labels_key": "{}"}
    assert reading.usual(service, "x", **window) is None  # type: ignore[arg-type]
    assert reading.usual(service, "x", **window, at_least=3) == 3.0  # type: ignore[arg-type]
