"""Old names of arguments and values: they work, and the warning names the new one and the caller's line."""

from __future__ import annotations

import pytest

from bgpt_fast.deprecation import renamed_arguments, renamed_value


@renamed_arguments(old="new")
def double(new: int, other: int = 0) -> int:
    return 2 * new + other


def choose(mode: str) -> str:
    return renamed_value("choose: mode", mode, {"slow": "exact"})


def test_an_old_argument_works_with_a_warning_that_names_the_new_one() -> None:
    with pytest.warns(DeprecationWarning, match="double: the argument old is now called new") as record:
        assert double(old=3, other=1) == 7  # type: ignore[call-arg]
    assert record[0].filename == __file__


def test_an_old_value_works_with_a_warning_that_names_the_new_one() -> None:
    with pytest.warns(DeprecationWarning, match="choose: mode: the value 'slow' is now called 'exact'") as record:
        assert choose("slow") == "exact"
    assert record[0].filename == __file__


@pytest.mark.filterwarnings("error")
def test_new_names_do_not_warn() -> None:
    assert double(3) == double(new=3) == 6
    assert choose("exact") == "exact"


def test_both_names_at_once_are_an_error() -> None:
    with pytest.raises(TypeError, match="expected new alone"):
        double(old=1, new=2)  # type: ignore[call-arg]
