"""App: what a declaration becomes, and how each refusal reads."""

import functools
import inspect
import os
import subprocess
import sys
import types
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import FrozenInstanceError, dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, NotRequired, TypedDict
from uuid import UUID

import pytest
from pydantic import BaseModel, field_validator, model_validator

from jetcron import App, CancelOn, CatchUp, ConfigurationError, Context, Cron, PayloadInvalid, Retry
from jetcron.app import FunctionDefinition
from jetcron.cron import CronExpression, parse
from jetcron_protocol.messages import CancelTrigger, CronTrigger, Function

CANCEL_ON = "allowed are CancelOn('order.deleted', match={...}) or a list of them"
DURATION = "allowed are seconds or a timedelta, from"


async def dispatch(ctx: Any) -> str:
    """Send what is due.

    And more.
    """
    return f"dispatched {ctx}"


def declared(handler: Callable[..., Any] = dispatch, **options: Any) -> FunctionDefinition:
    app = App("reports")
    assert app.function(**options)(handler) is handler
    return next(iter(app.functions.values()))


def refusal(handler: Any = dispatch, **options: Any) -> str:
    app = App("reports")
    with pytest.raises(ConfigurationError) as caught:
        app.function(**options)(handler)
    assert not app.functions, "what was refused was registered"
    return str(caught.value)


def module(source: str) -> types.ModuleType:
    """A user's module, whose annotations are strings."""
    made = types.ModuleType("user_module")
    sys.modules["user_module"] = made
    exec(
        "from __future__ import annotations\nfrom jetcron import App\napp = App('reports')\n" + source,
        vars(made),
    )
    return made


# What a declaration becomes.


async def test_a_declared_function_is_still_the_users_own() -> None:
    app = App("reports")

    @app.function(cron="@daily")
    async def greet(name: str) -> str:
        return f"hello {name}"

    assert await greet("you") == "hello you"


def test_by_default() -> None:
    assert declared() == FunctionDefinition(
        id="reports.dispatch",
        name="dispatch",
        handler=dispatch,
        is_async=True,
        retry=Retry(attempts=5),
        description="Send what is due.",
    )


def test_a_definition_is_frozen_and_so_is_the_registry() -> None:
    app = App("reports")
    app.function()(dispatch)
    with pytest.raises(FrozenInstanceError):
        app.functions["reports.dispatch"].timeout = None  # type: ignore[misc]
    with pytest.raises(TypeError):
        app.functions["reports.other"] = declared()  # type: ignore[index]


def test_triggers_take_zone_and_dst_of_the_function_unless_they_have_their_own() -> None:
    definition = declared(
        cron=["0 9 * * *", Cron("0 10 * * *", timezone="Asia/Tokyo"), Cron("0 11 * * *", dst="both")],
        timezone="America/New_York",
        dst="skip",
        on="order.*",
    )
    assert definition.cron == (
        Cron("0 9 * * *", timezone="America/New_York", dst="skip"),
        Cron("0 10 * * *", timezone="Asia/Tokyo", dst="skip"),
        Cron("0 11 * * *", timezone="America/New_York", dst="both"),
    )
    assert definition.on == ("order.*",)
    assert definition.schedule_ids() == ["reports.dispatch", "reports.dispatch:2", "reports.dispatch:3"]


def test_a_prefix_of_the_expression_names_its_zone() -> None:
    (cron,) = declared(cron="CRON_TZ=Asia/Tokyo 0 9 * * *", timezone="America/New_York").cron
    assert cron == Cron("CRON_TZ=Asia/Tokyo 0 9 * * *", timezone="Asia/Tokyo", dst="default")


def test_without_cron_there_is_no_schedule() -> None:
    assert declared(on=["a.b", "c.>", "*"]).schedule_ids() == []


