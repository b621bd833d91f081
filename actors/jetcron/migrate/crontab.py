"""crontab files, a user's or the system's, as schedules.

Owns how a line of crontab(5) reads: settings, fields, user, command, what `%` means. Times are Debian cron's, whose
rules for days and for changing clocks are Jetcron's own. Where cron programs differ, or a field means something else in
Jetcron, the line is refused. Pure: text in, entries out.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from jetcron.cron import CronError, parse
from jetcron.migrate.entries import Entry, Naming, Refused, named

APP = "cron"
_SETTING = re.compile(r"""(?:"([^"=]+)"|'([^'=]+)'|([^\s=]+))\s*=\s*(.*)""", re.DOTALL)
_BLANKS = re.compile(r"[ \t]+")
"""What parts fields, as cron has it; other white space belongs to the command."""
_ITEM = re.compile(r"(\*|[0-9]+|[A-Z]{3})(?:-([0-9]+|[A-Z]{3}))?(?:/([0-9]+))?", re.ASCII)
_ALIASES = ("@hourly", "@daily", "@midnight", "@weekly", "@monthly", "@yearly", "@annually")
_MONTHS = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")
_WEEKDAYS = ("SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT")
_FIELDS: tuple[tuple[str, int, int, tuple[str, ...]], ...] = (
    ("minute", 0, 59, ()),
    ("hour", 0, 23, ()),
    ("day of month", 1, 31, ()),
    ("month", 1, 12, _MONTHS),
    ("day of week", 0, 7, _WEEKDAYS),
)
_MOST_DELAY = 24 * 60
_RUNNERS = {"bash", "dash", "node", "perl", "php", "python", "python3", "ruby", "sh", "zsh"}
_BEFORE = {"cd", "test", "[", "exec", "nice", "ionice", "nohup", "sudo", "chronic", "env"}
"""What stands before the program a line is about."""


@dataclass(slots=True)
class _Settings:
    """What the lines so far have set."""

    timezone: str
    zone_given: bool = False
    delay: int = 0
    mail: str | None = None
    env: dict[str, str] = field(default_factory=dict)


def read(lines: Iterable[str], naming: Naming, *, timezone: str, system: bool = False) -> list[Entry]:
    """An entry for each line that is one, and for each that cannot be read.

    `timezone` is that of the machine the crontab is on. `system`: lines have a user before the command, as in
    ``/etc/crontab`` and ``/etc/cron.d``.
    """
    settings = _Settings(timezone)
    slugs: dict[str, int] = {}
    entries = []
    for number, line in _lines(lines):
        place = f"line {number}"
        setting = _SETTING.fullmatch(line)
        if setting is not None:
            refused = _set(settings, setting[1] or setting[2] or setting[3], _unquoted(setting[4].strip()))
            if refused:
                entries.append(Entry(place, line, refused=refused))
            continue
        entry = Entry(place, line)
        entries.append(entry.fill(lambda entry: _schedule(entry, settings, naming, slugs, system)))
    return entries


def _lines(lines: Iterable[str]) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(lines, 1):
        text = line.strip(" \t\r\n")
        if text and not text.startswith("#"):
            yield number, text


def _unquoted(text: str) -> str:
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'" else text


def _set(settings: _Settings, name: str, value: str) -> str | None:
    """Take in a setting; why not, if it cannot be."""
    match name:
        case "CRON_TZ":
            try:
                parse("* * * * *", timezone=value)
            except CronError as error:
                return str(error).partition(": ")[2]
            settings.timezone, settings.zone_given = value, True
        case "RANDOM_DELAY":
            if not value.isdigit() or int(value) > _MOST_DELAY:
                return f"RANDOM_DELAY is {value!r}; allowed are minutes, up to {_MOST_DELAY}"
            settings.delay = int(value)
        case "MAILTO":
            settings.mail = value
        case _:
            settings.env[name] = value
    return None


def _schedule(
    entry: Entry, settings: _Settings, naming: Naming, slugs: dict[str, int], system: bool
) -> dict[str, object]:
    expression, rest = _when(entry)
    user = ""
    if system:
        user, rest = _parted(rest)
    if not rest:
        raise Refused(f"it has no command{' after the user' if system else ''}")
    if not rest.isprintable() and any("\ud800" <= char <= "\udfff" for char in rest):
        raise Refused("it is not UTF-8; write it so")
    command, stdin = _command(rest)
    slug = _slug(command)
    slugs[slug] = slugs.get(slug, 0) + 1
    id = slug if slugs[slug] == 1 else f"{slug}-{slugs[slug]}"
    entry.names = (slug, id)
    function = named(entry, naming, APP, slug.replace("-", "_"))
    if settings.zone_given:
        entry.remarks.append("CRON_TZ is meant as cronie means it; Debian's cron ignores it")
    if settings.mail:
        entry.remarks.append(f"output was mailed to {settings.mail}: Jetcron mails nothing")
    if user:
        entry.remarks.append(f"ran as {user}")
    payload = {"command": command, "stdin": stdin, "user": user, "env": dict(settings.env)}
    schedule: dict[str, object] = {
        "id": id,
        "function": function,
        "cron": expression,
        "timezone": settings.timezone,
        "catch_up": "skip",
        "payload": {name: value for name, value in payload.items() if value},
    }
    if settings.delay:
        schedule["jitter"] = settings.delay * 60
        entry.remarks.append(
            f"RANDOM_DELAY: up to {settings.delay} minutes later, by the minute of cron's start"
        )
    return schedule


