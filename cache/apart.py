"""A function called in a process of its own, which takes its memory with it when it ends.

For what loads much for little: maps and pictures need rasterio and matplotlib. A new interpreter,
not a fork, which a process with threads can't have, and not multiprocessing's, which would run the
script of whoever called once more.
"""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from firnline.errors import FirnlineError, StoreError

P = ParamSpec("P")
T = TypeVar("T")


def apart(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a function that a module has by its name; all that goes in and out is pickled.

    Raises
    ------
    FirnlineError
        What the function raised.
    StoreError
        The process ended before the function did; says how.
    """
    call = pickle.dumps((function, args, kwargs))
    command = [sys.executable, "-m", "firnline.cache.apart"]
    run = subprocess.run(command, input=call, capture_output=True, check=False)
    if run.returncode:
        last = run.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise StoreError(f"{function.__name__} ended with {run.returncode}: {last}")
    result: Any = pickle.loads(run.stdout)  # this program's own
    if isinstance(result, FirnlineError):
        raise result
    return result  # type: ignore[no-any-return]


def main() -> None:
    """Do what the caller pickled."""
    function, args, kwargs = pickle.load(sys.stdin.buffer)
    answer, sys.stdout = sys.stdout.buffer, sys.stderr  # nobody else writes there
    try:
        result = function(*args, **kwargs)
    except FirnlineError as error:
        result = error
    answer.write(pickle.dumps(result))
    answer.flush()


if __name__ == "__main__":
    main()
