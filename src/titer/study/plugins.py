"""Plug-ins: methods, measures and judges from packages, files and scripts."""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import linecache
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType

from titer.errors import StudyError

_registered: dict[str, type] = {}
"""Classes given to `register` in this process, by qualified name."""
_changes = 0
"""How often the registry changed, so that what was looked up before can be looked up again."""
_loaded: dict[Path, str] = {}
"""Plug-in file → name of the module made of its content when it was last loaded."""
_PREFIX = "titer_plugin_"


def register(cls: type) -> type:
    """Make a method, measure or judge known by its `name` in this process; usable as a decorator.

    With worker processes the class must be defined where they import it too: at the top level of
    the script that calls `titer.run`, or in a file named under `plugins` in the study. A class of a
    notebook runs with `workers=1`. Raises StudyError if it has no name.
    """
    global _changes
    if not isinstance(getattr(cls, "name", None), str):
        raise StudyError(
            "a class without a name cannot be registered",
            field="name",
            value=getattr(cls, "__name__", cls),
            expected="a class with `name = '…'`, derived from Attack, Defense, Measure …",
        )
    key = f"{cls.__module__}.{cls.__qualname__}"
    _registered.pop(key, None)  # the last one registered stands last
    _registered[key] = cls
    _changes += 1
    return cls


def changes() -> int:
    """A number that grows whenever something is registered."""
    return _changes


def load_plugins(paths: Iterable[str | Path]) -> None:
    """Import plug-in files and register every named class they define. Loading a file again does
    nothing unless its content changed. Raises StudyError naming the file and what went wrong."""
    for path in map(Path, paths):
        try:
            content = path.read_bytes()
        except OSError as error:
            raise StudyError(
                f"a plug-in file cannot be read ({error.strerror or error})",
                field="plugins",
                value=str(path),
                expected="a Python file",
            ) from error
        name = f"{_PREFIX}{path.stem}_{hashlib.sha256(content).hexdigest()[:16]}"
        before = _loaded.get(path.resolve())
        if before == name:
            continue
        module = sys.modules.get(name) or _imported(name, path)
        for key in [k for k, cls in _registered.items() if cls.__module__ == before]:
            del _registered[key]  # drop classes the file no longer defines
        _loaded[path.resolve()] = name
        for value in _defined(module, path):
            register(value)


def _defined(module: ModuleType, path: Path) -> list[type]:
    """The methods, measures and judges a plug-in file defines. Raises StudyError if two share a
    name: only one of them would be used.
    """
    own = [
        value
        for value in vars(module).values()
        if inspect.isclass(value) and value.__module__ == module.__name__ and _named(value)
    ]
    for name, times in Counter(vars(cls).get("name") for cls in own).items():
        if name and times > 1:
            raise StudyError(
                "a plug-in file defines two classes of one name",
                field="plugins",
                value=f"{path}: {name}",
                expected="a name for each",
            )
    return own


