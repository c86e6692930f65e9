"""Names like one that is not known."""

from collections.abc import Iterable

_SYNONYMS = {"gpu": "cuda", "standard": "portable"}
"""What nobody would find by its letters."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A question after the known names that are like another one, or nothing.

    Args:
        name: what was given.
        known: what could have been.
    """
    from difflib import get_close_matches

    names = list(known)
    plain = name.strip().lower().replace("_", "-")
    same = [one for one in names if one in (plain, _SYNONYMS.get(plain))]
    alike = same or get_close_matches(plain, names)
    return f"did you mean {' or '.join(map(repr, alike))}?" if alike else ""
