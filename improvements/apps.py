from django.apps import AppConfig


class ImprovementsConfig(AppConfig):
    name = "improvements"

    def ready(self) -> None:
        from approvals import subjects
        from improvements import approving, deciding, exporting
        from improvements.governance import announcing, emergencies
        from monitoring.exporting import register

        subjects.register(
            "improvement",
            decided=deciding.wake,
            describe=deciding.describe,
            forecast=approving.forecast,
            again=deciding.AGAIN,
        )
        register("rollouts", exporting.rollouts)
        emergencies.watch()
        announcing.watch()
