"""Planting a mistake: run the package with a wrong variant in the place of the right function."""

import functools
import importlib
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ppo_edu.teach.pitfalls.catalogue import Pitfall


@contextmanager
def planted(entry: Pitfall) -> Iterator[None]:
    """Within the block, the wrong variant stands in for the package's function.

    It does so wherever the function is bound: in its own module or class, in every module that imported it by name, and as
    the default of a keyword in the package (`train`'s advantage_fn, for one). While the wrong variant runs, the right
    function is itself again, because many variants are "the right one, but for this".

    Raises: ValueError for an entry that stands in for no function of the package, or whose function is not to be found.
    """
    owner, name = _owner(entry)
    right = getattr(owner, name)
    running = False

    @functools.wraps(right)
    def stand_in(*args: Any, **kwargs: Any) -> Any:
        nonlocal running
        if running:
            return right(*args, **kwargs)
        running = True
        try:
            return entry.wrong(*args, **kwargs)
        finally:
            running = False

    _rebind(owner, name, right, stand_in)
    try:
        yield
    finally:
        _rebind(owner, name, stand_in, right)


def right_function(entry: Pitfall) -> Callable[..., Any]:
    """The package's function that the entry's variant stands in for. Raises: ValueError where there is none."""
    owner, name = _owner(entry)
    return getattr(owner, name)


def _owner(entry: Pitfall) -> tuple[Any, str]:
    """The module or class that holds the function, and its name there."""
    if entry.replaces is None:
        raise ValueError(f"entry must stand in for a function of the package, {entry.name!r} is known to an exercise only")
    path, name = entry.replaces.rsplit(".", 1)
    try:
        owner = importlib.import_module(path)
    except ModuleNotFoundError:  # a method: its class comes before its name
        module, class_name = path.rsplit(".", 1)
        owner = getattr(importlib.import_module(module), class_name, None)
    if not inspect.isfunction(getattr(owner, name, None)):
        raise ValueError(f"entry must name a function, {entry.name!r} names {entry.replaces}")
    return owner, name


def _rebind(owner: Any, name: str, old: Callable[..., Any], new: Callable[..., Any]) -> None:
    """Bind `new` wherever `old` is bound: there, in all modules, and in the defaults of the package's keywords."""
    setattr(owner, name, new)
    for module in list(sys.modules.values()):
        members = list(getattr(module, "__dict__", {}).items())
        for key, member in members:
            if member is old:
                setattr(module, key, new)
        if getattr(module, "__name__", "").startswith("ppo_edu."):
            for _, member in members:
                if inspect.isfunction(member) and member.__kwdefaults__:
                    member.__kwdefaults__.update({key: new for key, default in member.__kwdefaults__.items() if default is old})
