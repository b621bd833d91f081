"""Settings: the environment read once, and how each refusal reads."""

import os
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from jetcron.errors import ConfigurationError
from jetcron.settings import Settings, variable_of
from jetcron_protocol.subjects import Names
from jetcron_protocol.topology import Limits


@pytest.fixture(autouse=True)
def _nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in list(os.environ):
        if variable.upper().startswith(("JETCRON_", "NATS_")):
            monkeypatch.delenv(variable)


def refusal(**arguments: Any) -> str:
    with pytest.raises(ConfigurationError) as caught:
        Settings.load(**arguments)
    return str(caught.value)


def test_by_default() -> None:
    settings = Settings.load()
    assert settings.model_dump() == {
        "nats_url": "nats://127.0.0.1:4222",
        "nats_creds": None,
        "nats_user": None,
        "nats_password": None,
        "nats_token": None,
        "nats_nkey_seed": None,
        "nats_ca": None,
        "namespace": "jetcron",
        "replicas": 1,
        "storage": "file",
        "events_max_age": 604_800,
        "dead_max_age": 2_592_000,
        "duplicate_window": 120,
        "ack_wait": 30.0,
        "lead": 2.0,
        "settle": 0.5,
        "late_after": 60.0,
        "slots": 1_000,
        "holding": 10_000,
        "executor_beat": 3.0,
        "executor_ttl": 30.0,
        "lost_attempts": 3,
        "short_wait": 5.0,
        "max_steps": 1_000,
        "max_inline": 512 * 1024,
        "max_result": 64 * 1024**2,
        "max_journal": 4 * 1024**2,
        "keep_completed": 86_400,
        "keep_failed": 604_800,
        "rolled_back_within": 600.0,
        "grace": 30.0,
        "sweep_every": 60,
        "repair_grace": 10.0,
        "canary_every": 15,
        "log_format": "auto",
        "log_level": "info",
    }


def test_the_defaults_are_those_of_the_topology() -> None:
    settings = Settings.load()
    assert settings.limits == Limits()
    assert settings.names == Names()


def test_every_default_is_allowed() -> None:
    settings = Settings.load()
    for name, value in settings.model_dump(exclude_none=True).items():
        assert getattr(Settings.load(**{name: value}), name) == value


def test_the_environment_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable, value in {
        "NATS_URL": "nats://a:4222, tls://b",
        "NATS_USER": "u",
        "NATS_PASSWORD": "p",
        "JETCRON_NAMESPACE": "prod",
        "JETCRON_REPLICAS": "3",
        "JETCRON_STORAGE": "MEMORY",
        "JETCRON_EVENTS_MAX_AGE": "3600",
        "JETCRON_LEAD": "1.5",
        "JETCRON_LOG_LEVEL": "DEBUG",
    }.items():
        monkeypatch.setenv(variable, value)
    settings = Settings.load()
    assert settings.servers == ["nats://a:4222", "tls://b"]
    assert settings.nats_password is not None
    assert (settings.nats_user, settings.nats_password.get_secret_value()) == ("u", "p")
    assert settings.names.work == "PROD_WORK"
    assert settings.limits == Limits(replicas=3, storage="memory", events_max_age=3_600)
    assert settings.lead_ms == 1_500
    assert settings.log_level == "debug"


def test_arguments_come_before_the_environment_and_none_is_not_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JETCRON_NAMESPACE", "prod")
    monkeypatch.setenv("NATS_URL", "nats://b:1")
    settings = Settings.load(namespace="test", nats_url="nats://a:1", replicas=None)
    assert (settings.namespace, settings.nats_url, settings.replicas) == ("test", "nats://a:1", 1)


def test_an_empty_variable_is_as_good_as_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NATS_CREDS", "")
    monkeypatch.setenv("JETCRON_REPLICAS", "")
    assert (Settings.load().nats_creds, Settings.load().replicas) == (None, 1)


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Settings.load().replicas = 3  # type: ignore[misc]


def test_milliseconds() -> None:
    settings = Settings.load(
        lead=0.75, settle=0.3, late_after=90.5, executor_ttl=12, executor_beat=1.5, rolled_back_within=0
    )
    assert (settings.lead_ms, settings.settle_ms, settings.late_after_ms) == (750, 300, 90_500)
    assert (settings.executor_ttl_ms, settings.executor_beat_ms) == (12_000, 1_500)
    assert (settings.rolled_back_within_ms, settings.sweep_every_ms, settings.repair_grace_ms) == (
        0,
        60_000,
        10_000,
    )
    assert (settings.keep_completed_ms, settings.keep_failed_ms) == (86_400_000, 604_800_000)