def test_durations_are_kept_as_timedeltas_and_travel_as_milliseconds() -> None:
    definition = declared(
        cron="H 9 * * *",
        timeout=0.25,
        jitter=timedelta(minutes=5),
        keep=3_600,
        concurrency=7,
        retries=2,
        catch_up=CatchUp("all", within=timedelta(hours=2), most=5),
        overlap="queue",
    )
    assert definition.timeout == timedelta(milliseconds=250)
    assert definition.jitter == timedelta(minutes=5)
    assert definition.keep == timedelta(hours=1)
    assert definition.retry == Retry(attempts=3)
    assert definition.wire() == Function(
        id="reports.dispatch",
        cron=[CronTrigger(expression="H 9 * * *", timezone="UTC", dst="default")],
        concurrency=7,
        jitter=300_000,
        catch_up="all",
        catch_up_within=7_200_000,
        catch_up_most=5,
        overlap="queue",
        attempts=3,
        timeout=250,
        keep=3_600_000,
        description="Send what is due.",
    )


def test_the_wire_of_what_is_not_given() -> None:
    assert declared().wire() == Function(id="reports.dispatch", description="Send what is due.")


def test_retries_come_after_the_first_attempt() -> None:
    assert declared(retries=0).retry.attempts == 1
    assert declared(retries=4).retry.attempts == 5
    assert declared(retry=Retry(attempts=2, waits=(1,))).retry == Retry(attempts=2, waits=(1,))


def test_the_signature_shows_the_default_number_of_retries() -> None:
    assert inspect.signature(App.function).parameters["retries"].default == 4


def test_an_id_of_ones_own() -> None:
    definition = declared(id="send.it now")
    assert (definition.id, definition.name) == ("reports.send.it now", "send.it now")


class Callable_:
    """Of the class."""

    async def __call__(self, ctx: Any) -> None:
        """Of the call."""


class Service:
    async def work(self, ctx: Any, data: dict[str, int] | None = None) -> None:
        """Of the method."""


@pytest.mark.parametrize(
    ("handler", "is_async", "takes_data", "description"),
    [
        (dispatch, True, False, "Send what is due."),
        (lambda ctx: None, False, False, ""),
        (lambda ctx, data: None, False, True, ""),
        (functools.partial(dispatch), True, False, "Send what is due."),
        (Callable_(), True, False, "Of the call."),
        (Service().work, True, True, "Of the method."),
        (lambda ctx, data=None, more=1: None, False, True, ""),
        (lambda ctx, *, more=1: None, False, False, ""),
    ],
)
def test_whatever_can_be_called_with_ctx_may_be_declared(
    handler: Callable[..., Any], is_async: bool, takes_data: bool, description: str
) -> None:
    definition = declared(handler, id="f")
    assert definition.is_async is is_async
    assert (definition.payload is not None) is takes_data
    assert definition.description == description


# The hash.


def hashed(*order: str, app: str = "reports", **options: Any) -> str:
    made = App(app)
    for name in order:
        made.function(id=name, **(options if name == "a" else {}))(dispatch)
    return made.hash


def test_the_hash_does_not_know_the_order_of_declaration() -> None:
    assert hashed("a", "b", "c") == hashed("c", "a", "b")


def test_the_hash_knows_every_function_and_option() -> None:
    hashes = [
        hashed("a"),
        hashed("b"),
        hashed("a", "b"),
        hashed("a", app="other"),
        hashed("a", cron="@daily"),
        hashed("a", cron="@daily", timezone="Asia/Tokyo"),
        hashed("a", cron="@daily", dst="skip"),
        hashed("a", cron="@daily", catch_up="skip"),
        hashed("a", cron="@daily", catch_up="all"),
        hashed("a", cron="@daily", catch_up=CatchUp("all", within=60)),
        hashed("a", cron="@daily", catch_up=CatchUp("all", most=60)),
        hashed("a", cron="@daily", overlap="skip"),
        hashed("a", cron="@daily", jitter=1),
        hashed("a", on="x"),
        hashed("a", retries=1),
        hashed("a", timeout=1),
        hashed("a", concurrency=1),
        hashed("a", keep=3_600),
    ]
    assert len(set(hashes)) == len(hashes)


