"""Which group is which role. By id: a renamed group keeps its role, a new group of the same name gains none."""

from __future__ import annotations

from django.contrib.auth.models import Group
from django.db import models

from approvals.policy import Role


class RoleGroup(models.Model):
    role = models.CharField(max_length=20, primary_key=True, choices=[(role.value, role.title) for role in Role])
    group = models.OneToOneField(Group, on_delete=models.PROTECT, related_name="role")

    def __str__(self) -> str:
        return f"{self.role}: {self.group.name}"
