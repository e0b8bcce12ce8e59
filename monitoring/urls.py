"""The addresses that machines ask. Their names are in derive's list of endpoints that are no users' requests."""

from django.urls import path

from monitoring import api, api_builds, views, views_otlp

urlpatterns = [
    path("health/live", views.live, name="health-live"),
    path("health/ready", views.ready, name="health-ready"),
    path("health/detailed", views.detailed, name="health-detailed"),
    path("health/score", views.score, name="health-score"),
    path("health/trends", views.trends, name="health-trends"),
    path("monitoring/alerts", views.alerts, name="monitoring-alerts"),
    path("performance/baseline", views.baseline, name="performance-baseline"),
    path("metrics", views.metrics, name="metrics"),
    path("api/v1/openapi.json", views.openapi, name="api-openapi"),
    path("api/v1/services", api.Services.as_view(), name="api-services"),
    path("api/v1/services/<slug:name>", api.OneService.as_view(), name="api-service"),
    path("api/v1/services/<slug:name>/samples", api.Samples.as_view(), name="api-samples"),
    path("api/v1/reports", api_builds.BuildReport.as_view(), name="api-reports"),
    path("api/v1/ci/gate", api_builds.BuildGate.as_view(), name="api-ci-gate"),
    path("api/v1/alerts", api.Alerts.as_view(), name="api-alerts"),
    path("v1/traces", views_otlp.traces, name="otlp-traces"),
    path("v1/metrics", views_otlp.metrics, name="otlp-metrics"),
    path("api/v1/vitals", api.Vitals.as_view(), name="api-vitals"),
    path("api/v1/feedback", api.FeedbackOfPeople.as_view(), name="api-feedback"),
]
