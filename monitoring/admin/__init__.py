"""What is watched, in the admin. Measurements and alert states are read here; rules, switches and contacts written."""

from monitoring.admin import alerts, measurements, notices, service

__all__ = ["alerts", "measurements", "notices", "service"]
