"""The addresses that machines ask. Their names are in derive's list of endpoints that are no users' requests."""

from django.urls import path

from monitoring import views, views_otlp

urlpatterns = [
    path("health/live", views.live, name="health-live"),
    path("health/ready", views.ready, name="health-ready"),
    path("health/detailed", views.detailed, name="health-detailed"),
    path("health/score", views.score, name="health-score"),
    path("health/trends", views.trends, name="health-trends"),
    path("monitoring/alerts", views.alerts, name="monitoring-alerts"),
    path("metrics", views.metrics, name="metrics"),
    path("v1/traces", views_otlp.traces, name="otlp-traces"),
]
