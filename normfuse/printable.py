"""Texts with names that a model or a file supplied, as they may be shown: nothing in them orders a terminal about."""

import re

_CONTROL = "\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069"
"""What moves the cursor, starts a line or an order to the terminal, or turns the direction of writing."""
_ANYWHERE = re.compile(f"[{_CONTROL}]")
_WITHIN_LINES = re.compile(f"(?!\n)[{_CONTROL}]")
_IN_JSON = re.compile(f"(?![\x00-\x1f])[{_CONTROL}]")


def printable(text: str) -> str:
    """A text on one line, in which control characters are written as Python escapes them."""
    return _ANYWHERE.sub(_escaped, text)


def printable_lines(text: str) -> str:
    """The same of a text whose lines are meant."""
    return _WITHIN_LINES.sub(_escaped, text)


def printable_json(text: str) -> str:
    """A JSON document that reads the same, in which such characters are written as JSON escapes them.

    Those below U+0020 are escaped in a valid document, or stand between its values.
    """
    return _IN_JSON.sub(lambda found: f"\\u{ord(found.group()):04x}", text)


def _escaped(found: re.Match[str]) -> str:
    return ascii(found.group())[1:-1]
