from typing import Any

Expression = dict[str, Any] | bool


def parse(v: Any, lang: str) -> Any:
    return v


def from_query(v: Any) -> Any:
    return v


def compile(e: Any, dialect: str, seek: bool) -> Any: ...
def is_indexed(e: Any) -> bool:
    return False


CONFORMANCE: tuple[str, ...] = ()
