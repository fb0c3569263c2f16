"""Who runs the doctor through sudo. Root alone may read a firewall's rules; everything else is looked at as
the user whose daemon it is, who is let to no more than without sudo, and whose folders are found.
"""

from __future__ import annotations

import os
import pwd
import subprocess
import sys
from collections.abc import Mapping, MutableMapping
from pathlib import Path

from peer import places
from peer.errors import PeerdError

TRIAL_S = 3.0  # for a Python to start: within 1 s on a Pi (guess)


def invoker(socket: str | None, state: str | None, env: Mapping[str, str]) -> pwd.struct_passwd | None:
    """The user to become. None without sudo, where the daemon that root would ask is there and not that
    user's (the service's, or root's own), or where this peerd is root's alone to read. socket, state: the
    flags."""
    number = env.get("SUDO_UID", "")
    if os.geteuid() != 0 or not number.isdecimal() or int(number) == 0:
        return None
    try:
        user = pwd.getpwuid(int(number))
        owner = places.default_socket(socket, env, state).stat().st_uid
    except FileNotFoundError:
        owner = user.pw_uid  # nobody answers root
    except (KeyError, OSError, PeerdError):
        return None
    return user if owner == user.pw_uid and can_run_this(user) else None


def can_run_this(user: pwd.struct_passwd) -> bool:
    """May they read this Python and this peerd? What is loaded later has to be."""
    try:
        tried = subprocess.run(
            [sys.executable, "-P", "-c", "import asyncio, peer.version"],
            user=user.pw_uid,
            group=user.pw_gid,
            extra_groups=os.getgrouplist(user.pw_name, user.pw_gid),
            capture_output=True,
            timeout=TRIAL_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return tried.returncode == 0


def become(user: pwd.struct_passwd, env: MutableMapping[str, str]) -> None:
    """Be this user from now on, with the folders of a login."""
    os.initgroups(user.pw_name, user.pw_gid)
    os.setgid(user.pw_gid)
    os.setuid(user.pw_uid)
    env["HOME"] = user.pw_dir
    runtime = Path("/run/user") / str(user.pw_uid)
    env.pop("XDG_RUNTIME_DIR", None)
    if runtime.is_dir():
        env["XDG_RUNTIME_DIR"] = str(runtime)
