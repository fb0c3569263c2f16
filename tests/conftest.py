"""For every test: a network of its own, one thread per process that computes, and how hard hypothesis tries.

Tests use real mDNS and real ports, so no test process may hear another one, or a daemon of this machine. As
root every process moves to a new network namespace; else pytest first runs itself again under `unshare`.
"""

from __future__ import annotations

import gc
import os
import sys

import pytest
from hypothesis import HealthCheck, settings

from lan.namespace import NamespaceRefusedError, as_root_of_a_user_namespace, leave_the_network

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported; CI has two cores

# No deadlines: a test that passes must pass on a machine ten times slower.
settings.register_profile("default", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("fuzz", parent=settings.get_profile("default"), max_examples=20_000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    try:
        if os.geteuid() != 0:
            config.pluginmanager.getplugin("capturemanager").stop_global_capturing()
            as_root_of_a_user_namespace(
                [sys.executable, "-P", "-m", "pytest", *config.invocation_params.args]
            )
        leave_the_network()
    except (NamespaceRefusedError, FileNotFoundError) as error:
        pytest.exit(str(error), returncode=1)


def pytest_collection_finish() -> None:
    """What is imported and collected stays: looking at it again and again took a tenth of the time."""
    gc.collect()
    gc.freeze()
