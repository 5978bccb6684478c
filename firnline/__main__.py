"""``python -m firnline`` is the command ``firnline``."""

from firnline.cli import main

if __name__ == "__main__":
    main()
