"""Settings: NATS_* and JETCRON_* of the environment, validated once, when a process starts.

Owns their names, defaults and bounds. Reads the environment in `Settings.load` and looks there whether the
files it names exist; nothing else is touched, and nothing changes afterwards.
"""

import os
import re
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self, get_args, get_origin
from urllib.parse import urlsplit

from pydantic import Field, PrivateAttr, SecretStr, ValidationError, field_validator, model_validator
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, SettingsConfigDict

from jetcron.errors import ConfigurationError
from jetcron.options import suggestion
from jetcron_protocol.subjects import InvalidName, Names
from jetcron_protocol.topology import DAY, Limits

KIB = 1024
MIB = 1024 * KIB
PREFIX = "JETCRON_"
_SCHEMES = ("nats", "tls", "ws", "wss")
_FILES = ("nats_creds", "nats_nkey_seed", "nats_ca")
_KUBERNETES = re.compile(r"_(SERVICE_(HOST|PORT)(_\w+)?|PORT(_\d+_\w+)?)$")
"""What Kubernetes puts into every container for each service; one named jetcron-… is no misspelling."""


class Setting(NamedTuple):
    """A row of `jetcron settings`: secrets are masked in `value`, `source` is where it came from."""

    variable: str
    value: str
    source: Literal["default", "environment", "argument"]
    meaning: str


def _nats(variable: str, default: Any, meaning: str, **more: Any) -> Any:
    return Field(default=default, validation_alias=variable, description=meaning, **more)


def _is(default: Any, meaning: str, least: float | None = None, most: float | None = None) -> Any:
    return Field(default=default, description=meaning, ge=least, le=most)


