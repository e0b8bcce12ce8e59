import django.db.models.deletion
import django.utils.timezone
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("monitoring", "0006_baselines"),
    ]

    operations = [
        migrations.CreateModel(
            name="SpanIntake",
            fields=[
                (
                    "service",
                    models.OneToOneField(
                        on_delete=django.db.models.deletion.CASCADE,
                        primary_key=True,
                        related_name="span_intake",
                        serialize=False,
                        to="monitoring.service",
                    ),
                ),
                ("folded_at", models.DateTimeField(help_text="The newest round that found spans.")),
                ("batch", models.BigIntegerField(default=0, editable=False)),
                ("spans", models.BigIntegerField(default=0, help_text="Counted.")),
                ("requests", models.BigIntegerField(default=0)),
                (
                    "without_request",
                    models.BigIntegerField(
                        default=0, help_text="Calls whose request never came; counted by dependency alone."
                    ),
                ),
                (
                    "late_requests",
                    models.BigIntegerField(
                        default=0, help_text="Requests that came when their calls had been given up; not counted."
                    ),
                ),
                ("dropped", models.BigIntegerField(default=0, help_text="Spans for which there was no room to wait.")),
                (
                    "waiting",
                    models.IntegerField(default=0, help_text="Spans that wait for the rest of their request now."),
                ),
            ],
            options={
                "verbose_name": "profile",
                "verbose_name_plural": "profiles",
            },
        ),
        migrations.CreateModel(
            name="Profile",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("at", models.DateTimeField(help_text="When the window began.")),
                ("seconds", models.PositiveSmallIntegerField(help_text="The length of the window.")),
                ("endpoint", models.CharField(max_length=200)),
                ("method", models.CharField(max_length=20)),
                ("body", models.JSONField()),
                (
                    "service",
                    models.ForeignKey(
                        db_index=False,
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="profiles",
                        to="monitoring.service",
                    ),
                ),
            ],
            options={
                "constraints": [
                    models.UniqueConstraint(
                        fields=("service", "at", "seconds", "endpoint", "method"),
                        name="one_profile_per_window_and_endpoint",
                    )
                ],
            },
        ),
        migrations.CreateModel(
            name="Statement",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("digest", models.CharField(max_length=16)),
                ("text", models.TextField()),
                ("seen_at", models.DateTimeField(default=django.utils.timezone.now)),
                (
                    "service",
                    models.ForeignKey(
                        db_index=False,
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="statements",
                        to="monitoring.service",
                    ),
                ),
            ],
            options={
                "constraints": [models.UniqueConstraint(fields=("service", "digest"), name="one_statement_per_digest")],
            },
        ),
    ]