def _imported(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise StudyError(
            "a plug-in is no Python file", field="plugins", value=str(path), expected="a .py file"
        )
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # pickling and pydantic look classes up there
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[name]
        if isinstance(error, KeyboardInterrupt):
            raise
        raise StudyError(
            f"a plug-in fails when it is imported ({type(error).__name__}: {error})",
            field="plugins",
            value=str(path),
            expected="a file that imports without error",
        ) from error
    return module


def _named(cls: type) -> bool:
    return isinstance(getattr(cls, "name", None), str) and not inspect.isabstract(cls)


def code_digest(cls: type) -> str:
    """sha256 (16 hex digits) of the source file of a class that is not part of titer, as it was
    when a plug-in file was loaded; empty for a built-in one, whose `version` tells its code. Raises
    StudyError if there is no source to read."""
    if cls.__module__.partition(".")[0] == "titer":
        return ""
    if cls.__module__.startswith(_PREFIX):  # its file may have changed since
        return cls.__module__.rpartition("_")[2]
    try:
        body = _source(cls)
    except (OSError, TypeError) as error:
        raise StudyError(
            "the source of a plug-in class cannot be read, so its results could not be told from "
            "those of a changed one",
            field="plugins",
            value=cls.__qualname__,
            expected="a class defined in a file",
            remedy=_TO_A_FILE,
        ) from error
    return hashlib.sha256(body).hexdigest()[:16]


_TO_A_FILE = (
    "save the class in a Python file (in a notebook: `%%writefile mine.py` as the first line of "
    "its cell) and name that file under `plugins` in the study"
)


def _source(cls: type) -> bytes:
    """The file a class is defined in; of a class of a notebook, the cells its methods are in.
    Raises OSError or TypeError if there is nothing to read."""
    if not _in_notebook(cls):
        file = inspect.getsourcefile(cls)
        if file and Path(file).is_file():
            return Path(file).read_bytes()
        return inspect.getsource(cls).encode()
    # `inspect` finds no file for such a class, but IPython keeps the text of every cell by the name
    # under which it was compiled.
    cells = {f.__code__.co_filename for f in vars(cls).values() if inspect.isfunction(f)}
    text = "".join(line for name in sorted(cells) for line in linecache.getlines(name))
    if f"class {cls.__name__}" not in text:  # other code may have been compiled under its name
        raise OSError("no source")
    return text.encode()


def _in_notebook(cls: type) -> bool:
    """Whether a class belongs to a main module that no other process can import."""
    main = sys.modules.get("__main__")
    return cls.__module__ == "__main__" and getattr(main, "__file__", None) is None


def refuse_out_of_reach(named: str, workers: int) -> None:
    """Raises StudyError if worker processes could not import a registered class of this process.
    named: a study as JSON; only classes whose names it holds count."""
    for cls in _registered.values() if workers > 1 else ():
        name = cls.name  # type: ignore[attr-defined]
        local = "<locals>" in cls.__qualname__ and cls.__module__ == "__main__"
        if (_in_notebook(cls) or local) and f'"{name}"' in named:
            raise StudyError(
                f"worker processes cannot import {cls.__qualname__}, which is defined in "
                f"{'a function' if local else 'a notebook or at a prompt'}",
                field="runtime.workers",
                value=workers,
                expected="1, or a class defined in a file",
                remedy=f"call titer.run(…, workers=1); or {_TO_A_FILE}",
            )


def plugged(group: str, base: type, taken: Mapping[str, type]) -> dict[str, type]:
    """name → class of everything that does not come with titer: registered classes, and those of an
    entry-point group. taken: the built-in ones.

    Raises StudyError if a plug-in is no `base`, goes by another name than its class, or has a name
    that is taken: a package that brought a `full_sft` of its own could otherwise give its results
    the address of the built-in one's.
    """
    found: dict[str, type] = {}
    for key, cls in list(_registered.items()):
        if issubclass(cls, base):
            name = cls.name  # type: ignore[attr-defined]
            if name in taken:
                del _registered[key]  # or every later study of this process would be refused too
                raise StudyError(
                    "a registered class has the name of one that comes with titer",
                    field="name",
                    value=name,
                    expected="a name of its own",
                )
            found[name] = cls  # the last one wins: a notebook defines its class again and again
    for entry in entry_points(group=group):
        value = _entry(group, entry)
        if not (isinstance(value, type) and issubclass(value, base)):
            problem = f"the plug-in {entry.name} is not what its group holds"
            expected = f"a subclass of {base.__module__}.{base.__name__}"
        elif getattr(value, "name", None) != entry.name:
            problem = f"the plug-in {entry.name} has another name"
            expected = f"an entry point called {getattr(value, 'name', None)!r}"
        elif entry.name in taken or entry.name in found:
            problem = f"the plug-in {entry.name} has a name that is taken"
            expected = "a name of its own"
        else:
            found[entry.name] = value
            continue
        raise StudyError(problem, field=group, value=entry.value, expected=expected)
    return found


def _entry(group: str, entry: EntryPoint) -> object:
    try:
        return entry.load()
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a plug-in may raise anything, SystemExit included
        raise StudyError(
            f"the plug-in {entry.name} fails when it is imported ({type(error).__name__}: {error})",
            field=group,
            value=entry.value,
            expected="a package that imports without error",
        ) from error