def test_the_hash_is_the_same_in_every_process() -> None:
    program = (
        "from jetcron import App; app = App('reports')\n"
        "app.function(id='a', cron='@daily', on=['x', 'y'])(lambda ctx: None); print(app.hash)"
    )
    elsewhere = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONHASHSEED": "7"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert elsewhere.stdout.strip() == hashed("a", cron="@daily", on=["x", "y"])


def test_a_description_is_not_in_the_hash() -> None:
    one, other = App("reports"), App("reports")
    one.function(id="f")(dispatch)
    other.function(id="f")(lambda ctx: None)
    assert one.wire() != other.wire()
    assert one.hash == other.hash


# Refusals.


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"cron": "61 * * * *"}, "cron='61 * * * *': the 1st field (minute) is '61'; allowed are 0-59"),
        (
            {"cron": ["0 9 * * *", "0 25 * * *"]},
            "cron='0 25 * * *': the 2nd field (hour) is '25'; allowed are 0-23",
        ),
        (
            {"cron": 5},
            "cron=5; allowed are a string such as '0 9 * * *', a Cron(...), or a list of them",
        ),
        (
            {"cron": []},
            "cron=[]; allowed are a string such as '0 9 * * *', a Cron(...), or a list of them",
        ),
        (
            {"cron": [None]},
            "cron=None: a cron expression must be a string, not NoneType; such as '0 9 * * MON-FRI'",
        ),
        (
            {"cron": ["@daily", Cron("@daily", timezone="UTC")]},
            "cron='@daily' is in the list twice; allowed is once",
        ),
        (
            {"cron": "@daily", "timezone": "Europe/Pragu"},
            "timezone='Europe/Pragu': the time zone 'Europe/Pragu' is not one of the IANA names, "
            "such as 'America/New_York'; did you mean 'Europe/Prague'?",
        ),
        (
            {"timezone": None},
            "timezone=None; allowed are IANA names, such as 'UTC' or 'Europe/Prague'",
        ),
        ({"timezone": "Asia/Tokyo"}, "timezone='Asia/Tokyo' without cron= has no effect; leave it out"),
        ({"dst": "skip"}, "dst='skip' without cron= has no effect; leave it out"),
        ({"catch_up": "all"}, "catch_up='all' without cron= has no effect; leave it out"),
        ({"jitter": 5}, "jitter=5 without cron= has no effect; leave it out"),
        ({"dst": "never"}, "dst='never'; allowed are 'default', 'skip', 'both'"),
        (
            {"catch_up": "lates"},
            "catch_up='lates'; allowed are 'latest', 'all', 'skip'; did you mean 'latest'?",
        ),
        (
            {"on": "order created"},
            "on='order created': the event name 'order created' has 'order created'; allowed are printable "
            "characters but space, '*' and '>' ('*' and a last '>' stand alone as wildcards)",
        ),
        ({"on": ["a", 5]}, "on=5: an event name must be a string, not int"),
        (
            {"on": ()},
            "on=(); allowed are an event name or pattern such as 'order.*', or a list of them",
        ),
        (
            {"on": {"a"}},
            "on={'a'}; allowed are an event name or pattern such as 'order.*', or a list of them",
        ),
        ({"on": ["a", "b", "a"]}, "on='a' is in the list twice; allowed is once"),
        ({"retries": -1}, "retries=-1; allowed are whole numbers from 0 to 999"),
        ({"retries": 1_000}, "retries=1000; allowed are whole numbers from 0 to 999"),
        ({"retries": None}, "retries=None; allowed are whole numbers from 0 to 999"),
        ({"retry": 3}, "retry=3; allowed is a Retry(attempts, waits, jitter)"),
        (
            {"retry": Retry(), "retries": 4},
            "retries=4 and retry= are both given; allowed is one of them, "
            "for Retry(attempts=...) says it too",
        ),
        ({"timeout": 0}, f"timeout=0; {DURATION} 0.001 s to 366 days"),
        ({"timeout": "5m"}, f"timeout='5m'; {DURATION} 0.001 s to 366 days"),
        ({"timeout": True}, f"timeout=True; {DURATION} 0.001 s to 366 days"),
        ({"concurrency": 0}, "concurrency=0; allowed are whole numbers from 1 to 1000000"),
        ({"concurrency": 1.0}, "concurrency=1.0; allowed are whole numbers from 1 to 1000000"),
        ({"cron": "@daily", "jitter": -1}, f"jitter=-1; {DURATION} 0 s to 1 day"),
        ({"keep": 3_599}, f"keep=3599; {DURATION} 1 hour to 3660 days"),
        ({"overlap": "skip"}, "overlap='skip' without cron= has no effect; leave it out"),
        (
            {"overlap": "que"},
            "overlap='que'; allowed are 'allow', 'skip', 'queue', 'cancel_running'; did you mean 'queue'?",
        ),
        (
            {"cron": "@daily", "overlap": "cancel_running", "concurrency": 1},
            "overlap='cancel_running' with concurrency=1: no executor takes a run while another one goes on, so "
            "nothing would be cancelled; allowed is a concurrency of 2 or more, or none",
        ),
        (
            {"catch_up": CatchUp("all", within=60)},
            "catch_up=CatchUp(policy='all', within=datetime.timedelta(seconds=60), most=None) without cron= has no "
            "effect; leave it out",
        ),
        ({"deadline": 0}, f"deadline=0; {DURATION} 0.001 s to 3660 days"),
        ({"start_timeout": "1h"}, f"start_timeout='1h'; {DURATION} 0.001 s to 366 days"),
        ({"cancel_on": []}, f"cancel_on=[]; {CANCEL_ON}"),
        ({"cancel_on": "order.deleted"}, f"cancel_on='order.deleted'; {CANCEL_ON}"),
        ({"on_failure": "f"}, "on_failure='f'; allowed is a function that takes (ctx) or (ctx, failed)"),
        ({"retrys": 3}, "'retrys' is not an option of a function; did you mean 'retry'?"),
        ({"crom": "@daily"}, "'crom' is not an option of a function; did you mean 'cron'?"),
        ({"priority": 3}, "'priority' is not an option of a function"),
    ],
)
def test_an_option_that_cannot_be(options: dict[str, Any], text: str) -> None:
    assert refusal(**options) == f"reports.dispatch: {text}"


