"""Which peerd this is. A constant, since looking it up among installed packages costs a daemon 2 MB and
every command 30 ms; pyproject.toml takes the distribution's version from here."""

VERSION = "0.1.0"
WRITTEN = 1767225600  # 2026-01-01 UTC, in s since 1970: a clock that shows less has not been set
