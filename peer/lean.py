"""Imported first in the daemon: keeps the system's OpenSSL out of it, 4.7 MiB of resident memory.

gRPC and cryptography bring an OpenSSL of their own each. asyncio (by `ssl`) and hashlib would load a third
only because it is there; both do without. hashlib then uses Python's own SHA-2, which is slower, for a
daemon that hashes little. `import ssl` works again afterwards, but asyncio does not know of it.
"""

import sys

_UNWANTED = ("_hashlib", "ssl")

if not any(name in sys.modules for name in _UNWANTED):
    for _name in _UNWANTED:
        sys.modules[_name] = None  # type: ignore[assignment]  # importing it is an ImportError
    import asyncio  # noqa: F401
    import hashlib  # noqa: F401
    import hmac  # noqa: F401

    for _name in _UNWANTED:
        del sys.modules[_name]
