"""What is in force: the policy that people put there last or the one that is shipped, and the settings beside it."""

from __future__ import annotations

import logging

from django.conf import settings
from django.db import connection

from approvals import rulebook
from approvals.models.policy import PolicyVersion
from approvals.policy import Terms, Tier

logger = logging.getLogger(__name__)


KEY = "policy"


def stay() -> None:
    """Keep what is in force until the transaction ends: a change of the policy and a start under it have an order."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_xact_lock_shared(hashtextextended(%s, 0))", [KEY])


def change() -> None:
    """Wait for whoever starts something under this policy, and let nobody else propose or change it meanwhile."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", [KEY])


def in_force() -> Terms:
    """The terms that hold now. One query.

    A stored document that a newer RuneRogue no longer takes is not followed: the policy as shipped holds then, which is
    never weaker than the floor, and the log and the page say why.
    """
    version = PolicyVersion.objects.in_force()
    document, number = rulebook.DEFAULT, 0
    if version is not None:
        try:
            document, number = rulebook.parse(version.document), version.number
        except rulebook.PolicyError as error:
            logger.error("%s can't be followed, so the policy as shipped holds: %s", version, error)
    return Terms(
        document,
        number,
        approval_required=Tier(settings.SELF_BUILD_APPROVAL_REQUIRED),
        risk_threshold=Tier(settings.SELF_BUILD_RISK_THRESHOLD),
    )
