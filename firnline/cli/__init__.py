"""The one door for commands: ``firnline …``.

Exit 0 good, 1 failed, 2 bad input. With ``--json`` stdout carries one JSON document and nothing
else; progress and logs go to stderr. A module each for a family of commands; what is heavy is
imported when a command runs.
"""

from firnline.cli.commands import app, main

__all__ = ["app", "main"]
