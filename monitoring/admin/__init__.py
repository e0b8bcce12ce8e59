"""What is watched, in the admin. Measurements and alert states are read here; rules, switches and contacts written."""

from monitoring.admin import alerts, measurements, quality, service

__all__ = ["alerts", "measurements", "quality", "service"]
from monitoring.admin import notices

__all__ = ["alerts", "measurements", "notices", "service"]
from monitoring.admin import baselines

__all__ = ["alerts", "baselines", "measurements", "service"]
from monitoring.admin import external

__all__ = ["alerts", "external", "measurements", "service"]
from monitoring.admin import feedback

__all__ = ["alerts", "feedback", "measurements", "service"]
from monitoring.admin import profiles

__all__ = ["alerts", "measurements", "profiles", "service"]
