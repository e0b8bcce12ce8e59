"""What migrations make of rows that are there."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.db import connection
from django.db.migrations.executor import MigrationExecutor
from django.utils.timezone import now

from monitoring import notifying
from monitoring.models import Contact, Notice, Page
from tests.monitoring.factories import ServiceFactory
from tests.monitoring.notices import contact as contact_of

BEFORE = [("monitoring", "0010_quality")]


@pytest.mark.django_db
def test_pages_of_an_earlier_version_are_told_no_end() -> None:
    """There would be a message to everybody for every page there ever was."""
    at, newest = now(), MigrationExecutor(connection).loader.graph.leaf_nodes("monitoring")
    service, contact = ServiceFactory(), contact_of()
    MigrationExecutor(connection).migrate(BEFORE)
    executor = MigrationExecutor(connection)
    old = executor.loader.project_state(BEFORE).apps.get_model("monitoring", "Notice")
    for key, sent_at in (("told", at), ("open", None)):
        old.objects.create(
            key=key, kind="page", contact_id=contact.pk, service_id=service.pk, severity="critical", title=f"a: {key}",
            message={"body": key}, page_key=key, state="sent" if sent_at else "waiting", sent_at=sent_at,
            created_at=at - timedelta(hours=1), next_at=at,
        )  # fmt: skip
    with connection.cursor() as cursor:
        cursor.execute("SET CONSTRAINTS ALL IMMEDIATE")
    executor.migrate(newest)
    assert {page.key: page.ended_at is None for page in Page.objects.all()} == {"told": False, "open": True}
    assert notifying.decide(at) == []
    assert set(Notice.objects.values_list("page__key", flat=True)) == {"told", "open"}
    assert Contact.objects.count() == 1
