"""The people whom a service names as its own."""

from __future__ import annotations

from django.conf import settings
from django.db import models

from approvals.teams import TEAM_ROLES


class TeamMember(models.Model):
    """One person whom a service names for a role. Whether they hold it still depends on the role's group."""

    scope = models.CharField("service", max_length=100)
    role = models.CharField(max_length=20, choices=[(role.value, role.title) for role in TEAM_ROLES])
    person = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="team_memberships")

    class Meta:
        ordering = ["scope", "role", "person__username"]
        constraints = [
            models.UniqueConstraint(fields=["scope", "role", "person"], name="named_once_per_service_and_role"),
            models.CheckConstraint(
                condition=models.Q(role__in=[role.value for role in TEAM_ROLES]), name="team_role_is_of_services"
            ),
            models.CheckConstraint(condition=~models.Q(scope=""), name="team_belongs_to_a_service"),
        ]

    def __str__(self) -> str:
        return f"{self.person}, {self.get_role_display()} of {self.scope}"
