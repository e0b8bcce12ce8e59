from django.apps import AppConfig


class ImprovementsConfig(AppConfig):
    name = "improvements"

    def ready(self) -> None:
        from approvals import subjects
        from improvements import deciding

        subjects.register("improvement", decided=deciding.wake, describe=deciding.describe)
