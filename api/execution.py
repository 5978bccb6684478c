"""How a process is executed over HTTP: what its caller prefers, and the form of its results.

OGC API - Processes 1.0, 7.11.2: outputs by value or by reference, in one document or raw; and the
header ``Prefer`` of RFC 7240, by which a caller says whether to wait.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import orjson
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from firnline.api.links import JSON, JSONBytes
from firnline.errors import InputError

LONGEST_WAIT = 60.0
"""Seconds that a caller may wait for a result, however many it asks for."""
WAIT = 8.0
"""Seconds that a caller waits who names none: OWSLib gives up after ten."""

_PREFERENCE = re.compile(r'\s*([A-Za-z-]+)\s*(?:=\s*"?([^",;]*)"?)?\s*(?:;.*)?')
Transmission = Literal["value", "reference"]


class OutputChoice(BaseModel):
    """How one output is wanted (schema ``output.yaml``)."""

    model_config = ConfigDict(extra="ignore")

    transmissionMode: Transmission = Field(
        "value", description="The output itself, or where it can be fetched."
    )


class Execution(BaseModel):
    """Body of an execution (schema ``execute.yaml``); what else it holds is passed over."""

    model_config = ConfigDict(extra="ignore")

    inputs: dict[str, Any] = Field(
        default_factory=dict,
        description="Input values by name; those of /processes/{process_id}.",
        examples=[{"bbox": [-174200, -2284200, -165800, -2275800], "crs": "EPSG:3413"}],
    )
    outputs: dict[str, OutputChoice] = Field(
        default_factory=dict,
        description="For synchronous execution: the outputs that are wanted; none named: all.",
    )
    response: Literal["document", "raw"] = Field(
        "document", description="For synchronous execution: results by name, or bare values."
    )


@dataclass(frozen=True)
class Preference:
    """What a caller prefers; ``wait`` in seconds, None where it says nothing of it."""

    asynchronous: bool = False
    synchronous: bool = False
    wait: float | None = None

    @classmethod
    def of(cls, headers: Sequence[str]) -> Preference:
        """From the headers ``Prefer``; what is not understood is passed over (RFC 7240, 2)."""
        told: dict[str, str] = {}
        for word in ",".join(headers).split(","):
            if match := _PREFERENCE.fullmatch(word):
                told.setdefault(match[1].lower(), match[2] or "")  # the first counts
        wait = told.get("wait", "")
        return cls(
            "respond-async" in told,
            "respond-sync" in told,
            float(wait) if wait.isascii() and wait.isdigit() and len(wait) < 10 else None,
        )

    @property
    def patience(self) -> float:
        """Seconds to wait for a result before a job is given in place of it."""
        if self.wait is not None:
            return min(self.wait, LONGEST_WAIT)
        return 0.0 if self.asynchronous else WAIT


@dataclass(frozen=True)
class Output:
    """One output of a process; ``value`` is JSON."""

    value: bytes
    media_type: str = JSON
    link: Mapping[str, Any] | None = None
    """Where it can be fetched; None: nowhere."""
    by_default: Transmission = "value"


def results(found: Mapping[str, Output], execution: Execution | None = None) -> Response:
    """The outputs in the form asked for; by default all, each in its own way, as a document.

    Raises
    ------
    InputError
        An output that there is not, or one by reference that has no address.
    """
    execution = execution or Execution()
    chosen: dict[str, tuple[Output, Transmission]] = {
        name: (output, output.by_default) for name, output in found.items()
    }
    if execution.outputs:
        for name in execution.outputs:
            if name not in found:
                raise InputError(f"outputs: {name[:80]!r} is not one of {', '.join(found)}")
        chosen = {
            name: (found[name], choice.transmissionMode)
            for name, choice in execution.outputs.items()
        }
    for name, (output, mode) in chosen.items():
        if mode == "reference" and output.link is None:
            raise InputError(f"outputs: {name} is given by value only")
    return _raw(chosen) if execution.response == "raw" else _document(chosen)


def _document(chosen: Mapping[str, tuple[Output, Transmission]]) -> Response:
    """Schema ``results.yaml``."""
    return JSONBytes(b"{%b}" % b",".join(
        b"%b:%b" % (orjson.dumps(name), _inline(output) if mode == "value"
                    else orjson.dumps(output.link))
        for name, (output, mode) in chosen.items()
    ))  # fmt: skip


def _inline(output: Output) -> bytes:
    # An object can't stand inline by itself (inputValueNoObject.yaml): it comes qualified.
    if not output.value.startswith(b"{"):
        return output.value
    about = b"" if output.media_type == JSON else b'"mediaType":"%b",' % output.media_type.encode()
    return b'{%b"value":%b}' % (about, output.value)


def _raw(chosen: Mapping[str, tuple[Output, Transmission]]) -> Response:
    """7.11.2.4: one value bare, several in parts; references alone as links of an empty reply."""
    if all(mode == "reference" for _, mode in chosen.values()):
        reply = Response(status_code=204)
        for output, _ in chosen.values():
            link = output.link or {}
            reply.headers.append("Link", header_link(link["href"], link["rel"], link["type"]))
        return reply
    if len(chosen) == 1:
        ((output, _),) = chosen.values()
        return JSONBytes(output.value, media_type=output.media_type)
    boundary = secrets.token_hex(16)
    parts = []
    for name, (output, mode) in chosen.items():
        head = f"--{boundary}\r\nContent-Type: {output.media_type}\r\nContent-ID: <{name}>\r\n"
        if mode == "reference":
            head += f"Content-Location: {(output.link or {})['href']}\r\n"
        parts.append(head.encode() + b"\r\n" + (output.value if mode == "value" else b"") + b"\r\n")
    body = b"".join(parts) + f"--{boundary}--\r\n".encode()
    return Response(body, media_type=f"multipart/related; boundary={boundary}")


def header_link(href: str, rel: str, type: str = JSON) -> str:
    """A link as a header has it (RFC 8288)."""
    return f'<{href}>; rel="{rel}"; type="{type}"'