def _when(entry: Entry) -> tuple[str, str]:
    """The expression, and what follows it."""
    text = entry.text
    if text.startswith("@"):
        name, rest = _parted(text)
        if name == "@reboot":
            raise Refused("@reboot is no time: start it with the machine, by systemd for one")
        if name not in _ALIASES:
            raise Refused(f"{name} is not one of {', '.join(_ALIASES)}")
        return name, rest
    if text.startswith("-"):
        entry.remarks.append("the leading '-' (write nothing to the log) is dropped")
        text = text[1:].lstrip(" \t")
    parts = _BLANKS.split(text, 5)
    if len(parts) < 5:
        raise Refused("it has fewer than five fields, and is no setting NAME=value either")
    wrong = []
    for part, (name, low, high, names) in zip(parts, _FIELDS, strict=False):
        try:
            _check(part, name, low, high, names)
        except Refused as error:
            wrong.append(str(error))
    if wrong:
        raise Refused("; ".join(wrong))
    expression = " ".join(parts[:5])
    try:
        parse(expression)
    except CronError as error:
        raise Refused(str(error).partition("': ")[2]) from None
    return expression, parts[5] if len(parts) > 5 else ""


def _parted(text: str) -> tuple[str, str]:
    """The first word, and what follows the blanks after it."""
    first, *rest = _BLANKS.split(text, 1)
    return first, rest[0] if rest else ""


def _check(text: str, name: str, low: int, high: int, names: tuple[str, ...]) -> None:
    """Refuse a field that cron and Jetcron would not read alike."""
    for item in text.upper().split(","):
        where = f"{name} {text!r}" + ("" if item == text.upper() else f", where {item!r} is wrong")
        match = _ITEM.fullmatch(item)
        if "~" in item:
            raise Refused(f"{where}: a random number, another one at each start of cron; write one of them")
        if match is None or (match[1] == "*" and match[2]):
            raise Refused(f"{where}: cron has no such item")
        first, last, step = match.groups()
        if first != "*":
            numbers = [_number(one, low, high, names) for one in (first, last) if one]
            if None in numbers:
                raise Refused(
                    f"{where}: allowed are {low}-{high}{f' or {names[0]}-{names[-1]}' if names else ''}"
                )
            if step and not last:
                raise Refused(f"{where}: cron programs read it differently; write {first}-{high}/{step}")
            if last and numbers[0] > numbers[1]:  # type: ignore[operator]
                raise Refused(f"{where}: its range falls, in which cron finds nothing")
        if step is not None and not 1 <= int(step) <= high - low + (0 if name == "day of week" else 1):
            raise Refused(
                f"{where}: its step is longer than the field; write {low} where it stands for that alone"
            )


def _number(text: str, low: int, high: int, names: tuple[str, ...]) -> int | None:
    if text in names:
        return names.index(text) + (1 if low == 1 else 0)
    return int(text) if text.isdigit() and low <= int(text) <= high else None


def _command(text: str) -> tuple[str, str]:
    """The command and its standard input: the first bare `%` parts them, others are ends of lines."""
    command, *lines = re.split(r"(?<!\\)%", text)
    return command.replace("\\%", "%").strip(), "\n".join(lines).replace("\\%", "%")


def _slug(command: str) -> str:
    """What a line is about, in a word: its program without folder and ending."""
    for part in re.split(r"&&|\|\||[;|]", command):
        words = [word.strip("\"'(){}") for word in part.split()]
        while words and (re.match(r"\w+=", words[0]) or words[0].startswith("-") or not words[0]):
            words.pop(0)
        while words and (words[0] in _BEFORE or words[0].startswith("-") or words[0].isdigit()):
            if words[0] in ("cd", "test", "["):
                words = []
                break
            words.pop(0)
        if not words:
            continue
        program = _stem(words[0])
        if re.sub(r"[0-9.]+$", "", program) in _RUNNERS or program in _RUNNERS:
            after = [word for word in words[1:] if not word.startswith("-")]
            program = _stem(after[0]).rpartition(".")[2] if after else program
        word = re.sub(r"[^a-z0-9]+", "-", program.lower()).strip("-")
        if word:
            return word[:80]
    return "command"


def _stem(word: str) -> str:
    name = word.rstrip("/").rpartition("/")[2]
    return re.sub(r"\.(?:sh|py|rb|pl|php|js)$", "", name)
