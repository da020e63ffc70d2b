"""Text that cannot disguise itself in a terminal or on a page."""

from __future__ import annotations

import re

# C0 and C1 controls but for tab and line feed, and the marks that reorder text: in a terminal or on
# a page they can disguise the text.
_UNSEEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def visible(text: str) -> str:
    """The text with control and bidirectional characters written out, as `\\x1b` or `\\u202e`."""
    return _UNSEEN.sub(
        lambda m: f"\\u{ord(m[0]):04x}" if ord(m[0]) > 0xFF else f"\\x{ord(m[0]):02x}", text
    )


def escaped(text: str) -> str:
    """JSON text with those characters as JSON escapes: the same value, harmless to a terminal."""
    return _UNSEEN.sub(lambda m: f"\\u{ord(m[0]):04x}", text)
