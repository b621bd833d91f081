"""What a process counts, for /metrics: one object a process, every name spelled once.

Labels are functions, outcomes and causes, never runs or schedules: nothing here grows with either.
"""

from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_LATENESS = (0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5, 30, 60, 300)
_SECONDS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10, 30, 60, 300, 1800, 3600)


@dataclass(frozen=True, slots=True)
class FunctionMetrics:
    """The counters of one function: looked up once, for each look-up costs more than counting."""

    started: Counter
    duration: Histogram
    ended: dict[str, Counter]


class Metrics:
    """Counters of one process, in a registry of its own."""

    def __init__(self) -> None:
        self._functions: dict[str, FunctionMetrics] = {}
        registry = self.registry = CollectorRegistry()
        self.ticks = Counter(
            "jetcron_ticks_turned", "Ticks turned into runs and next ticks", registry=registry
        )
        self.missed = Counter(
            "jetcron_occurrences_missed",
            "Occurrences written to the ledger instead of run",
            registry=registry,
        )
        self.events = Counter("jetcron_events_routed", "Events looked at", registry=registry)
        self.event_runs = Counter("jetcron_event_runs", "Runs started by events", registry=registry)
        self.commands = Counter(
            "jetcron_sync_commands", "Sync commands by outcome", ["command", "outcome"], registry=registry
        )
        self.started = Counter("jetcron_runs_started", "Attempts started", ["function"], registry=registry)
        self.ended = Counter(
            "jetcron_runs_ended", "Attempts ended, by outcome", ["function", "outcome"], registry=registry
        )
        self.lost = Counter(
            "jetcron_runs_lost", "Runs given up because their lease was lost", registry=registry
        )
        self.running = Gauge("jetcron_runs_running", "Runs executing now", registry=registry)
        self.holding = Gauge(
            "jetcron_runs_holding", "Runs waiting for their time in this process", registry=registry
        )
        self.lateness = Histogram(
            "jetcron_run_lateness_seconds",
            "Start of user code minus fire time",
            buckets=_LATENESS,
            registry=registry,
        )
        self.duration = Histogram(
            "jetcron_run_duration_seconds",
            "Duration of an attempt",
            ["function"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.dead = Counter("jetcron_dead_letters", "Dead letters written", ["kind"], registry=registry)
        self.repairs = Counter("jetcron_repairs", "Cycles repaired, by cause", ["cause"], registry=registry)
        self.escalations = Counter(
            "jetcron_cycles_broken_again",
            "Cycles that broke for the third time or more, each within a day of the time before",
            registry=registry,
        )
        self.canary_lateness = Histogram(
            "jetcron_canary_lateness_seconds",
            "Execution of a canary minus its scheduled time",
            buckets=_LATENESS,
            registry=registry,
        )
        self.canary_age = Gauge(
            "jetcron_canary_age_seconds",
            "Time since the last canary that came through, in any process, was due; NaN while it is paused",
            registry=registry,
        )
        self.sweeps = Counter("jetcron_sweeps", "Sweeps finished", registry=registry)
        self.sweep_seconds = Histogram("jetcron_sweep_seconds", "Duration of a sweep", registry=registry)
        self.schedules = Gauge(
            "jetcron_schedules", "Schedules seen by the last sweep", ["group"], registry=registry
        )
        self.handed_back = Counter(
            "jetcron_messages_handed_back",
            "Messages handed back because storage did not answer",
            registry=registry,
        )
        self.unhandled = Counter(
            "jetcron_messages_unhandled",
            "Messages whose handling failed unexpectedly",
            ["error"],
            registry=registry,
        )
        self.clock_offset = Gauge(
            "jetcron_clock_offset_seconds", "This machine's clock minus the server's", registry=registry
        )

    def of(self, function: str) -> FunctionMetrics:
        """The counters of one function."""
        found = self._functions.get(function)
        if found is None:
            found = self._functions[function] = FunctionMetrics(
                self.started.labels(function),
                self.duration.labels(function),
                {
                    outcome: self.ended.labels(function, outcome)
                    for outcome in ("completed", "waiting", "retrying", "failed", "cancelled")
                },
            )
        return found
