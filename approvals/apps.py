from django.apps import AppConfig
from django.db.models.signals import post_migrate


class ApprovalsConfig(AppConfig):
    name = "approvals"

    def ready(self) -> None:
        from approvals import administering, occasion, policies, roles, signing_in, subjects

        occasion.follow_tasks()
        administering.watch()
        subjects.register(policies.KIND, decided=policies.decided, describe=policies.describe, again=policies.AGAIN)
        post_migrate.connect(roles.prepare, sender=self, dispatch_uid="approvals.roles.prepare")
        signing_in.connect()
