"""How fast an instance's link is: a token bucket (tc-tbf(8)) at each of its two ends, set over netlink.

Nobody inside can change it: that takes CAP_NET_ADMIN over the namespace. No program is started for it.
"""

from __future__ import annotations

import os
import socket
import struct

from faas.spec import MEMORY_MB_PER_CPU
from worker.network import netlink
from worker.network.namespace import new_namespace
from worker.network.netlink import CREATE, REPLACE, Interface, Request, attribute

MBIT_PER_CPU = 1000  # each way, of an instance with one vCPU's memory; less memory, less of it, as with the CPU
BURST_BYTES = 131_072  # sent at once: two of the largest packets that the kernel makes
QUEUE_SECONDS = 0.05  # what waits at most, and is dropped beyond
RATE_MOST = 2**32 - 1  # bytes per second that the kernel's 32 bits hold

# linux/rtnetlink.h, linux/pkt_sched.h
RTM_NEWQDISC = 36
TC_H_ROOT, HANDLE = 0xFFFFFFFF, 0x10000
TCA_KIND, TCA_OPTIONS, TCA_TBF_PARMS, TCA_TBF_BURST = 1, 2, 1, 6
ETHERNET = 1  # TC_LINKLAYER_ETHERNET: the kernel reckons by itself, and needs no table of rates
TICK_NANOSECONDS = 64


def share(memory_bytes: int, mbit_per_cpu: int) -> int:
    """Bits per second, each way, of an instance with that memory; 0 where there is no limit."""
    return memory_bytes * mbit_per_cpu * 1_000_000 // (MEMORY_MB_PER_CPU << 20)


def limit(link: str, bits: int) -> None:
    """Blocking, about 50 µs. Let the calling thread's namespace send at most `bits` per second out of `link`; once
    more changes it. Raises OSError."""
    netlink.ask(queue(netlink.interface(link), bits))


def queue(link: Interface, bits: int) -> Request:
    """Make or change the root queue of `link`."""
    rate = max(1, min(bits // 8, RATE_MOST))
    waiting = int(rate * QUEUE_SECONDS) + BURST_BYTES
    ticks = min(BURST_BYTES * 1_000_000_000 // rate // TICK_NANOSECONDS, 2**32 - 1)
    rates = struct.pack("=BBHhHI", 0, ETHERNET, 0, 0, 0, rate) + bytes(12)  # no peak rate
    parameters = rates + struct.pack("=III", min(waiting, 2**32 - 1), ticks, 0)
    options = attribute(TCA_TBF_PARMS, parameters) + attribute(TCA_TBF_BURST, struct.pack("=I", BURST_BYTES))
    body = struct.pack("=BxHiIII", socket.AF_UNSPEC, 0, link.number, HANDLE, TC_H_ROOT, 0)
    body += attribute(TCA_KIND, b"tbf\0") + attribute(TCA_OPTIONS, options)
    return Request(f"the bandwidth of {link.name}", RTM_NEWQDISC, CREATE | REPLACE, body)


def missing() -> str:
    """Blocking. Why this machine cannot limit a link's bandwidth; empty where it can. Nothing is left behind."""
    try:
        os.close(new_namespace(lambda: limit("lo", 1_000_000)))
    except OSError as error:
        return f"the kernel has no token bucket (modprobe sch_tbf): {error.strerror}"
    return ""
