"""One line on stderr that is written over and over, where a person is looking at it."""

import sys


def show(sentence: str) -> None:
    """Replace the line; nothing where stderr is no terminal."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{sentence}", end="", file=sys.stderr, flush=True)


def clear() -> None:
    """Take the line away before results are printed."""
    if sys.stderr.isatty():
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)