def test_durable_options_are_registered() -> None:
    cancel = CancelOn("order.deleted", match={"order.id": "id"})

    async def mourn(ctx: Context, failed: dict[str, Any]) -> None: ...

    definition = declared(
        deadline=60, start_timeout=timedelta(hours=1), cancel_on=[cancel], on_failure=mourn, retries=0
    )
    assert (definition.deadline, definition.start_timeout) == (timedelta(minutes=1), timedelta(hours=1))
    assert definition.on_failure == "reports.dispatch:on_failure"
    wire = definition.wire()
    assert (wire.deadline, wire.start_timeout) == (60_000, 3_600_000)
    assert wire.cancel_on == [CancelTrigger(event="order.deleted", match={"order.id": "id"})]


def test_a_handler_of_failures_is_a_function_of_its_own() -> None:
    app = App("reports")

    def mourn(ctx: Context) -> None: ...

    @app.function(on_failure=mourn, keep=7200)
    async def dispatch(ctx: Context) -> None: ...

    handler = app.functions["reports.dispatch:on_failure"]
    assert (handler.handler, handler.is_async, handler.on, handler.cron) == (mourn, False, (), ())
    assert handler.keep == timedelta(hours=2)


@pytest.mark.parametrize(
    ("event", "match", "text"),
    [
        ("order.*", None, "the event name 'order.*' has '*'"),
        ("order.deleted", {}, "match={}; allowed is a map"),
        ("order.deleted", ["id"], "match=['id']; allowed is a map"),
        ("order.deleted", {"order..id": "id"}, "match has the path 'order..id'"),
        ("order.deleted", {"id": 7}, "match has the path 7"),
    ],
)
def test_a_cancelling_event_that_cannot_be(event: str, match: Any, text: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        CancelOn(event, match)
    assert str(raised.value).startswith(f"CancelOn({event!r}): {text}")


def test_h_is_spread_by_the_id_of_its_own_schedule(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[str] = []

    def spy(expression: str, **options: Any) -> CronExpression:
        seeds.append(options["seed"])
        return parse(expression, **options)

    monkeypatch.setattr("jetcron.options.parse", spy)
    declared(cron=["H * * * *", "H 9 * * *"])
    assert [seed for seed in seeds if seed] == ["reports.dispatch", "reports.dispatch:2"]


@pytest.mark.parametrize(
    ("id", "text"),
    [
        ("", "reports.: id is empty; give at least one character"),
        ("a:b", "reports.a:b: id='a:b' has ':', which numbers a function's schedules; leave it out"),
        ("a\nb", "reports.a\nb: id 'a\\nb' has characters that do not print; leave them out"),
        (5, "reports.5: id must be a string, not int"),
    ],
)
def test_an_id_that_cannot_be(id: Any, text: str) -> None:
    assert refusal(id=id) == text


def test_an_id_too_long_for_a_consumer() -> None:
    assert "escaped it takes 614 characters of the 255 a consumer's name may have" in refusal(id="é" * 100)


def test_an_app_that_cannot_be() -> None:
    for name in ("", "a.b", "a\n", 5):
        with pytest.raises(ConfigurationError) as caught:
            App(name)  # type: ignore[arg-type]
        assert str(caught.value).startswith(f"App({name!r}): the app name ")


def test_an_id_taken() -> None:
    app = App("reports")
    app.function()(dispatch)
    with pytest.raises(ConfigurationError) as caught:
        app.function(id="dispatch")(lambda ctx: None)
    line = inspect.getsourcelines(dispatch)[1]
    assert str(caught.value) == (
        f"reports.dispatch: declared already, by {__file__}:{line}; "
        "give one of them another name with id='...'"
    )
    assert app.functions["reports.dispatch"].handler is dispatch


def test_forgotten_parentheses() -> None:
    with pytest.raises(
        ConfigurationError, match=r"reports: @app.function takes no positional arguments; write"
    ):
        App("reports").function(dispatch)  # type: ignore[arg-type]


def generator(ctx: Any) -> Iterator[int]:
    yield 1


async def async_generator(ctx: Any) -> AsyncIterator[int]:
    yield 1


@pytest.mark.parametrize(
    ("handler", "text"),
    [
        (generator, "it is a generator, for it has `yield`; allowed are `def` and `async def` that return"),
        (
            async_generator,
            "it is a generator, for it has `yield`; allowed are `def` and `async def` that return",
        ),
        (lambda: None, "it takes (); allowed are (ctx) or (ctx, data)"),
        (lambda a, b, c: None, "it takes (a, b, c); allowed are (ctx) or (ctx, data)"),
        (lambda ctx, *, more: None, "it takes (ctx, *, more); allowed are (ctx) or (ctx, data)"),
        (lambda *args: None, "it takes (*args); allowed are (ctx) or (ctx, data)"),
        (
            Service.work,
            "its first parameter is 'self': a method cannot be declared inside its class; "
            "allowed are (ctx) or (ctx, data)",
        ),
        (Service, f"{Service!r} is not a function"),
        ("dispatch", "'dispatch' is not a function"),
    ],
)
def test_a_handler_that_cannot_be(handler: Any, text: str) -> None:
    assert refusal(handler, id="f") == f"reports.f: {text}"


def test_what_has_no_name_needs_an_id() -> None:
    assert refusal(lambda ctx: None) == "reports: a lambda has no name; give it one with id='...'"
    assert refusal(functools.partial(dispatch)) == "reports: a partial has no name; give it one with id='...'"


# The data.


class Address(TypedDict):
    city: str
    zip: NotRequired[str]


class Person(TypedDict, total=False):
    name: str
    addresses: list[Address]


@dataclass
class Point:
    x: int
    y: int = 0


class Order(BaseModel):
    id: UUID
    total: Decimal
    at: datetime

    @field_validator("total")
    @classmethod
    def positive(cls, value: Decimal) -> Decimal:
        if value <= 0:
            raise ValueError("must be above 0")
        return value


def reading(annotation: Any, data: object, **options: Any) -> object:
    def handler(ctx: Any, data: Any) -> None: ...

    handler.__annotations__["data"] = annotation
    payload = declared(handler, **options).payload
    assert payload is not None
    return payload.read(data)


ORDER = {"id": "4f1c3b9e-0000-4000-8000-000000000001", "total": "12.50", "at": "2030-01-01T00:00:00+00:00"}


@pytest.mark.parametrize(
    ("annotation", "data", "read"),
    [
        (Point, {"x": 1}, Point(1, 0)),
        (Address, {"city": "Brno"}, {"city": "Brno"}),
        (
            Person,
            {"addresses": [{"city": "Brno", "zip": "602 00"}]},
            {"addresses": [{"city": "Brno", "zip": "602 00"}]},
        ),
        (Person | None, None, None),
        (list[Point], [{"x": 1}, {"x": 2}], [Point(1), Point(2)]),
        (dict[str, int], {"a": 1}, {"a": 1}),
        (dict, {"a": object}, {"a": object}),
        (Any, {"a": 1}, {"a": 1}),
        (object, 5, 5),
        (inspect.Parameter.empty, b"raw", b"raw"),
        (
            Order,
            ORDER,
            Order(id=UUID(ORDER["id"]), total=Decimal("12.50"), at=datetime(2030, 1, 1, tzinfo=UTC)),
        ),
    ],
)
def test_data_is_read_as_the_annotated_type(annotation: Any, data: object, read: object) -> None:
    found = reading(annotation, data)
    assert found == read
    assert type(found) is type(read)


@pytest.mark.parametrize(
    ("annotation", "data", "text"),
    [
        (Point, {"y": "a"}, "the data does not fit Point: x: Field required; "
         "y: Input should be a valid integer, unable to parse string as an integer"),
        (Address, {"zip": "1"}, "the data does not fit Address: city: Field required"),
        (Person, {"addresses": [{}]}, "the data does not fit Person: addresses.0.city: Field required"),
        (dict[str, int], [], "the data does not fit dict[str, int]: Input should be a valid dictionary"),
        (Order, {**ORDER, "total": "0"}, "the data does not fit Order: total: Value error, must be above 0"),
        (Point, None, "there is no data, and 'data' needs Point"),
    ],
)  # fmt: skip
def test_data_that_does_not_fit_names_the_fields(annotation: Any, data: object, text: str) -> None:
    with pytest.raises(PayloadInvalid) as caught:
        reading(annotation, data)
    assert str(caught.value) == f"reports.handler: {text}"
    assert caught.value.problems


def test_of_many_problems_ten_are_told_and_all_are_kept() -> None:
    with pytest.raises(PayloadInvalid) as exactly_ten:
        reading(list[int], ["x"] * 10)
    assert str(exactly_ten.value).count("unable to parse") == 10
    assert "more)" not in str(exactly_ten.value)
    with pytest.raises(PayloadInvalid) as caught:
        reading(list[int], ["x"] * 12)
    assert len(caught.value.problems) == 12
    assert str(caught.value).count("unable to parse") == 10
    assert str(caught.value).endswith(" (and 2 more)")


def test_values_are_not_repeated_for_they_may_be_private() -> None:
    with pytest.raises(PayloadInvalid) as caught:
        reading(Point, {"x": "secret"})
    assert "secret" not in str(caught.value)


def test_a_run_started_by_cron_has_no_data() -> None:
    assert reading(Point | None, None, cron="@daily") is None
    assert reading(Any, None, cron="@daily") is None
    assert reading(inspect.Parameter.empty, None, cron="@daily") is None

    def with_default(ctx: Any, point: Point = Point(7)) -> None: ...  # noqa: B008

    payload = declared(with_default, cron="@daily", on="moved").payload
    assert payload is not None
    assert payload.read(None) == Point(7)
    assert payload.read({"x": 1}) == Point(1)


def test_cron_and_a_parameter_that_needs_data() -> None:
    def handler(ctx: Any, point: Point) -> None: ...

    assert refusal(handler, cron="@daily") == (
        "reports.handler: a run started by cron has no data, but 'point' is annotated with Point; "
        "allowed are a default (= None) or a type that takes None (Point | None)"
    )


def test_a_validator_that_stumbles_over_none_is_no_crash() -> None:
    class Careless(BaseModel):
        x: int

        @model_validator(mode="before")
        @classmethod
        def look(cls, data: Any) -> Any:
            return {"x": data["x"]}

    def handler(ctx: Any, data: Careless) -> None: ...

    assert "a run started by cron has no data" in refusal(handler, cron="@daily")


def test_a_type_that_cannot_be_validated() -> None:
    class Strange:
        pass

    def handler(ctx: Any, strange: Strange) -> None: ...

    assert refusal(handler).startswith(
        "reports.handler: the annotation Strange of 'strange' cannot be validated; "
        "allowed are a pydantic model, a dataclass, a TypedDict, dict, Any and what pydantic knows ("
    )


def test_annotations_as_strings() -> None:
    user = module(
        """
from typing import TYPE_CHECKING, NotRequired, TypedDict
if TYPE_CHECKING:
    from nowhere import Context

class Earlier(TypedDict):
    a: int
    b: NotRequired[int]

@app.function()
def early(ctx: Context, data: Earlier): ...

@app.function()
def late(ctx: Context, data: Later | None): ...

@app.function()
def anything(ctx: Context, data: Any): ...

class Later(TypedDict):
    a: int
"""
    )
    read = {name: definition.payload.read for name, definition in user.app.functions.items()}
    user.app.check()
    assert read["reports.early"]({"a": "1"}) == {"a": 1}
    assert read["reports.late"]({"a": "1"}) == {"a": 1}
    assert read["reports.late"](None) is None
    assert read["reports.anything"]("as it came") == "as it came"
    with pytest.raises(PayloadInvalid, match=r"does not fit Later \| None: a: Field required$"):
        read["reports.late"]({})


def test_a_string_naming_a_local_class_is_understood() -> None:
    user = module(
        """
from dataclasses import dataclass

def make():
    @dataclass
    class Local:
        a: int

    @app.function()
    def local(ctx, data: Local): ...
"""
    )
    user.make()
    read = user.app.functions["reports.local"].payload.read
    assert read({"a": 1}).a == 1


def test_a_type_that_never_comes_is_told_at_check_and_at_use() -> None:
    user = module("@app.function()\ndef never(ctx, data: Never_): ...\n")
    text = (
        "reports.never: the annotation Never_ of 'data' cannot be resolved (name 'Never_' is not defined); "
        "define or import the type in the function's module, outside `if TYPE_CHECKING`"
    )
    for use in (user.app.check, lambda: user.app.functions["reports.never"].payload.read({})):
        with pytest.raises(ConfigurationError) as caught:
            use()
        assert str(caught.value) == text


def test_a_later_type_that_needs_data_is_refused_for_cron_at_check() -> None:
    user = module("@app.function(cron='@daily')\ndef late(ctx, data: Later): ...\n")
    vars(user)["Later"] = int
    with pytest.raises(
        ConfigurationError, match="a run started by cron has no data, but 'data' is annotated"
    ):
        user.app.check()


def test_a_model_completed_later() -> None:
    user = module(
        """
from pydantic import BaseModel

class Outer(BaseModel):
    inner: Inner

@app.function()
def outer(ctx, data: Outer): ...

class Inner(BaseModel):
    a: int
"""
    )
    user.app.check()
    assert user.app.functions["reports.outer"].payload.read({"inner": {"a": 1}}).inner.a == 1


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="pydantic takes the standard library's there")
def test_a_typed_dict_that_contains_itself_is_refused_before_312() -> None:
    user = module("from typing import TypedDict\nclass Tree(TypedDict):\n    trees: list[Tree]\n")

    def handler(ctx: Any, data: Any) -> None: ...

    handler.__annotations__["data"] = user.Tree
    assert "Tree contains itself; declare it with typing_extensions.TypedDict" in refusal(handler)
