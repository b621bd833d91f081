"""Workflows drawn at random, and what they must come to: what a durable run may be made of, as plain data.

Owns the shapes and their meaning, told a second time without the product: `expected` reckons by itself what
`workflow_app` makes of a workflow with real steps. Pure: whatever is drawn follows from the `Random` given, which
hypothesis may control. Every node has a number of its own, `k`, by which its effects are known.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from random import Random
from typing import Any

Node = dict[str, Any]

POOL = ("a", "b", "c")
"""Ids that are used again and again, also side by side."""
LOST = "wf.lost"
"""An event that nobody sends."""
SENT = "wf.sent"
"""What workflows send themselves."""
SHORT, LONG = (10, 40), (350, 800)
"""Milliseconds that are waited for in the process, and such for which a run leaves it."""
PARALLEL = ("gather", "collect", "group", "anyio", "wait")
"""`gather` leaves the others running when one fails, `group` and `anyio` cancel them, `collect` and `wait` wait for
all."""
_LEAVES = {"step": 9, "sleep": 2, "event": 2, "never": 1, "raced": 1, "send": 1, "spin": 1, "hopeless": 0.2}
_TREES = {"seq": 4, "all": 5, "try": 3, "outer": 3, "invoke": 2, "abandon": 0.5}


def grow(random: Random, *, size: int = 14, deadly: bool = False) -> Node:
    """A workflow of about `size` nodes. `deadly`: some of its steps kill their process the first time."""
    return _Grower(random, size, deadly).flow()


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a node stands: how deep, whether somebody catches its failure, whether it has company."""

    depth: int = 4
    caught: bool = False
    parallel: bool = False


class _Grower:
    def __init__(self, random: Random, size: int, deadly: bool) -> None:
        self._random = random
        self._left = size
        self._deadly = deadly
        self._numbers = 0
        self._events = 0
        self._ids_of_their_own = False

    def flow(self, depth: int = 4) -> Node:
        """What one run does: its own ids, its own event names."""
        outside = self._events, self._ids_of_their_own
        self._events, self._ids_of_their_own = 0, self._random.random() < 0.5
        body = self._many("seq", _Place(depth), 2, 4)
        self._events, self._ids_of_their_own = outside
        return body

    def _node(self, place: _Place) -> Node:
        self._left -= 1
        trees = _TREES if place.depth > 0 and self._left > 0 else {}
        weights = {**_LEAVES, **trees}
        if place.caught:
            weights["hopeless"] = 3
        # What raises once changes the order of calls after it: side by side, ids must not depend on that.
        if self._ids_of_their_own or not place.parallel:
            weights["crash"] = 1.5
        if self._deadly:
            weights["deadly"] = 0.4
        return self._of(self._pick(weights), place)

    def _of(self, kind: str, place: _Place) -> Node:
        below = _Place(place.depth - 1, place.caught, place.parallel)
        match kind:
            case "seq":
                return self._many("seq", below, 2, 3)
            case "all":
                how = self._pick(dict.fromkeys(PARALLEL, 1))
                node = self._many("all", _Place(below.depth, below.caught or how == "collect", True), 2, 4)
                return {**node, "how": how}
            case "try":
                body = self._node(_Place(below.depth, True, below.parallel))
                return {"do": "try", "body": body, "or": self._node(below)}
            case "outer":
                place = _Place(below.depth, below.caught)
                inside = self._of("all", place) if self._random.random() < 0.5 else self._node(place)
                return {**self._step("outer"), "body": inside}
            case "invoke":
                function = self._pick({"wf.flow": 3, "wf.narrow": 1})
                return {**self._step("invoke"), "function": function, "flow": self.flow(below.depth)}
            case "abandon":
                return {**self._step("abandon"), "ms": self._span(), "lost": self._number()}
            case "step":
                fails = self._pick({0: 6, 1: 2, 2: 1})
                how = self._pick({"async": 5, "thread": 1})
                lasts = self._pick({0: 4, 15: 2, 120: 2})
                big = self._random.random() < 0.15
                return {
                    **self._step("step"),
                    "fails": fails,
                    "ms": self._span(),
                    "how": how,
                    "lasts": lasts,
                    "big": big,
                }
            case "event" | "raced":
                self._events += 1
                name = f"wf.{self._events}"
                return {
                    **self._step(kind),
                    "name": name,
                    "ms": self._span(),
                    "exact": self._pick({0: 1, 1: 1}),
                }
            case "send":
                return {**self._step("send"), "many": self._pick({1: 3, 3: 1})}
            case "spin":
                return {"do": "spin", "k": self._number(), "turns": self._pick({1: 1, 4: 1})}
            case "crash":
                return {"do": "crash", "k": self._number()}
            case _:  # hopeless, sleep, never, deadly
                return {**self._step(kind), "ms": self._span()}

    def _many(self, kind: str, place: _Place, least: int, most: int) -> Node:
        parts = [self._node(place) for _ in range(self._random.randint(least, most))]
        return {"do": kind, "parts": parts}

    def _step(self, kind: str) -> Node:
        k = self._number()
        id = f"s{k}" if self._ids_of_their_own else self._pick(dict.fromkeys(POOL, 1))
        return {"do": kind, "k": k, "id": id}

    def _number(self) -> int:
        self._numbers += 1
        return self._numbers

    def _span(self) -> int:
        return self._random.choice((*SHORT, *SHORT, *LONG))

    def _pick(self, weights: Mapping[Any, float]) -> Any:
        return self._random.choices(list(weights), list(weights.values()))[0]


