"""What should be seen of a service, and when it was."""

from __future__ import annotations

from django.db import models

from monitoring.models.service import Service


class RouteMap(models.Model):
    """The routes of a service's newest commit, and the newest value of each route and dependency."""

    service = models.OneToOneField(Service, on_delete=models.CASCADE, primary_key=True, related_name="route_map")
    commit = models.CharField(max_length=64, blank=True)
    names = models.JSONField(default=list)
    source = models.CharField(max_length=100, blank=True)
    measures_all = models.BooleanField(default=False)
    problem = models.CharField(max_length=500, blank=True, help_text="Why the routes could not be read.")
    seen = models.JSONField(default=dict)  # "route:NAME", "dependency:NAME", "up" → unix seconds
    mapped_at = models.DateTimeField(null=True)

    def __str__(self) -> str:
        return f"Routes of {self.service}"
