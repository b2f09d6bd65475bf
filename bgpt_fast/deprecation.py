"""Support for deprecated names: each use emits a DeprecationWarning with the new name."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Mapping
from typing import ParamSpec, TypeVar

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")
Value = TypeVar("Value")


def renamed_arguments(**new_names: str) -> Callable[[Callable[Arguments, Result]], Callable[Arguments, Result]]:
    """A decorator for a function with renamed keyword arguments: the old names still work, with a warning.

    Args:
        new_names: old name → new name, such as `overlong="truncation"`.

    Raises:
        TypeError: by the decorated function, if an argument is given under both its old and its new name.
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
    """Replaces a deprecated argument value by the new one, with a warning; returns any other value unchanged.

    Args:
        name: function and argument, such as "generate: stream"; the warning begins with it.
        value: the caller's value.
        new_values: old value → new value, such as `{"parallel": "philox"}`.
        stacklevel: as in `warnings.warn`; 3 is the caller of the function that calls this one.
    """
    if value not in new_values:
        return value
    new = new_values[value]
    _warn(f"{name}: the value {value!r} is now called {new!r}", stacklevel + 1)
    return new


def _warn(message: str, stacklevel: int) -> None:
    warnings.warn(f"{message}; the old name will be removed", DeprecationWarning, stacklevel=stacklevel)
