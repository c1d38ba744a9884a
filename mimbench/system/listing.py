"""Long lists in messages: the first few, and how many more there are."""

from collections.abc import Iterable

from mimbench.system.errors import printable


def first_few(items: Iterable[object], most: int = 5, *, separator: str = ", ") -> str:
    """Return "a, b, c and 7 more"; "none" for an empty list.

    Args:
        items: What is listed; an item longer than 200 characters is cut.
        most: How many are shown.
        separator: What stands between two of them; "; " where items are sentences.
    """
    texts = [str(item) for item in items]
    shown = separator.join(
        printable(text, 197 if len(text) > 200 else None) for text in texts[:most]
    )
    return " ".join(filter(None, [shown or "none", and_more(len(texts), most)]))


def and_more(count: int, most: int) -> str:
    """Return "and 7 more" where `most` of `count` are shown; "" where that is all of them."""
    return f"and {count - most:,} more" if count > most else ""
