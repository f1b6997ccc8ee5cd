"""`TrustedProxies`: whose word on the client's address is believed, and whose address the client's then is.

A proxy adds the address that it was called from to the end of `X-Forwarded-For`, or to `Forwarded` (RFC 7239). So that
list is read from its end: each address is as true as who wrote it, and the first that is no trusted proxy's is the
client. What stands before it the client may have made up; it is dropped.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Self

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

_FOR = re.compile(r"\s*for\s*=\s*(.*?)\s*", re.IGNORECASE)
_NODE = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([0-9.]+))(?::\d{1,5})?|([0-9A-Fa-f:.]+)")  # ports go
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")


@dataclass(frozen=True, slots=True)
class Client:
    """Who asks, and how they reached the first of us. `chain`: their address, then those of the proxies between."""

    address: str
    scheme: str
    chain: tuple[str, ...]

    @property
    def forwarded_for(self) -> str:
        """`X-Forwarded-For`, for the function."""
        return ", ".join(self.chain)

    def forwarded(self, host: str) -> str:
        """`Forwarded`, for the function. `host`: a Host field's value, or ""."""
        first = f"for={_node(self.chain[0])}"
        if host:
            first += f";host={host}" if _TOKEN.fullmatch(host) else f';host="{host}"'
        return ", ".join((f"{first};proto={self.scheme}", *(f"for={_node(address)}" for address in self.chain[1:])))


@dataclass(frozen=True, slots=True)
class TrustedProxies:
    """None of them: nothing that anybody says of other addresses is believed."""

    networks: tuple[Network, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """Networks or addresses with commas or blanks between. Raises ValueError."""
        networks: list[Network] = []
        for written in text.replace(",", " ").split():
            try:
                networks.append(ipaddress.ip_network(written))
            except ValueError:
                raise ValueError(f"networks such as 10.0.0.0/8 or fd00::/8, and {written[:80]!r} is none") from None
        return cls(tuple(networks))

    def __bool__(self) -> bool:
        return bool(self.networks)

    def trusts(self, address: str) -> bool:
        found = parsed(address)
        return found is not None and any(found in network for network in self.networks)

    def client(
        self,
        peer: str,
        scheme: str,
        *,
        forwarded_for: Sequence[str] = (),
        forwarded: Sequence[str] = (),
        forwarded_proto: Sequence[str] = (),
    ) -> Client:
        """Who is behind `peer`, the other end of a connection by `scheme`. The rest: the values of these header fields,
        in their order; `Forwarded` is read where there is no `X-Forwarded-For`."""
        if not self.networks or not self.trusts(peer):
            return Client(peer, scheme, (peer,))
        said = forwarded_proto[-1].rpartition(",")[2].strip().lower() if forwarded_proto else ""
        chain = [peer]
        for element in _backwards(forwarded_for or forwarded):
            address = _address(element if forwarded_for else _of_element(element))
            if address is None:
                break
            chain.append(str(address))
            if not any(address in network for network in self.networks):
                break
        chain.reverse()
        return Client(chain[0], said if said in ("http", "https") else scheme, tuple(chain))


NO_PROXIES = TrustedProxies()


def parsed(address: str) -> IPAddress | None:
    """An address as it counts: IPv4 where it is written as IPv6, and without a zone. None where it is none."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return None
    return getattr(found, "ipv4_mapped", None) or found


def _backwards(values: Sequence[str]) -> Iterator[str]:
    """The elements of a list in header fields, last first."""
    for value in reversed(values):
        yield from reversed(value.split(","))


def _of_element(element: str) -> str:
    """What an element of `Forwarded` says after `for=`."""
    for pair in element.split(";"):
        if match := _FOR.fullmatch(pair):
            return match[1]
    return ""


def _address(text: str) -> IPAddress | None:
    """`1.2.3.4`, `1.2.3.4:5`, `[::1]:5`, `::1`, or one of these in quotes."""
    match = _NODE.fullmatch(text.strip().strip('"'))
    return parsed(match[1] or match[2] or match[3]) if match else None


def _node(address: str) -> str:
    return f'"[{address}]"' if ":" in address else address or "unknown"
