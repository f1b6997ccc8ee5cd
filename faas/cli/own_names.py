"""By what names and addresses others may know this machine. Blocking; name servers are asked for the given name."""

from __future__ import annotations

import ipaddress
import re
import socket
from contextlib import suppress

from faas.errors import InvalidInput

_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_HOST = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
LONGEST = 253
LOCAL = ("localhost", "127.0.0.1", "::1")
# No packet is sent: a datagram socket that is connected has the address that the route there begins with.
_FAR = ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1"))


def checked(text: str) -> str:
    """A host's name or address, in lower case. Raises InvalidInput."""
    name = text.lower().removeprefix("[").removesuffix("]").removesuffix(".")
    with suppress(ValueError):
        return str(ipaddress.ip_address(name))
    if len(name) > LONGEST or not _HOST.fullmatch(name) or name.rpartition(".")[2].isdigit():
        raise InvalidInput(
            f"{text!r} is no host's name", hint="such as functions.example.com or 192.0.2.7, without https:// and port"
        )
    return name


def resolved(name: str) -> list[str]:
    """Its addresses, as this machine finds them; empty where it finds none."""
    try:
        found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return []
    return list(dict.fromkeys(str(row[4][0]).partition("%")[0] for row in found))


def own(name: str, domain: str = "") -> list[str]:
    """What else than `name` may stand in its certificate: functions' hosts, this machine's own names, its addresses."""
    found = [f"*.{domain}"] if domain else []
    host = socket.gethostname().lower()
    found += [one for one in (host, host.partition(".")[0]) if len(one) <= LONGEST and _HOST.fullmatch(one)]
    found += resolved(name)
    for family, far in _FAR:
        with suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((far, 9))
            found.append(str(probe.getsockname()[0]).partition("%")[0])
    return list(dict.fromkeys((*found, *LOCAL)))
