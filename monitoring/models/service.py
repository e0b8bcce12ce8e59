"""Services and the addresses where they are measured."""

from __future__ import annotations

from pathlib import Path

from django.conf import settings
from django.db import models
from django.db.models import Q
from django.utils.timezone import now

from monitoring.manifest import PUSHED, Manifest


class ServiceQuerySet(models.QuerySet["Service"]):
    def active(self) -> ServiceQuerySet:
        """The services that are watched; archived ones are history."""
        return self.filter(archived_at=None)


class Service(models.Model):
    """A watched application: a repository with a manifest, a metrics source, a place to run."""

    name = models.SlugField(max_length=40, unique=True)
    repository = models.CharField(max_length=1000, help_text="A path or a git URL.")
    branch = models.CharField(max_length=200, default="main")
    manifest = models.JSONField()
    # Secrets such as DATABASE_URL live here: pages and logs show the names, never the values.
    environment = models.JSONField(default=dict, blank=True)
    is_self = models.BooleanField(default=False, editable=False)
    slot = models.PositiveSmallIntegerField(null=True, blank=True, unique=True, help_text="Its place in the proxy.")
    created_at = models.DateTimeField(default=now, editable=False)
    archived_at = models.DateTimeField(null=True, blank=True)

    objects = ServiceQuerySet.as_manager()

    class Meta:
        ordering = ["name"]
        constraints = [
            models.UniqueConstraint(fields=["is_self"], condition=Q(is_self=True), name="one_service_is_runerogue"),
        ]

    def __str__(self) -> str:
        return self.name

    @property
    def is_remote(self) -> bool:
        """Whether `repository` is a URL, of which RuneRogue keeps its own clone."""
        return is_url(self.repository)

    @property
    def checkout(self) -> Path:
        """The local git repository that is read and committed to."""
        return clone_folder(self.name) if self.is_remote else Path(self.repository)

    @property
    def parsed(self) -> Manifest:
        """The manifest as it was when the service was registered or refreshed."""
        return Manifest.model_validate(self.manifest)


def is_url(repository: str) -> bool:
    """Whether `repository` names a remote (https://…, ssh://…, git@host:path) and not a folder."""
    if "://" in repository:
        return True
    host, colon, _ = repository.partition(":")
    return bool(colon) and "@" in host and "/" not in host


def clone_folder(name: str) -> Path:
    """Where the clone of the remote service `name` lives."""
    return settings.HOME.repository(name)


class TargetQuerySet(models.QuerySet["Target"]):
    def active(self) -> TargetQuerySet:
        """What the collector scrapes."""
        return self.filter(active=True, service__archived_at=None)

    def serving(self) -> TargetQuerySet:
        """What users get answers from; only these are judged."""
        return self.active().filter(serving=True)

    def pushed(self) -> TargetQuerySet:
        """What is not asked but sends its metrics by itself."""
        return self.filter(url=PUSHED)

    def asked(self) -> TargetQuerySet:
        """What is asked for its metrics."""
        return self.exclude(url=PUSHED)


class Target(models.Model):
    """One address that the collector scrapes, or PUSHED: a running release of a service."""

    service = models.ForeignKey(Service, on_delete=models.CASCADE, related_name="targets")
    url = models.CharField(max_length=500)
    release = models.CharField(max_length=12, blank=True, default="", help_text="The release's short commit.")
    active = models.BooleanField(default=True)
    serving = models.BooleanField(
        default=True, help_text="Users get answers from it. A release that is tried in private is measured, not judged."
    )
    last_scraped_at = models.DateTimeField(null=True, blank=True, editable=False, help_text="The last success.")
    last_error = models.CharField(max_length=500, blank=True, default="", editable=False)

    objects = TargetQuerySet.as_manager()

    class Meta:
        ordering = ["service", "url"]
        constraints = [
            models.UniqueConstraint(fields=["service", "release", "url"], name="one_target_per_release_and_url"),
            # Without a release its numbers are stored as those of the whole service.
            models.CheckConstraint(condition=Q(serving=True) | ~Q(release=""), name="private_target_has_a_release"),
        ]

    def __str__(self) -> str:
        return f"{self.url} ({self.release})" if self.release else self.url

    @property
    def is_pushed(self) -> bool:
        """Whether it sends its metrics by itself and has no address."""
        return self.url == PUSHED
