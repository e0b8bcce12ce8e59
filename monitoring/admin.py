"""What is watched, in the admin. Measurements and alert states are read here; only rules and switches are written."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.db.models import Count, F, OuterRef, Q, QuerySet, Subquery
from django.forms import ModelForm
from django.http import HttpRequest
from django.urls import reverse
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString

from approvals import audit
from approvals.readonly import ReadOnly
from monitoring.models import Alert, AlertRule, HealthScore, Sample, Series, Service, Target

NONE = "–"
# Other lists about one service, those of the apps above among them: the address is all that is known of them here.
LISTS_OF_A_SERVICE = {
    "improvements_improvement": "improvements",
    "analysis_finding": "findings",
    "monitoring_alert": "alerts",
    "monitoring_healthscore": "health scores",
    "monitoring_series": "signals",
    "improvements_release": "releases",
}


class Audited:
    """What a person changes here goes into the audit log, in the transaction of the change."""

    def save_model(self, request: HttpRequest, obj: Any, form: ModelForm[Any], change: bool) -> None:
        was = {name: form.initial.get(name) for name in form.changed_data} if change else None
        super().save_model(request, obj, form, change)  # type: ignore[misc]
        if form.changed_data:
            became = {name: getattr(obj, name) for name in form.changed_data if not hasattr(getattr(obj, name), "pk")}
            action = f"{obj._meta.model_name}.{'changed' if change else 'added'}"
            audit.record(action, obj, actor=request.user, was=was, became=became)


def score_in_words(score: float | None, status: str) -> str:
    return f"{status} ({score:.0f})" if score is not None else status


class TargetInline(ReadOnly, admin.TabularInline[Target, Service]):
    model = Target
    fields = ["url", "release", "last_scraped_at", "last_error"]
    readonly_fields = ["url", "release", "last_scraped_at", "last_error"]
    extra = 0
    verbose_name_plural = "Running targets"

    def get_queryset(self, request: HttpRequest) -> QuerySet[Target]:
        # A service has had a target for each release that ever ran.
        return super().get_queryset(request).filter(active=True)


@admin.register(Service)
class ServiceAdmin(Audited, admin.ModelAdmin[Service]):
    nothing = "No service is registered. `manage.py register PATH` reads a repository's runerogue.toml."
    list_display = ["name", "health", "trend", "firing", "last_scrape", "target_errors", "watched"]
    search_fields = ["name", "repository"]
    show_full_result_count = False
    inlines = [TargetInline]
    fields = [
        "name",
        "repository",
        "branch",
        "slot",
        "health",
        "why",
        "see_also",
        "environment_names",
        "commands",
        "created_at",
        "archived_at",
    ]
    readonly_fields = [
        "name",
        "repository",
        "branch",
        "slot",
        "health",
        "why",
        "see_also",
        "environment_names",
        "commands",
        "created_at",
    ]

    def get_queryset(self, request: HttpRequest) -> QuerySet[Service]:
        newest = HealthScore.objects.filter(service=OuterRef("pk")).order_by("-at")
        # Each count in its own subquery: joined together they would multiply.
        firing = Alert.objects.firing().filter(service=OuterRef("pk")).order_by().values("service")
        active = Target.objects.filter(service=OuterRef("pk"), active=True).order_by().values("service")
        return (
            super()
            .get_queryset(request)
            .defer("environment")
            .annotate(
                newest_score=Subquery(newest.values("score")[:1]),
                newest_status=Subquery(newest.values("status")[:1]),
                newest_trend=Subquery(newest.values("trend")[:1]),
                firing_count=Subquery(firing.annotate(n=Count("pk")).values("n")),
                error_count=Subquery(active.annotate(n=Count("pk", filter=~Q(last_error=""))).values("n")),
                scraped_at=Subquery(
                    Target.objects.filter(service=OuterRef("pk"))
                    .order_by(F("last_scraped_at").desc(nulls_last=True))
                    .values("last_scraped_at")[:1]
                ),
            )
        )

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False  # `manage.py register` reads the manifest; a form could not

    def has_delete_permission(self, request: HttpRequest, obj: Service | None = None) -> bool:
        return False  # a service is archived: its history stays

    @admin.display(ordering="newest_score")
    def health(self, service: Any) -> str:
        return score_in_words(service.newest_score, service.newest_status or "unknown")

    @admin.display
    def trend(self, service: Any) -> str:
        return service.newest_trend or "unknown"

    @admin.display(description="alerts firing")
    def firing(self, service: Any) -> SafeString | str:
        if not service.firing_count:
            return NONE
        url = reverse("admin:monitoring_alert_changelist")
        return format_html(
            '<a href="{}?service__id__exact={}&amp;state__exact=firing">{}</a>', url, service.pk, service.firing_count
        )

    @admin.display(description="last scrape", ordering="scraped_at")
    def last_scrape(self, service: Any) -> Any:
        return service.scraped_at or NONE

    @admin.display(description="targets failing")
    def target_errors(self, service: Any) -> str:
        return str(service.error_count) if service.error_count else NONE

    @admin.display(boolean=True, ordering="archived_at")
    def watched(self, service: Service) -> bool:
        return service.archived_at is None

    @admin.display(description="see also")
    def see_also(self, service: Service) -> SafeString:
        return format_html_join(
            " · ",
            '<a href="{}?service__id__exact={}">{}</a>',
            ((reverse(f"admin:{name}_changelist"), service.pk, words) for name, words in LISTS_OF_A_SERVICE.items()),
        )

    @admin.display
    def why(self, service: Service) -> SafeString | str:
        newest = HealthScore.objects.filter(service=service).order_by("-at").first()
        return explained(newest) if newest else "Nothing has been collected yet."

    @admin.display(description="environment")
    def environment_names(self, service: Service) -> str:
        # Values may be passwords.
        return ", ".join(sorted(service.environment)) or NONE

    @admin.display
    def commands(self, service: Service) -> SafeString:
        manifest = service.parsed
        rows = [
            ("run", manifest.run.command),
            ("set up", manifest.setup.command),
            ("test", manifest.test.command),
            ("benchmark", manifest.benchmark.command),
        ]
        return format_html_join("", "<p>{}: <code>{}</code></p>", ((name, text or NONE) for name, text in rows))


def labels_in_words(labels: dict[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in sorted(labels.items())) or "whole service"


def explained(found: HealthScore) -> SafeString:
    """The components with their messages, for a person."""
    return format_html_join(
        "",
        "<p><strong>{}</strong>: {}. {}</p>",
        (
            (name.capitalize(), score_in_words(part["score"], part["status"]), part["message"])
            for name, part in found.components.items()
        ),
    )


@admin.register(Target)
class TargetAdmin(ReadOnly, admin.ModelAdmin[Target]):
    nothing = "No target. A registered service has one for each release that runs."
    list_display = ["url", "service", "release", "active", "last_scraped_at", "last_error"]
    list_filter = ["active", "service"]
    list_select_related = ["service"]
    show_full_result_count = False


@admin.register(Series)
class SeriesAdmin(ReadOnly, admin.ModelAdmin[Series]):
    nothing = "No signal yet. The first numbers come with the first scrape of a service."
    list_display = ["signal", "labels_in_words", "service", "newest", "measured_at"]
    list_filter = ["service", "signal"]
    list_select_related = ["service"]
    search_fields = ["signal", "labels_key"]
    ordering = ["service", "signal", "labels_key"]
    show_full_result_count = False
    fields = ["service", "signal", "labels_in_words", "newest", "measured_at"]
    readonly_fields = ["service", "signal", "labels_in_words", "newest", "measured_at"]

    def get_queryset(self, request: HttpRequest) -> QuerySet[Series]:
        newest = Sample.objects.filter(series=OuterRef("pk")).order_by("-at")
        return (
            super()
            .get_queryset(request)
            .annotate(newest_value=Subquery(newest.values("value")[:1]), newest_at=Subquery(newest.values("at")[:1]))
        )

    @admin.display(description="labels")
    def labels_in_words(self, series: Series) -> str:
        return labels_in_words(series.labels)

    @admin.display(description="newest value")
    def newest(self, series: Any) -> str:
        return NONE if series.newest_value is None else f"{series.newest_value:.4g}"

    @admin.display
    def measured_at(self, series: Any) -> Any:
        return series.newest_at or NONE


@admin.register(HealthScore)
class HealthScoreAdmin(ReadOnly, admin.ModelAdmin[HealthScore]):
    nothing = "No health score yet. One is written in every collection interval."
    list_display = ["service", "at", "health", "trend", "sure"]
    list_filter = ["service", "status"]
    list_select_related = ["service"]
    ordering = ["-at"]
    show_full_result_count = False
    fields = ["service", "at", "health", "trend", "sure", "why"]
    readonly_fields = ["service", "at", "health", "trend", "sure", "why"]

    @admin.display(ordering="score")
    def health(self, found: HealthScore) -> str:
        return score_in_words(found.score, found.status)

    @admin.display(description="confidence", ordering="confidence")
    def sure(self, found: HealthScore) -> str:
        return f"{found.confidence:.0%}"

    @admin.display
    def why(self, found: HealthScore) -> SafeString:
        return explained(found)


@admin.register(AlertRule)
class AlertRuleAdmin(Audited, admin.ModelAdmin[AlertRule]):
    list_display = ["name", "summary", "for_service", "condition", "for_intervals", "severity", "enabled"]
    list_filter = ["enabled", "severity"]
    list_select_related = ["service"]
    show_full_result_count = False

    def has_delete_permission(self, request: HttpRequest, obj: AlertRule | None = None) -> bool:
        return False  # a rule is switched off: the alerts it opened stay explained

    @admin.display(description="service", ordering="service")
    def for_service(self, rule: AlertRule) -> str:
        return str(rule.service) if rule.service else "every service"

    @admin.display
    def condition(self, rule: AlertRule) -> str:
        limit = f"{rule.threshold:g}" + (" × usual" if rule.is_relative else "")
        return f"{rule.signal} {rule.comparison} {limit}"


@admin.register(Alert)
class AlertAdmin(ReadOnly, admin.ModelAdmin[Alert]):
    nothing = "No alert. One opens as soon as a rule holds, and fires when it goes on."
    list_display = ["name", "message", "service", "severity", "state", "opened_at", "resolved_at"]
    fields = [
        "name", "message", "service", "rule", "about", "severity", "state", "state_since", "opened_at", "fired_at",
        "resolved_at", "intervals", "seen_at",
    ]  # fmt: skip
    readonly_fields = ["about"]
    list_filter = ["state", "severity", "service"]
    list_select_related = ["service"]
    date_hierarchy = "opened_at"
    show_full_result_count = False

    @admin.display(description="labels")
    def about(self, alert: Alert) -> str:
        return labels_in_words(alert.labels)
