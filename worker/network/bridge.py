"""A bridge that is not ours (a Docker network): who is on it reaches the host's side of it, and nobody else there."""

from __future__ import annotations

import errno
from pathlib import Path

INTERFACES = Path("/sys/class/net")
GONE = (errno.ENOENT, errno.ENODEV)


def isolate_ports(bridge: str) -> None:
    """Blocking, a file per port. Frames between two of its ports are dropped, whatever a firewall is asked about: not
    every engine sees to that. Raises OSError.

    Linux' "Bridge port isolation", 4.18.
    """
    for port in (INTERFACES / bridge / "brif").iterdir():
        try:
            (port / "isolated").write_text("1")
        except OSError as error:
            if error.errno not in GONE:  # with its container
                raise
