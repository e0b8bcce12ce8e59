"""RuneRogue's own HTTP metrics: django-prometheus with labels that a client can't invent, requests in flight, users."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from django.contrib.auth import SESSION_KEY
from django.http import HttpRequest, HttpResponseBase
from django_prometheus.middleware import PrometheusAfterMiddleware
from prometheus_client import Gauge

from monitoring import presence
from monitoring.dialects import METHODS

Answer = Callable[[HttpRequest], HttpResponseBase]
MACHINES = ("/metrics", "/health/")

# livesum: what the processes that are alive have in hand, together.
IN_FLIGHT = Gauge("runerogue_requests_in_flight", "Requests being worked on now.", multiprocess_mode="livesum")


class BoundedPrometheusMiddleware(PrometheusAfterMiddleware):  # type: ignore[misc]
    """Takes the place of PrometheusAfterMiddleware, which labels its latency histogram with the method as it was sent.

    Anybody could so add a dozen series with every request; here unknown methods are one.
    """

    def label_metric(
        self, metric: Any, request: HttpRequest, response: HttpResponseBase | None = None, **labels: Any
    ) -> Any:
        if "method" in labels and labels["method"] not in METHODS:
            labels["method"] = "<invalid method>"
        return super().label_metric(metric, request, response, **labels)


class InFlightMiddleware:
    """Counts the requests that people wait for at this moment; the first in the list, so that nothing is left out."""

    def __init__(self, get_response: Answer) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        if request.path_info.startswith(MACHINES):
            return self.get_response(request)
        with IN_FLIGHT.track_inprogress():
            return self.get_response(request)


class PresenceMiddleware:
    """Counts the sessions of people who are signed in. After SessionMiddleware."""

    def __init__(self, get_response: Answer) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        answer = self.get_response(request)
        # A session that no view looked at is not read from the database for this.
        if request.session.accessed and request.session.session_key and SESSION_KEY in request.session:
            presence.see(request.session.session_key, at=time.time())
        return answer
