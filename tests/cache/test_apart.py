"""Functions called in a process of their own."""

from __future__ import annotations

import math
import os

import pytest

from firnline.cache.apart import apart
from firnline.cache.strain import radius_for
from firnline.errors import InputError, StoreError


def test_it_is_another_process_and_its_result_comes_back() -> None:
    assert apart(os.getpid) != os.getpid()
    assert apart(math.fsum, [0.1] * 10) == 1.0


def test_what_a_function_prints_is_no_part_of_its_result() -> None:
    assert apart(print, "something") is None


def test_errors_of_this_program_are_raised_as_they_are() -> None:
    with pytest.raises(InputError, match="pixel") as here:
        radius_for(10.0, 120.0)
    with pytest.raises(InputError) as there:
        apart(radius_for, 10.0, 120.0)
    assert str(there.value) == str(here.value)


def test_a_process_that_ends_early_is_an_error_that_says_how() -> None:
    with pytest.raises(StoreError, match=r"_exit ended with 7"):
        apart(os._exit, 7)
    with pytest.raises(StoreError, match="sqrt ended with 1: ValueError: math domain error"):
        apart(math.sqrt, -1.0)
