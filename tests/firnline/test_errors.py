"""The tree of errors in the docstring is the tree of classes."""

from __future__ import annotations

import inspect
import re

from firnline import errors
from firnline.api.errors import STATUS
from firnline.errors import FirnlineError, InputError

_LINE = re.compile(r"^    (?P<branch>[│├└─ ]*)(?P<name>\w+Error)(\s+(?P<about>.+))?$")


def drawn() -> dict[str, str | None]:
    """Each class in the docstring's drawing, and the class that it hangs from."""
    tree: dict[str, str | None] = {}
    above: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        match = _LINE.match(line)
        if match is None:
            continue
        depth = len(match["branch"]) // 4
        above[depth:] = [match["name"]]
        tree[match["name"]] = above[depth - 1] if depth else None
    return tree


def classes() -> dict[str, type[Exception]]:
    return {
        name: member
        for name, member in vars(errors).items()
        if inspect.isclass(member) and issubclass(member, Exception)
    }


def test_the_drawn_tree_is_the_tree_of_classes() -> None:
    real = {
        name: next((b.__name__ for b in kind.__bases__ if issubclass(b, FirnlineError)), None)
        for name, kind in classes().items()
    }
    assert drawn() == real
    assert len(real) > 15


def test_every_class_says_what_it_is_for() -> None:
    for name, kind in classes().items():
        assert kind.__doc__, name
        assert kind.__module__ == "firnline.errors"
        assert issubclass(kind, FirnlineError)


def test_bad_input_is_also_a_value_error() -> None:
    """Who calls firnline from Python may catch what Python's own functions raise."""
    for kind in classes().values():
        assert issubclass(kind, ValueError) is issubclass(kind, InputError)
    assert issubclass(errors.NotFoundError, LookupError)


def test_every_error_that_an_api_may_raise_has_its_status() -> None:
    """By its own class or one above it, below the root: nothing falls through to a 500 unseen."""
    for kind in classes().values():
        if kind is not FirnlineError and not issubclass(kind, errors.JobError):
            assert any(base in STATUS for base in kind.__mro__ if base is not FirnlineError), kind
