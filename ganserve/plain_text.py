"""Texts from elsewhere become short ones that do no harm where they are shown."""

from unicodedata import category

# A status travels in trailers, of which gRPC clients take 8 KB: once as a message, which may grow
# threefold there, and twice in its details.
_LONGEST_TEXT_BYTES = 1000
# Of Unicode: control and format characters, halves of others, ends of lines and of paragraphs.
_HIDDEN = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})


def printable(text: str) -> str:
    """A text from elsewhere that forges no line of a log and moves no cursor, and a short one."""
    return cut(escape(text[: _LONGEST_TEXT_BYTES + 1]))


def escape(text: str) -> str:
    """Write what does not show, such as the end of a line, as `repr` does; all spaces stay."""
    if text.isprintable():
        return text
    return "".join(repr(one)[1:-1] if category(one) in _HIDDEN else one for one in text)


def cut(text: str) -> str:
    """Keep a text short enough for every client, such as a list of a thousand models."""
    encoded = text.encode()
    if len(encoded) <= _LONGEST_TEXT_BYTES:
        return text
    return encoded[:_LONGEST_TEXT_BYTES].decode(errors="ignore") + "..."
