from django.apps import AppConfig


class MonitoringConfig(AppConfig):
    name = "monitoring"

    def ready(self) -> None:
        from approvals import scopes
        from monitoring import checks  # noqa: F401 (registers the system checks)
        from monitoring.registry import names_of_services

        scopes.register(names_of_services)
