"""The one error tree: what went wrong, whose fault it is, and the exit code it ends a command with.

A message says where, what was expected, what was found and what to do. What a user can fix has a class and
a sysexits code here; a neighbor's fault is a `RemoteError` (drop the link, count it, go on); a broken
invariant of our own is an AssertionError and crashes.
"""

from __future__ import annotations


class PeerdError(Exception):
    """Base of everything peerd raises on purpose. `exit_code` is what a command ends with."""

    exit_code = 70


class UsageError(PeerdError):
    """The command line or a call's arguments are off."""

    exit_code = 2


class WrongKeyError(PeerdError):
    """peerd devices answer, and none of them recognises this key."""

    exit_code = 64


class DataError(PeerdError):
    """A model or data file does not fit the session, or cannot be read."""

    exit_code = 65


class DivergedError(PeerdError):
    """Training produced numbers that are not finite; nothing of them is sent."""

    exit_code = 65

    @classmethod
    def found(cls, value: float) -> DivergedError:
        """The error for a vector whose largest magnitude is `value`."""
        return cls(f"training diverged: the model's change contains {value}; lower --lr and start again")


class CodecCheckError(PeerdError):
    """A codec gives other bytes or values here than it was built to give; this device must not train."""


class UnknownSessionError(PeerdError):
    """This device knows no session of that name."""

    exit_code = 66


class NoDaemonError(PeerdError):
    """No daemon answers on the control socket."""

    exit_code = 69


class PortError(PeerdError):
    """The port asked for is taken, or the address is not this device's."""

    exit_code = 71


class StateError(PeerdError):
    """The state folder cannot be written: full disk, read-only, or wrong owner."""

    exit_code = 73


class NobodyFoundError(PeerdError):
    """No member of the session was found in time."""

    exit_code = 75


class ConfigError(PeerdError):
    """A configuration file or an environment variable is off."""

    exit_code = 78


class RemoteError(PeerdError):
    """A neighbor broke a rule. Nothing of what it sent is applied."""


class CodecError(RemoteError):
    """Bytes that are not a well-formed message of this model: refused before anything is allocated."""


class UnknownBaseError(RemoteError):
    """A message builds on a model this device does not hold (any more)."""


def by_exit_code(code: int, message: str) -> PeerdError:
    """The error a daemon reported over the local socket, as the class it was raised as there."""
    for kind in PeerdError.__subclasses__():
        if kind.exit_code == code and "exit_code" in vars(kind):
            return kind(message)
    return PeerdError(message)
