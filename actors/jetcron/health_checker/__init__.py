"""health-checker: sweeps, what they find and mend, how often it breaks, and the canary."""

from jetcron.health_checker.actor import HealthChecker, arm

__all__ = ["HealthChecker", "arm"]
