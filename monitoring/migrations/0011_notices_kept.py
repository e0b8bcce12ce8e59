"""Pages get rows of their own, so that they repeat and escalate as alerts do; what was given up is found quickly."""

from datetime import timedelta

import django.db.models.deletion
import django.utils.timezone
from django.conf import settings
from django.db import migrations, models
from django.utils.timezone import now


def gather_pages(apps, schema_editor):
    """One page for the messages that share a key. It is over unless somebody was still to be told.

    And has been for so long (see notifying.FORGET_RESOLVED) that nobody is told of its end now: there would be a message
    to everybody who was ever told of any page.
    """
    over_since = now() - timedelta(days=8)
    Notice = apps.get_model("monitoring", "Notice")
    Page = apps.get_model("monitoring", "Page")
    for notice in Notice.objects.exclude(page_key="").exclude(service=None).order_by("created_at", "pk"):
        same = Notice.objects.filter(service_id=notice.service_id, page_key=notice.page_key)
        is_open = same.filter(state="waiting").exists()
        page, _ = Page.objects.get_or_create(
            service_id=notice.service_id,
            key=notice.page_key,
            defaults={
                "severity": notice.severity,
                "title": notice.title.partition(": ")[2] or notice.title,
                "body": notice.message.get("body", ""),
                "opened_at": notice.created_at,
                "ended_at": None if is_open else min(notice.created_at, over_since),
                "because": "" if is_open else "It was told by an earlier version.",
            },
        )
        Notice.objects.filter(pk=notice.pk).update(page=page)
    # In one transaction with what follows: tables whose constraints are still to be checked can't be altered.
    schema_editor.execute("SET CONSTRAINTS ALL IMMEDIATE")


class Migration(migrations.Migration):
    dependencies = [
        ("monitoring", "0010_quality"),
        migrations.swappable_dependency(settings.AUTH_USER_MODEL),
    ]

    operations = [
        migrations.CreateModel(
            name="Page",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                (
                    "service",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.CASCADE, related_name="pages", to="monitoring.service"
                    ),
                ),
                ("key", models.CharField(max_length=100)),
                (
                    "severity",
                    models.CharField(choices=[("critical", "Critical"), ("warning", "Warning")], max_length=10),
                ),
                ("title", models.CharField(max_length=200)),
                ("body", models.TextField()),
                (
                    "url",
                    models.CharField(blank=True, default="", help_text="A path of RuneRogue's own.", max_length=200),
                ),
                ("opened_at", models.DateTimeField(default=django.utils.timezone.now)),
                ("taken_at", models.DateTimeField(blank=True, null=True)),
                (
                    "taken_by",
                    models.ForeignKey(
                        blank=True,
                        null=True,
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="+",
                        to=settings.AUTH_USER_MODEL,
                    ),
                ),
                ("ended_at", models.DateTimeField(blank=True, null=True)),
                (
                    "because",
                    models.CharField(blank=True, default="", help_text="Why it was taken, or is over.", max_length=500),
                ),
            ],
            options={
                "indexes": [
                    models.Index(condition=models.Q(("ended_at", None)), fields=["opened_at"], name="page_open")
                ],
                "constraints": [
                    models.UniqueConstraint(fields=("service", "key"), name="one_page_per_key"),
                    models.CheckConstraint(
                        condition=models.Q(
                            models.Q(("taken_at", None), ("taken_by", None)),
                            models.Q(("taken_at__isnull", False), ("taken_by__isnull", False)),
                            _connector="OR",
                        ),
                        name="page_is_taken_by_somebody",
                    ),
                ],
            },
        ),
        migrations.AddField(
            model_name="notice",
            name="page",
            field=models.ForeignKey(
                blank=True,
                null=True,
                on_delete=django.db.models.deletion.CASCADE,
                related_name="notices",
                to="monitoring.page",
            ),
        ),
        migrations.RunPython(gather_pages, migrations.RunPython.noop),
        migrations.RemoveIndex(model_name="notice", name="notice_page"),
        migrations.RemoveField(model_name="notice", name="page_key"),
        migrations.AddIndex(
            model_name="notice",
            index=models.Index(condition=models.Q(("state", "dead")), fields=["created_at"], name="notice_dead"),
        ),
    ]
