from django.apps import AppConfig


class MonitoringConfig(AppConfig):
    name = "monitoring"

    def ready(self) -> None:
        from approvals import holding, scopes
        from monitoring import (
            budgeting,
            checks,  # noqa: F401 (registers the system checks)
        )
        from monitoring.registry import names_of_services

        holding.register("error budget", budgeting.holds)
        scopes.register(names_of_services)