def nodes(flow: Node) -> Iterator[Node]:
    """Every node of a workflow, those of the runs it invokes too."""
    yield flow
    for part in (*flow.get("parts", ()), *(flow[key] for key in ("body", "or", "flow") if key in flow)):
        yield from nodes(part)


@dataclass(frozen=True, slots=True)
class Expected:
    """What a node comes to: its `value`, or the numbers of the nodes one of which it `fails` with.

    `must` are the numbers of the nodes that take effect in any run, `may` those that do so or do not: they have
    company that fails.
    """

    value: Any = None
    fails: frozenset[int] = frozenset()
    must: frozenset[int] = frozenset()
    may: frozenset[int] = frozenset()


def expected(node: Node) -> Expected:
    """What an undisturbed run makes of it."""
    k = node.get("k", 0)
    own = frozenset({k})
    match node["do"]:
        case "seq":
            return _in_turn(node["parts"])
        case "all":
            return _side_by_side(node["how"], [expected(part) for part in node["parts"]])
        case "try":
            body = expected(node["body"])
            if not body.fails:
                return body
            then = expected(node["or"])
            value = ["caught", one_of(body.fails), then.value]
            return Expected(value, then.fails, body.must | then.must, body.may | then.may)
        case "outer":
            inside = expected(node["body"])
            must = inside.must if inside.fails else inside.must | own
            return Expected(["outer", k, inside.value], inside.fails, must, inside.may)
        case "invoke":
            child = expected(node["flow"])
            return Expected(["child", k, child.value], child.fails, child.must, child.may)
        case "hopeless":
            return Expected(fails=own)
        case "step" | "deadly" | "send":
            return Expected([node["do"], k], must=own)
        case "spin" | "crash":
            return Expected(None)
        case kind:
            return Expected([kind, k])


def _in_turn(parts: list[Node]) -> Expected:
    values: list[Any] = []
    must: frozenset[int] = frozenset()
    may: frozenset[int] = frozenset()
    for part in map(expected, parts):
        must, may = must | part.must, may | part.may
        if part.fails:
            return Expected(None, part.fails, must, may)
        values.append(part.value)
    return Expected(values, must=must, may=may)


def _side_by_side(how: str, parts: list[Expected]) -> Expected:
    every = frozenset[int]().union(*(part.must | part.may for part in parts))
    failing = [part for part in parts if part.fails]
    waited_for = how in ("collect", "wait") or not failing
    must = frozenset[int]().union(*(part.must for part in (parts if waited_for else failing)))
    if len(failing) > 1 and not waited_for:
        must = frozenset()  # whichever fails first may keep the others from what they would have done
    if failing and how != "collect":
        return Expected(None, frozenset[int]().union(*(part.fails for part in failing)), must, every - must)
    values = [["failed", one_of(part.fails)] if part.fails else part.value for part in parts]
    return Expected(values, must=must, may=every - must)


def one_of(numbers: frozenset[int]) -> Node:
    """In a value: the number of one of these nodes."""
    return {"one of": sorted(numbers)}


def agrees(value: Any, wanted: Any) -> bool:
    """Whether a result is as it was expected."""
    match wanted:
        case {"one of": numbers}:
            return value in numbers
        case list():
            return (
                isinstance(value, list)
                and len(value) == len(wanted)
                and all(agrees(one, other) for one, other in zip(value, wanted, strict=True))
            )
    return bool(value == wanted)
