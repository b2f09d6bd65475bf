"""Old names that still work: each use warns with a DeprecationWarning that names the new one."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Mapping
from typing import ParamSpec, TypeVar

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")
Value = TypeVar("Value")


def renamed_arguments(**new_names: str) -> Callable[[Callable[Arguments, Result]], Callable[Arguments, Result]]:
    """A decorator for a function whose keyword arguments have new names: the old ones still work, with a warning.

    Args:
        new_names: the new name of each old one, as `overlong="truncation"`.

    Raises:
        TypeError: of a call that gives an argument by its old and its new name.
    """

    def decorate(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
        @functools.wraps(function)
        def call(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
            for old, new in new_names.items():
                if old in kwargs:
                    if new in kwargs:
                        raise TypeError(f"{function.__qualname__}: expected {new} alone, got it as {old} too")
                    _warn(f"{function.__qualname__}: the argument {old} is now called {new}", 3)
                    kwargs[new] = kwargs.pop(old)
            return function(*args, **kwargs)

        return call

    return decorate


def renamed_value(name: str, value: Value, new_values: Mapping[object, Value], stacklevel: int = 3) -> Value:
    """The new value of an argument that may have an old one, which is warned about; any other value as it is.

    Args:
        name: function and argument, as "generate: stream"; begins the warning.
        value: what the caller gave.
        new_values: the new value of each old one, as `{"parallel": "philox"}`.
        stacklevel: whose line the warning names; 3 is the caller of the function that calls this one.
    """
    if value not in new_values:
        return value
    new = new_values[value]
    _warn(f"{name}: the value {value!r} is now called {new!r}", stacklevel + 1)
    return new


def _warn(message: str, stacklevel: int) -> None:
    warnings.warn(f"{message}; the old name will be removed", DeprecationWarning, stacklevel=stacklevel)