@pytest.mark.parametrize(
    ("variable", "value", "allowed"),
    [
        ("JETCRON_REPLICAS", "9", "whole numbers from 1 to 5"),
        ("JETCRON_REPLICAS", "two", "whole numbers from 1 to 5"),
        ("JETCRON_REPLICAS", "1.5", "whole numbers from 1 to 5"),
        ("JETCRON_SLOTS", "0", "whole numbers from 1 to 1000000"),
        ("JETCRON_LEAD", "0.1", "numbers from 0.5 to 60"),
        ("JETCRON_LEAD", "nan", "numbers from 0.5 to 60"),
        ("JETCRON_GRACE", "inf", "numbers from 0 to 86400"),
        ("JETCRON_EVENTS_MAX_AGE", "7d", "whole numbers from 3600 to 315360000"),
        ("JETCRON_STORAGE", "disk", "file, memory"),
        ("JETCRON_LOG_FORMAT", "xml", "auto, console, json"),
        ("JETCRON_LOG_LEVEL", "loud", "debug, info, warning, error"),
        ("JETCRON_NAMESPACE", "a.b", "letters, digits, '_' and '-'"),
        ("NATS_URL", "localhost:4222", "nats://HOST:PORT (or tls, ws, wss), more of them after commas"),
        ("NATS_URL", "nats://a:1,", "nats://HOST:PORT (or tls, ws, wss), more of them after commas"),
        ("NATS_URL", "nats://a:x", "nats://HOST:PORT (or tls, ws, wss), more of them after commas"),
    ],
)
def test_a_value_that_cannot_be(
    variable: str, value: str, allowed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    assert refusal() == f"{variable}={value!r}; allowed are {allowed}"


BOUNDS: dict[str, tuple[float, float]] = {
    "replicas": (1, 5),
    "events_max_age": (3_600, 315_360_000),
    "dead_max_age": (3_600, 315_360_000),
    "duplicate_window": (1, 3_600),
    "ack_wait": (1, 3_600),
    "lead": (0.5, 60),
    "settle": (0.25, 60),
    "late_after": (1, 86_400),
    "slots": (1, 1_000_000),
    "holding": (1, 1_000_000),
    "executor_beat": (0.1, 60),
    "executor_ttl": (1, 3_600),
    "lost_attempts": (1, 1_000),
    "short_wait": (0, 3_600),
    "max_steps": (1, 100_000),
    "max_inline": (1, 64 * 1024**2),
    "max_result": (1, 64 * 1024**2),
    "max_journal": (64 * 1024, 64 * 1024**2),
    "keep_completed": (3_600, 315_360_000),
    "keep_failed": (3_600, 315_360_000),
    "rolled_back_within": (0, 86_400),
    "grace": (0, 86_400),
    "sweep_every": (1, 3_600),
    "repair_grace": (1, 3_600),
    "canary_every": (0, 3_600),
}


def test_every_number_has_bounds() -> None:
    numbers = {name for name, field in Settings.model_fields.items() if field.annotation in (int, float)}
    assert set(BOUNDS) == numbers


@pytest.mark.parametrize("name", list(BOUNDS))
def test_a_bound_is_allowed_and_what_lies_beyond_is_not(name: str) -> None:
    least, most = BOUNDS[name]
    # What must go together with a value at its bound.
    with_most: dict[str, dict[str, float]] = {"executor_beat": {"executor_ttl": 180}}
    with_least: dict[str, dict[str, float]] = {
        "late_after": {"lead": 1},
        "executor_ttl": {"executor_beat": 0.1},
    }
    assert getattr(Settings.load(**{name: least, **with_least.get(name, {})}), name) == least
    assert getattr(Settings.load(**{name: most, **with_most.get(name, {})}), name) == most
    for beyond in (least - 1, most + 1):
        assert refusal(**{name: beyond}) == (
            f"{variable_of(name)}={beyond!r}; allowed are "
            f"{'numbers' if isinstance(Settings.model_fields[name].default, float) else 'whole numbers'} "
            f"from {least:.15g} to {most:.15g}"
        )


def test_all_that_is_wrong_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JETCRON_REPLICAS", "9")
    monkeypatch.setenv("JETCRON_STORAGE", "disk")
    monkeypatch.setenv("JETCRON_LEED", "3")
    assert refusal().splitlines() == [
        "JETCRON_LEED is not a setting; did you mean 'JETCRON_LEAD'?",
        "JETCRON_REPLICAS='9'; allowed are whole numbers from 1 to 5",
        "JETCRON_STORAGE='disk'; allowed are file, memory",
    ]


def test_an_argument_that_cannot_be() -> None:
    assert refusal(replicas=0) == "JETCRON_REPLICAS=0; allowed are whole numbers from 1 to 5"
    assert refusal(namespac="x") == "'namespac' is not a setting; did you mean 'namespace'?"


@pytest.mark.parametrize(
    "variable",
    ["JETCRON_EXECUTOR_PORT", "JETCRON_SERVICE_HOST", "JETCRON_LEAD_PORT_80_TCP_ADDR", "JETCRON_X"],
)
def test_variables_of_others_are_left_alone(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = Settings.load().model_dump()
    monkeypatch.setenv(variable, "tcp://10.0.0.1:80")
    assert Settings.load().model_dump() == before


@pytest.mark.parametrize("variable", ["NATS_CREDS", "NATS_NKEY_SEED", "NATS_CA"])
def test_a_file_must_be_there(variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    monkeypatch.setenv(variable, str(path))
    assert refusal() == f"{variable}={str(path)!r}: there is no such file"
    path.touch()
    assert getattr(Settings.load(), variable.lower()) == path


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"nats_user": "u"}, "NATS_USER is set and NATS_PASSWORD is not; allowed are both or neither"),
        ({"nats_password": "p"}, "NATS_PASSWORD is set and NATS_USER is not; allowed are both or neither"),
        (
            {"nats_user": "u", "nats_password": "p", "nats_token": "t"},
            "NATS_USER and NATS_TOKEN are set; allowed is one way to log in",
        ),
        (
            {"executor_beat": 11, "executor_ttl": 30},
            "JETCRON_EXECUTOR_BEAT=11 and JETCRON_EXECUTOR_TTL=30; "
            "allowed is a JETCRON_EXECUTOR_TTL of at least 3 times JETCRON_EXECUTOR_BEAT",
        ),
        (
            {"lead": 5, "late_after": 4},
            "JETCRON_LEAD=5 and JETCRON_LATE_AFTER=4; "
            "allowed is a JETCRON_LATE_AFTER of at least JETCRON_LEAD",
        ),
    ],
)
def test_what_cannot_be_together(arguments: dict[str, Any], text: str) -> None:
    assert refusal(**arguments) == text


