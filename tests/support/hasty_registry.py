"""A registry in a process of its own whose promises last a second, not a day: garbage is garbage at once."""

from __future__ import annotations

import runpy

from registry import gc, rules
from registry.index import index
from tests.support.registry import RegistryProcess

LEASE_SECONDS = 1.0


class HastyRegistry(RegistryProcess):
    module = "tests.support.hasty_registry"


if __name__ == "__main__":
    index.LEASE_SECONDS = LEASE_SECONDS
    rules.UNTAGGED_DAYS = 0.0
    gc.STRAY_SECONDS = 0.1
    runpy.run_module("registry", run_name="__main__")
