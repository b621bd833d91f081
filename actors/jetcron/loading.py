"""Find the user's `App` by ``MODULE:APP``, and say plainly when it is not there.

Owns `sys.path` for it: the current folder comes first, as with ``python -m``. What the user's module raises
while it is imported is shown from their first frame on, without ours.
"""

import importlib
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from jetcron.app import App
from jetcron.errors import ConfigurationError, JetcronError
from jetcron.options import suggestion

_HERE = Path(__file__).parent


class AppNotFound(ConfigurationError):
    """No module, or no App in it, by this name."""


class ImportFailed(ConfigurationError):
    """The user's module raised while it was imported; `traceback` is its text, without our frames."""

    def __init__(self, message: str, traceback: str) -> None:
        super().__init__(message)
        self.traceback = traceback


@dataclass(frozen=True, slots=True)
class Loaded:
    """An app, how to name it (``module:app``), and the folder its module lies in."""

    app: App
    target: str
    folder: Path


def load(target: str) -> Loaded:
    """Import ``package.module:app``, ``path/to/file.py:app``, or either without ``:app`` when it has one App.

    Raises `AppNotFound`, or `ImportFailed` with the user's own traceback.
    """
    place, _, attribute = target.partition(":")
    if not place:
        raise AppNotFound(f"{target!r} names no module; write MODULE:APP, such as 'reports:app'")
    cwd = Path.cwd()
    _on_path(cwd)
    name = _from_file(Path(place), target) if _is_file(place) else place
    module = _import(name, target, cwd)
    app = _named(module, name, attribute) if attribute else _only(module, name)
    file = getattr(module, "__file__", None)
    return Loaded(app, target, Path(file).resolve().parent if file else cwd)


def load_object(target: str, default: str) -> object:
    """Import what ``package.module:name`` or ``path/to/file.py:name`` names, whatever it is; `default` without a name.

    Raises `AppNotFound`, or `ImportFailed` with the user's own traceback.
    """
    place, _, attribute = target.partition(":")
    if not place:
        raise AppNotFound(f"{target!r} names no module; write MODULE:NAME, such as 'proj:{default}'")
    cwd = Path.cwd()
    _on_path(cwd)
    name = _from_file(Path(place), target) if _is_file(place) else place
    found: object = _import(name, target, cwd)
    for part in (attribute or default).split("."):
        if not hasattr(found, part):
            raise AppNotFound(f"{name} has no {attribute or default!r}; write MODULE:NAME")
        found = getattr(found, part)
    return found


def _is_file(place: str) -> bool:
    return place.endswith(".py") or "/" in place or "\\" in place


def _on_path(folder: Path) -> None:
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))


def _from_file(file: Path, target: str) -> str:
    """The dotted name of a file's module; the folder above its outermost package goes on `sys.path`."""
    if file.is_dir() and not (file / "__init__.py").is_file():
        raise AppNotFound(f"{target!r}: {file} is a folder without __init__.py; name a file in it")
    file = file.resolve()
    if not file.exists():
        raise AppNotFound(f"{target!r}: there is no file {file}")
    parts = [file.name if file.is_dir() else file.stem]
    if parts == ["__init__"]:
        file, parts = file.parent, [file.parent.name]
    folder = file.parent
    while (folder / "__init__.py").is_file():
        parts.insert(0, folder.name)
        folder = folder.parent
    _on_path(folder)
    return ".".join(parts)


def _import(name: str, target: str, cwd: Path) -> ModuleType:
    importlib.invalidate_caches()
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not (name == error.name or name.startswith(f"{error.name}.")):
            raise _failed(name, error) from None
        there = sorted(path.stem for path in cwd.glob("*.py") if path.stem != "__init__")
        hint = (
            suggestion(name, there) or "; run it where your code is, or give a path such as jobs/app.py:app"
        )
        raise AppNotFound(f"{target!r}: there is no module {error.name!r} (looked in {cwd}){hint}") from None
    except (Exception, SystemExit) as error:  # noqa: BLE001 - the user's module may raise anything
        raise _failed(name, error) from None


def _named(module: ModuleType, name: str, attribute: str) -> App:
    found: object = module
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise AppNotFound(f"{name} has no {attribute!r}; {_choices(module, name)}")
        found = getattr(found, part)
    if not isinstance(found, App):
        raise AppNotFound(f"{name}:{attribute} is a {type(found).__name__}, no App; {_choices(module, name)}")
    return found


def _only(module: ModuleType, name: str) -> App:
    apps = {id(app): app for app in _apps(module).values()}
    if len(apps) == 1:
        return next(iter(apps.values()))
    if apps:
        raise AppNotFound(f"{name} has {len(apps)} Apps; {_choices(module, name)}")
    raise AppNotFound(_choices(module, name))


def _apps(module: ModuleType) -> dict[str, App]:
    return {name: value for name, value in vars(module).items() if isinstance(value, App)}


def _choices(module: ModuleType, name: str) -> str:
    found = [f"{name}:{app}" for app in _apps(module)]
    if not found:
        return f"there is no App in {name}; write app = App('reports') there"
    return f"there {'is' if len(found) == 1 else 'are'} {', '.join(found)}"


def _failed(name: str, error: BaseException) -> ImportFailed:
    what = str(error).splitlines()
    text = f"{type(error).__name__}: {what[0]}" if what else type(error).__name__
    return ImportFailed(f"{name} cannot be imported: {text}", _users_traceback(error))


def _users_traceback(error: BaseException) -> str:
    described = traceback.TracebackException.from_exception(error)
    _trim(described, ours=isinstance(error, JetcronError))
    return "".join(described.format()).rstrip()


def _trim(described: traceback.TracebackException | None, *, ours: bool) -> None:
    """Leave out how the import got there, and our frames where the error is ours."""
    if described is None:
        return
    described.stack = traceback.StackSummary.from_list(
        [frame for frame in described.stack if not _is_machinery(frame.filename, ours)]
    )
    for cause in (described.__cause__, described.__context__):
        _trim(cause, ours=ours)


def _is_machinery(file: str, ours: bool) -> bool:
    if file.startswith("<frozen importlib") or file == importlib.__file__ or file == __file__:
        return True
    return ours and Path(file).is_relative_to(_HERE)
