"""The storage's shape: create and update it, check it, consumers, purges.

`jetcron init` applies the topology; actors only check it. Never touches a message but to purge it.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from jetcron.bus.publish import Publisher
from jetcron.errors import ApiError, NotFound, TopologyMismatch, TopologyMissing, TryAgain
from jetcron_protocol import topology

FAR_FUTURE = "9999-12-31T23:59:59Z"
_ESSENTIAL = ("subjects", "retention", "max_age", "max_msgs", "max_bytes", "max_msgs_per_subject")
_ABILITIES = ("allow_msg_schedules", "allow_msg_ttl", "allow_atomic", "allow_direct", "allow_rollup_hdrs")


@dataclass(frozen=True, slots=True)
class Change:
    """What `apply_topology` did: ``created``, ``updated`` or ``unchanged``."""

    kind: str
    name: str
    action: str
    fields: tuple[str, ...] = ()


class Admin(Publisher):
    """Streams and consumers."""

    async def apply_topology(self) -> list[Change]:
        """Create what is missing, update what differs; `TopologyMismatch` for what cannot be changed in place."""
        changes = []
        for wanted in topology.streams(self.names, self.settings.limits):
            changes.append(await self._apply_stream(wanted))
        for stream, consumer in topology.consumers(self.names, self.settings.limits):
            changes.append(await self.apply_consumer(stream, consumer))
        return changes

    async def _apply_stream(self, wanted: dict[str, Any]) -> Change:
        name = wanted["name"]
        try:
            found = (await self.api(f"STREAM.INFO.{name}"))["config"]
        except TopologyMissing:
            await self._ask(f"STREAM.CREATE.{name}", wanted, f"stream {name}")
            return Change("stream", name, "created")
        fields = tuple(differences(wanted, found))
        if not fields:
            return Change("stream", name, "unchanged")
        await self._ask(f"STREAM.UPDATE.{name}", found | wanted, f"stream {name}", fields, found)
        return Change("stream", name, "updated", fields)

    async def _ask(
        self,
        call: str,
        body: dict[str, Any],
        what: str,
        fields: tuple[str, ...] = (),
        found: dict[str, Any] | None = None,
    ) -> None:
        try:
            await self.api(call, body, timeout=30)
        except TryAgain:
            raise
        except ApiError as error:
            shown = "; ".join(
                f"{field} is {(found or {}).get(field)!r}, wanted {body[field]!r}" for field in fields
            )
            raise TopologyMismatch(
                f"{what} has another shape and the server will not change it: {error}"
                + (f" ({shown})" if shown else "")
            ) from None

    async def apply_consumer(self, stream: str, config: dict[str, Any]) -> Change:
        """Create a durable consumer or bring it up to date in place."""
        durable = config["durable_name"]
        fields: tuple[str, ...] = ()
        try:
            found = (await self.api(f"CONSUMER.INFO.{stream}.{durable}"))["config"]
        except NotFound:
            action = "created"
        else:
            fields = tuple(differences(config, found))
            if not fields:
                return Change("consumer", durable, "unchanged")
            action = "updated"
            if "pause_until" in found:
                config = config | {"pause_until": found["pause_until"]}
        await self._ask(
            f"CONSUMER.CREATE.{stream}.{durable}.{config['filter_subject']}",
            {"stream_name": stream, "config": config | {"name": durable}},
            f"consumer {durable}",
            fields,
        )
        return Change("consumer", durable, action, fields)

    async def delete_consumer(self, stream: str, durable: str) -> None:
        """Delete a consumer; nothing happens when there is none."""
        with contextlib.suppress(NotFound):
            await self.api(f"CONSUMER.DELETE.{stream}.{durable}")

    async def pause_consumer(self, stream: str, durable: str, *, paused: bool) -> None:
        """Stop or resume deliveries to everybody (server ADR-42)."""
        body = {"pause_until": FAR_FUTURE} if paused else {}
        await self.api(f"CONSUMER.PAUSE.{stream}.{durable}", body)

    async def consumer(self, stream: str, durable: str) -> dict[str, Any]:
        """CONSUMER.INFO; raises `NotFound`."""
        info: dict[str, Any] = await self.api(f"CONSUMER.INFO.{stream}.{durable}")
        return info

    async def purge(self, stream: str, filter: str) -> int:
        """Remove every message whose subject matches; how many there were."""
        answer = await self.api(f"STREAM.PURGE.{stream}", {"filter": filter}, timeout=30)
        return int(answer.get("purged", 0))

    async def delete(self, stream: str, sequence: int) -> None:
        """Remove one message; nothing happens when it is gone."""
        with contextlib.suppress(NotFound):
            await self.api(f"STREAM.MSG.DELETE.{stream}", {"seq": sequence, "no_erase": True})

    async def check_topology(self) -> None:
        """Raises `TopologyMissing` or `TopologyMismatch`, naming what is wrong and `jetcron init`."""
        for wanted in topology.streams(self.names, self.settings.limits):
            name = wanted["name"]
            try:
                found = (await self.api(f"STREAM.INFO.{name}"))["config"]
            except TopologyMissing:
                raise TopologyMissing(f"the stream {name}") from None
            for field in differences(wanted, found, (*_ESSENTIAL, *_ABILITIES)):
                raise TopologyMismatch(
                    f"the stream {name} has {field}={found.get(field)!r} where Jetcron needs {wanted[field]!r}; "
                    "run 'jetcron init'"
                )
        for stream, consumer in topology.consumers(self.names, self.settings.limits):
            try:
                await self.consumer(stream, consumer["durable_name"])
            except NotFound:
                raise TopologyMissing(f"the consumer {consumer['durable_name']} of {stream}") from None


def differences(
    wanted: dict[str, Any], found: dict[str, Any], fields: tuple[str, ...] | None = None
) -> Iterator[str]:
    """The fields in which `found` is not as `wanted`. The server leaves out what is zero, empty or false."""
    for field in fields if fields is not None else tuple(wanted):
        if field not in wanted:
            continue
        if (wanted[field] or None) != (found.get(field) or None):
            yield field