class Settings(BaseSettings):
    """Everything an operator can set. Durations in seconds. Make one with `Settings.load`."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_ignore_empty=True,
        frozen=True,
        extra="forbid",
        populate_by_name=True,
        allow_inf_nan=False,
        hide_input_in_errors=True,
    )
    _sources: dict[str, Literal["environment", "argument"]] = PrivateAttr(default_factory=dict)

    # The connection.
    nats_url: str = _nats("NATS_URL", "nats://127.0.0.1:4222", "servers, separated by commas", repr=False)
    nats_creds: Path | None = _nats("NATS_CREDS", None, "a credentials file (JWT and seed)")
    nats_user: str | None = _nats("NATS_USER", None, "a user, with NATS_PASSWORD")
    nats_password: SecretStr | None = _nats("NATS_PASSWORD", None, "the password of NATS_USER")
    nats_token: SecretStr | None = _nats("NATS_TOKEN", None, "a token")
    nats_nkey_seed: Path | None = _nats("NATS_NKEY_SEED", None, "a file with an NKey seed")
    nats_ca: Path | None = _nats("NATS_CA", None, "a file with the CA certificates to trust")

    # What `jetcron init` creates.
    namespace: str = _is("jetcron", "first part of every subject, upper-case in every stream's name")
    replicas: int = _is(1, "copies of every stream", 1, 5)
    storage: Literal["file", "memory"] = _is("file", "where streams are kept")
    events_max_age: int = _is(7 * DAY, "how long published events are kept", 3_600, 3_650 * DAY)
    dead_max_age: int = _is(30 * DAY, "how long dead letters are kept", 3_600, 3_650 * DAY)
    duplicate_window: int = _is(120, "how long the server knows a message id", 1, 3_600)
    ack_wait: float = _is(30.0, "a message not acknowledged for so long is delivered again", 1, 3_600)

    # Time.
    lead: float = _is(2.0, "how early held messages are released", 0.5, 60)
    settle: float = _is(0.5, "added to the lead before a changed schedule is in force", 0.25, 60)
    late_after: float = _is(60.0, "an occurrence turned over so late was missed: catch_up decides", 1, DAY)

    # Executors.
    slots: int = _is(1_000, "runs executed at one time by one executor", 1, 1_000_000)
    holding: int = _is(10_000, "runs that wait for their time in one executor", 1, 1_000_000)
    executor_beat: float = _is(3.0, "how often an executor says it is alive", 0.1, 60)
    executor_ttl: float = _is(30.0, "an executor silent for so long is dead", 1, 3_600)
    lost_attempts: int = _is(3, "attempts lost in a row with their process, then the run fails", 1, 1_000)
    short_wait: float = _is(5.0, "a run that waits no longer than this stays in its executor", 0, 3_600)
    max_steps: int = _is(1_000, "steps of one run", 1, 100_000)
    max_inline: int = _is(
        512 * KIB, "bytes of a result in a run's history; a larger one is an object", 1, 64 * MIB
    )
    max_result: int = _is(64 * MIB, "bytes of a result", 1, 64 * MIB)
    max_journal: int = _is(4 * MIB, "bytes of a run's history while it runs", 64 * KIB, 64 * MIB)
    keep_completed: int = _is(DAY, "how long a completed run is remembered", 3_600, 3_650 * DAY)
    keep_failed: int = _is(7 * DAY, "how long a failed run is remembered", 3_600, 3_650 * DAY)
    rolled_back_within: float = _is(600.0, "definitions replaced so lately do not come back", 0, DAY)
    grace: float = _is(30.0, "how long running work may finish when a process is told to stop", 0, DAY)

    # Repair.
    sweep_every: int = _is(60, "how often the health-checker looks at each group", 1, 3_600)
    repair_grace: float = _is(10.0, "how long something may look broken before it is repaired", 1, 3_600)
    canary_every: int = _is(15, "how often the health-checker's canary is due; 0: none", 0, 3_600)

    # Logs.
    log_format: Literal["auto", "console", "json"] = _is("auto", "auto: console in a terminal, else JSON")
    log_level: Literal["debug", "info", "warning", "error"] = _is("info", "the least that is logged")

    @classmethod
    def load(cls, **arguments: Any) -> Self:
        """The settings: `arguments` (those not None) first, then the environment, then the defaults.

        Raises `ConfigurationError` with a line for each variable at fault: its value and what is allowed.
        """
        given = {name: value for name, value in arguments.items() if value is not None}
        problems = _misspelled()
        try:
            settings = cls(**given)
        except ValidationError as error:
            problems += [_problem(dict(problem)) for problem in error.errors(include_url=False)]
        else:
            problems += settings._missing_files()
        if problems:
            raise ConfigurationError("\n".join(problems))
        for name in settings.model_fields_set:
            settings._sources[name] = "argument" if name in given else "environment"
        return settings

    @field_validator("storage", "log_format", "log_level", mode="before")
    @classmethod
    def _lower(cls, value: object) -> object:
        return value.lower() if isinstance(value, str) else value

    @field_validator("namespace")
    @classmethod
    def _namespace(cls, value: str) -> str:
        try:
            Names(value)
        except InvalidName:
            raise ValueError("letters, digits, '_' and '-'") from None
        return value

    @field_validator("nats_url")
    @classmethod
    def _url(cls, value: str) -> str:
        urls = [url.strip() for url in value.split(",")]
        if not all(_is_url(url) for url in urls):
            raise ValueError("nats://HOST:PORT (or tls, ws, wss), more of them after commas")
        return ",".join(urls)

    @model_validator(mode="after")
    def _together(self) -> Self:
        if (self.nats_user is None) != (self.nats_password is None):
            missing, given = ("USER", "PASSWORD") if self.nats_user is None else ("PASSWORD", "USER")
            raise ValueError(f"NATS_{given} is set and NATS_{missing} is not; allowed are both or neither")
        ways = [
            variable_of(name)
            for name in ("nats_creds", "nats_user", "nats_token", "nats_nkey_seed")
            if getattr(self, name) is not None
        ]
        if len(ways) > 1:
            raise ValueError(f"{' and '.join(ways)} are set; allowed is one way to log in")
        for less, more, times in (
            ("executor_beat", "executor_ttl", 3),
            ("lead", "late_after", 1),
            ("duplicate_window", "events_max_age", 1),
        ):
            if getattr(self, less) * times > getattr(self, more):
                factor = f"{times} times " if times > 1 else ""
                raise ValueError(
                    f"{variable_of(less)}={getattr(self, less):.15g} and "
                    f"{variable_of(more)}={getattr(self, more):.15g}; "
                    f"allowed is a {variable_of(more)} of at least {factor}{variable_of(less)}"
                )
        return self

    def _missing_files(self) -> list[str]:
        found = ((name, getattr(self, name)) for name in _FILES)
        return [
            f"{variable_of(name)}={str(path)!r}: there is no such file"
            for name, path in found
            if path is not None and not path.is_file()
        ]

    def explain(self) -> list[Setting]:
        """Every setting, for `jetcron settings`."""
        return [
            Setting(
                variable_of(name),
                _shown(name, getattr(self, name)),
                self._sources.get(name, "default"),
                field.description or "",
            )
            for name, field in type(self).model_fields.items()
        ]

    @property
    def names(self) -> Names:
        return Names(self.namespace)

    @property
    def limits(self) -> Limits:
        return Limits(
            replicas=self.replicas,
            storage=self.storage,
            events_max_age=self.events_max_age,
            dead_max_age=self.dead_max_age,
            duplicate_window=self.duplicate_window,
            ack_wait=self.ack_wait,
        )

    @property
    def servers(self) -> list[str]:
        """The addresses in `nats_url`."""
        return self.nats_url.split(",")

    @property
    def shown_url(self) -> str:
        """`nats_url` for logs and messages, without passwords and tokens."""
        return _masked(self.nats_url)

    @property
    def lead_ms(self) -> int:
        return round(self.lead * 1_000)

    @property
    def settle_ms(self) -> int:
        return round(self.settle * 1_000)

    @property
    def late_after_ms(self) -> int:
        return round(self.late_after * 1_000)

    @property
    def short_wait_ms(self) -> int:
        return round(self.short_wait * 1_000)

    @property
    def executor_beat_ms(self) -> int:
        return round(self.executor_beat * 1_000)

    @property
    def executor_ttl_ms(self) -> int:
        return round(self.executor_ttl * 1_000)

    @property
    def keep_completed_ms(self) -> int:
        return self.keep_completed * 1_000

    @property
    def keep_failed_ms(self) -> int:
        return self.keep_failed * 1_000

    @property
    def rolled_back_within_ms(self) -> int:
        return round(self.rolled_back_within * 1_000)

    @property
    def sweep_every_ms(self) -> int:
        return self.sweep_every * 1_000

    @property
    def repair_grace_ms(self) -> int:
        return round(self.repair_grace * 1_000)


def variable_of(name: str) -> str:
    """The environment variable of a field."""
    alias = Settings.model_fields[name].validation_alias
    return alias if isinstance(alias, str) else f"{PREFIX}{name.upper()}"


def _shown(name: str, value: object) -> str:
    if value is None:
        return ""
    if name == "nats_url":
        return _masked(str(value))
    return f"{value:.15g}" if isinstance(value, float) else str(value)


def _masked(urls: str) -> str:
    """The addresses without their passwords, and tokens, which stand where a user would."""
    return ",".join(_masked_one(url) for url in urls.split(","))


def _masked_one(url: str) -> str:
    scheme, slashes, rest = url.partition("://")
    login, at, host = rest.rpartition("@")
    user, colon, _ = login.partition(":")
    return f"{scheme}{slashes}{f'{user}:***' if colon else '***'}@{host}" if at else url


def _is_url(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in _SCHEMES and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def _misspelled() -> list[str]:
    """Variables that are nearly a setting; others are left alone, for they may be another program's."""
    known = tuple(variable_of(name) for name in Settings.model_fields)
    return [
        f"{variable} is not a setting{near}"
        for variable in sorted(os.environ)
        if variable.startswith(PREFIX) and variable.upper() not in known and not _KUBERNETES.search(variable)
        if (near := suggestion(variable, known, cutoff=0.85))
    ]


