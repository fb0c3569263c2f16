"""How words and figures look. Whatever comes from elsewhere goes through `clean` before a person sees it."""

from __future__ import annotations

import unicodedata

_UNITS = ("B", "kB", "MB", "GB", "TB")
UNKNOWN = "–"


def clean(text: object) -> str:
    """The text without control, format and other unprintable characters, which could drive a terminal."""
    return "".join(letter for letter in str(text) if not unicodedata.category(letter).startswith("C"))


def one_line(text: str) -> str:
    """The text as one clean line."""
    return clean(" ".join(text.split()))


def size(count: float | None) -> str:
    """Bytes, in decimal units."""
    if count is None:
        return UNKNOWN
    value, unit = float(count), 0
    while value >= 999.5 and unit < len(_UNITS) - 1:
        value, unit = value / 1000, unit + 1
    return f"{value:.0f} {_UNITS[unit]}" if unit == 0 or value >= 99.5 else f"{value:.1f} {_UNITS[unit]}"


def span(seconds: float | None) -> str:
    """A length of time in its two greatest units."""
    if seconds is None:
        return UNKNOWN
    if seconds < 0.9995:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for length, unit, smaller, name in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= length:
            return f"{whole // length} {unit} {whole % length // smaller} {name}"
    return f"{whole} s"


def figure(value: float | None, digits: int = 3) -> str:
    """A number with so many significant digits; whole numbers whole."""
    if value is None:
        return UNKNOWN
    return str(value) if isinstance(value, int) else f"{value:.{digits}g}"


def percent(part: float | None) -> str:
    """A part of one, in percent with two digits that count."""
    if part is None:
        return UNKNOWN
    return f"{100 * part:.0f} %" if part >= 0.0995 else f"{100 * part:.2g} %" if part else "0 %"


def times(ratio: float | None) -> str:
    """How many times fewer."""
    return UNKNOWN if ratio is None else f"{ratio:.0f}x" if ratio >= 9.5 else f"{ratio:.1f}x"


def count(number: int | None, word: str) -> str:
    """`1 member`, `3 members`."""
    return f"{UNKNOWN if number is None else number} {word}{'' if number == 1 else 's'}"
