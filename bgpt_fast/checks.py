"""Argument checks; errors name the argument, the expected and the actual value."""

from __future__ import annotations


def check_int(name: str, value: object, least: int, most: int | None = None) -> None:
    """Raises TypeError or ValueError unless `value` is an int in [`least`, `most`]; the error begins with `name`."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name}: expected an int, got {type(value).__name__} {value!r:.80}")
    if value < least or (most is not None and value > most):
        expected = f"at least {least}" if most is None else f"{least}…{most}"
        raise ValueError(f"{name}: expected {expected}, got {value}")
