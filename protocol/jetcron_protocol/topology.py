"""Streams, buckets and consumers as data: what the JetStream API is asked for, nothing else.

Owns the shape of the storage; `jetcron init` applies it, actors check it. Sizes in bytes; ages given in
seconds here and in nanoseconds in the JetStream API. Never talks to a server.
"""

from dataclasses import dataclass
from typing import Any, Literal

from jetcron_protocol.ids import GROUPS
from jetcron_protocol.subjects import Names

MIN_SERVER = (2, 14, 3)
"""Older servers lose schedules written in atomic batches, and drift below a second."""
NANOSECONDS = 1_000_000_000
DAY = 86_400


@dataclass(frozen=True, slots=True)
class Limits:
    """What an operator may choose. Ages and times to live in seconds."""

    replicas: int = 1
    storage: Literal["file", "memory"] = "file"
    events_max_age: int = 7 * DAY
    dead_max_age: int = 30 * DAY
    duplicate_window: int = 120
    ack_wait: float = 30


def streams(names: Names, limits: Limits = Limits()) -> list[dict[str, Any]]:
    """The configuration of every stream, in the JetStream API's own terms."""
    base: dict[str, Any] = {
        "storage": limits.storage,
        "num_replicas": limits.replicas,
        "discard": "old",
        "max_age": 0,
        "max_msgs": -1,
        "max_bytes": -1,
        "max_msg_size": -1,
        "max_consumers": -1,
        "duplicate_window": limits.duplicate_window * NANOSECONDS,
        "allow_direct": True,
    }
    n = names.namespace
    bucket = {
        "retention": "limits",
        "max_msgs_per_subject": 1,
        "allow_rollup_hdrs": True,
        "allow_msg_ttl": True,
        "allow_atomic": True,
    }
    return [
        base
        | {
            "name": names.work,
            "description": "Jetcron: commands, ticks, runs. No limits: they would delete held ticks.",
            "subjects": [f"{n}.sync.>", f"{n}.tick.>", f"{n}.run.>", f"{n}.health.>"],
            "retention": "workqueue",
            "max_msgs_per_subject": -1,
            "allow_msg_schedules": True,
            "allow_msg_ttl": True,
            "allow_rollup_hdrs": True,
            "allow_atomic": True,
        },
        base
        | {
            "name": names.events,
            "description": "Jetcron: events as users publish them.",
            "subjects": [names.event_all],
            "retention": "limits",
            "max_age": limits.events_max_age * NANOSECONDS,
            "max_msgs_per_subject": -1,
            "allow_atomic": True,
        },
        base
        | {
            "name": names.later,
            "description": "Jetcron: future events. No limits: they would delete held events.",
            "subjects": [f"{n}.later.>"],
            "retention": "workqueue",
            "max_msgs_per_subject": -1,
            "allow_msg_schedules": True,
            "allow_msg_ttl": True,
            "allow_rollup_hdrs": True,
            "allow_atomic": True,
        },
        base
        | {
            "name": names.journal,
            "description": "Jetcron: the history of each run. No max age: a run may sleep for a year.",
            "subjects": [names.journal_all, names.wait_all, names.lane_all],
            "retention": "limits",
            "max_msgs_per_subject": -1,
            "allow_msg_ttl": True,
            "allow_rollup_hdrs": True,
            "allow_atomic": True,
        },
        base
        | {
            "name": names.dead,
            "description": "Jetcron: what nobody could decode, and runs that failed for good.",
            "subjects": [names.dead_all],
            "retention": "limits",
            "max_age": limits.dead_max_age * NANOSECONDS,
            "max_msgs_per_subject": 1,
        },
        base
        | {
            "name": names.objects,
            "description": "Jetcron: results too large for a run's history (an object store, ADR-20).",
            "subjects": [names.object_chunks(">"), names.object_metas],
            "retention": "limits",
            "max_msgs_per_subject": -1,
            "allow_msg_ttl": True,
            "allow_rollup_hdrs": True,
        },
        base | bucket | _bucket(names.registry, "Jetcron: apps, functions, schedules."),
        base | bucket | _bucket(names.executors, "Jetcron: executors alive."),
    ]


def _bucket(stream: str, description: str) -> dict[str, Any]:
    return {
        "name": stream,
        "description": description,
        "subjects": [f"$KV.{stream.removeprefix('KV_')}.>"],
        "deny_delete": True,
    }


def consumers(names: Names, limits: Limits = Limits()) -> list[tuple[str, dict[str, Any]]]:
    """Stream and configuration of each actor's durable consumer."""
    return [
        (names.work, _consumer(names.cron_sync, names.sync_all, limits, max_ack_pending=1)),
        (names.work, _consumer(names.cron_tick, names.tick_due_all, limits, max_ack_pending=20_000)),
        (names.work, _consumer(names.health_checker, names.health_due, limits, max_ack_pending=GROUPS)),
        (names.events, _consumer(names.event_router, names.event_all, limits, max_ack_pending=20_000)),
        (
            names.later,
            _consumer(names.event_router_later, names.later_due_all, limits, max_ack_pending=20_000),
        ),
    ]


def run_consumer(
    names: Names,
    function: str,
    concurrency: int,
    limits: Limits = Limits(),
) -> tuple[str, dict[str, Any]]:
    """The durable of one function's runs: its `max_ack_pending` is the concurrency over all executors."""
    config = _consumer(
        names.run_consumer(function), names.run_ready(function), limits, max_ack_pending=concurrency or -1
    )
    return names.work, config


def _consumer(durable: str, filter_subject: str, limits: Limits, *, max_ack_pending: int) -> dict[str, Any]:
    return {
        "durable_name": durable,
        "filter_subject": filter_subject,
        "ack_policy": "explicit",
        "deliver_policy": "all",
        "replay_policy": "instant",
        "ack_wait": int(limits.ack_wait * NANOSECONDS),
        "max_deliver": -1,
        "max_ack_pending": max_ack_pending,
        "max_waiting": 512,
    }
