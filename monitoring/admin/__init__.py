"""What is watched, in the admin. Measurements and alert states are read here; only rules and switches are written."""

from monitoring.admin import alerts, measurements, profiles, service

__all__ = ["alerts", "measurements", "profiles", "service"]
