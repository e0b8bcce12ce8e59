"""What is watched. Measurements are read here; only switches are written."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from django.contrib import admin
from django.db.models import Count, F, OuterRef, Q, QuerySet, Subquery
from django.http import HttpRequest
from django.urls import reverse
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString
from django.utils.timezone import now

from approvals.readonly import ReadOnly
from monitoring import backfilling, blindspots, experience
from monitoring.admin import charts
from monitoring.admin.pages import NONE, Audited, covered, explained, score_in_words, vitals_in_words
from monitoring.models import Alert, HealthScore, Service, Target

# Other lists about one service, those of the apps above among them: the address is all that is known of them here.
LISTS_OF_A_SERVICE = {
    "improvements_improvement": "improvements",
    "analysis_finding": "findings",
    "monitoring_alert": "alerts",
    "monitoring_notice": "notices",
    "monitoring_healthscore": "health scores",
    "monitoring_series": "signals",
    "monitoring_qualityreport": "reports",
    "monitoring_baseline": "baselines",
    "monitoring_spanintake": "profiles",
    "monitoring_feedback": "feedback",
    "improvements_release": "releases",
}


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
        "scores",
        "coverage",
        "past",
        "experience",
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
        "scores",
        "coverage",
        "past",
        "experience",
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

    @admin.display(description="health over time")
    def scores(self, service: Service) -> SafeString:
        return charts.of_score(service, now())

    @admin.display(description="seen by the monitoring")
    def coverage(self, service: Service) -> SafeString:
        return covered(blindspots.coverage(service, now()))

    @admin.display(description="time before")
    def past(self, service: Service) -> str:
        return backfilling.told(service) or "Only what was scraped is known."

    @admin.display(description="web vitals")
    def experience(self, service: Service) -> SafeString | str:
        felt = experience.felt(service, since=now() - timedelta(hours=1), until=now())
        return vitals_in_words(felt) if felt else "No page reported in the last hour."

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
