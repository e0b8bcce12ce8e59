"""RuneRogue's own HTTP metrics: django-prometheus, with labels that a client can't invent."""

from __future__ import annotations

from typing import Any

from django.http import HttpRequest, HttpResponseBase
from django_prometheus.middleware import PrometheusAfterMiddleware

from monitoring.dialects import METHODS


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
