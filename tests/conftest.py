"""What every test shares."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# No test is timed: on a busy machine hypothesis would take slowness for a fault.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")