def test_explain_names_value_and_source_of_every_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JETCRON_REPLICAS", "1")
    monkeypatch.setenv("NATS_TOKEN", "hush")
    rows = {row.variable: row for row in Settings.load(lead=1.5).explain()}
    assert list(rows) == [variable_of(name) for name in Settings.model_fields]
    assert all(row.meaning for row in rows.values())
    assert rows["JETCRON_REPLICAS"][1:3] == ("1", "environment")
    assert rows["JETCRON_LEAD"][1:3] == ("1.5", "argument")
    assert rows["JETCRON_SETTLE"][1:3] == ("0.5", "default")
    assert rows["JETCRON_EVENTS_MAX_AGE"][1:3] == ("604800", "default")
    assert rows["NATS_CREDS"][1:3] == ("", "default")
    assert rows["NATS_TOKEN"][1:3] == ("**********", "environment")


def test_no_secret_is_ever_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NATS_USER", "u")
    monkeypatch.setenv("NATS_PASSWORD", "hush")
    monkeypatch.setenv("NATS_URL", "nats://u:hush@a:1,nats://hush@b,nats://c:1")
    settings = Settings.load()
    shown = "nats://u:***@a:1,nats://***@b,nats://c:1"
    assert settings.shown_url == shown
    assert settings.explain()[0].value == shown
    assert "hush" not in repr(settings) + str(settings) + repr(settings.explain())
    monkeypatch.setenv("NATS_URL", "zz://u:hush@a:1")
    assert refusal().startswith("NATS_URL='zz://u:***@a:1'; allowed are nats://HOST:PORT")