def _problem(problem: dict[str, Any]) -> str:
    """One line for one refusal of pydantic's: variable, value, what is allowed."""
    if not problem["loc"]:
        return str(problem["msg"]).removeprefix("Value error, ")
    key = str(problem["loc"][0])
    by_variable = {variable_of(name).lower(): name for name in Settings.model_fields}
    name = by_variable.get(key.lower(), key)
    field = Settings.model_fields.get(name)
    if field is None:
        return f"{key!r} is not a setting{suggestion(key, tuple(Settings.model_fields))}"
    value = os.environ.get(variable_of(name)) if "input" not in problem else problem["input"]
    shown = (
        _masked(str(value))
        if name == "nats_url"
        else "***"
        if field.annotation == SecretStr | None
        else value
    )
    allowed = (
        str(problem["msg"]).removeprefix("Value error, ")
        if problem["type"] == "value_error"
        else _allowed(field)
    )
    return f"{variable_of(name)}={shown!r}; allowed are {allowed}"


def _allowed(field: FieldInfo) -> str:
    if get_origin(field.annotation) is Literal:
        return ", ".join(str(choice) for choice in get_args(field.annotation))
    kind = "whole numbers" if field.annotation is int else "numbers" if field.annotation is float else "texts"
    bounds = {bound: getattr(m, bound) for m in field.metadata for bound in ("ge", "le") if hasattr(m, bound)}
    return f"{kind} from {bounds['ge']:.15g} to {bounds['le']:.15g}" if len(bounds) == 2 else kind
