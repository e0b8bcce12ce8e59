"""The addresses that machines ask. Their names are in derive's list of endpoints that are no users' requests."""

from django.urls import path

from monitoring import views

urlpatterns = [
    path("health/live", views.live, name="health-live"),
    path("health/ready", views.ready, name="health-ready"),
    path("health/detailed", views.detailed, name="health-detailed"),
    path("health/score", views.score, name="health-score"),
    path("health/trends", views.trends, name="health-trends"),
    path("monitoring/alerts", views.alerts, name="monitoring-alerts"),
    path("performance/baseline", views.baseline, name="performance-baseline"),
    path("metrics", views.metrics, name="metrics"),
]
