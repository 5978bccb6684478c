"""``python -m firnline.cli``."""

from firnline.cli.commands import main

main()
