"""Choosing addresses and name servers; the namespaces themselves are tested from inside, with root."""

from __future__ import annotations

import ipaddress
import struct
from pathlib import Path

import pytest

from faas.errors import Unavailable
from worker.network import shaping
from worker.network.egress import SHARED_SPACE, Egress, choose_subnet
from worker.network.netlink import Interface
from worker.network.resolver import hosts, resolv_conf, servers


def test_a_server_keeps_its_range_and_two_servers_differ() -> None:
    first, second = choose_subnet("aaaaaaaa", []), choose_subnet("bbbbbbbb", [])
    assert first == choose_subnet("aaaaaaaa", [])
    assert first != second
    assert first.prefixlen == 20
    assert first.subnet_of(SHARED_SPACE)


def test_ranges_in_use_are_avoided() -> None:
    first = choose_subnet("aaaaaaaa", [])
    other = choose_subnet("aaaaaaaa", [first, ipaddress.IPv4Network("10.0.0.0/8")])
    assert not other.overlaps(first)


def test_no_free_range_is_said() -> None:
    with pytest.raises(Unavailable, match=r"no free range"):
        choose_subnet("aaaaaaaa", [SHARED_SPACE])


def test_servers_that_open_at_once_have_a_range_each_though_none_has_an_address_yet() -> None:
    first, second, third = Egress("one"), Egress("two"), Egress("three")
    wanted = choose_subnet("aaaaaaaa", [], first._claims)
    other = choose_subnet("aaaaaaaa", [], second._claims)
    assert not wanted.overlaps(other)
    first.close()
    assert choose_subnet("aaaaaaaa", [], third._claims) == wanted, "it is free again"
    for one in (second, third):
        one.close()


def test_addresses_rest_before_they_are_used_again() -> None:
    egress = Egress("aaaaaaaa")
    egress.subnet = ipaddress.IPv4Network("100.64.0.0/28")
    taken = [egress.take() for _ in range(12)]
    assert taken[0] == 2  # after the network's address and the gateway's
    egress.give_back(taken[5])
    egress.give_back(taken[1])
    assert egress.take() == 14
    assert egress.take() == taken[5]
    assert egress.take() == taken[1]
    with pytest.raises(Unavailable, match="in use"):
        egress.take()


def test_names_of_links_fit_the_kernels_15_characters() -> None:
    egress = Egress("a1b2c3d4e5")
    assert len(egress.prefix + "fffff") == 15
    assert egress.link_name() != egress.link_name()


def resolver(folder: Path, name: str, text: str) -> Path:
    (folder / name).write_text(text)
    return folder / name


def test_name_servers_beyond_loopback_are_kept_with_their_options(tmp_path: Path) -> None:
    source = resolver(
        tmp_path, "a", "# x\nnameserver 127.0.0.1\nnameserver 192.0.2.53\nsearch corp.example\noptions edns0\n"
    )
    assert resolv_conf((source,)) == "nameserver 192.0.2.53\nsearch corp.example\noptions edns0\n"
    assert servers((source,)) == ["192.0.2.53"]


def test_a_stub_on_loopback_gives_way_to_what_is_behind_it(tmp_path: Path) -> None:
    stub = resolver(tmp_path, "a", "nameserver 127.0.0.53\n")
    real = resolver(tmp_path, "b", "nameserver 198.51.100.1\n")
    assert resolv_conf((stub, real)) == "nameserver 198.51.100.1\n"


@pytest.mark.parametrize("line", ["nameserver ::1", "nameserver fe80::1%eth0", "nameserver", "nameserver nonsense"])
def test_what_an_instance_cannot_reach_is_left_out(tmp_path: Path, line: str) -> None:
    assert resolv_conf((resolver(tmp_path, "a", line + "\n"), tmp_path / "absent")) == ""


def test_an_instance_knows_its_own_name() -> None:
    assert "127.0.0.1\tlocalhost my-name\n" in hosts("my-name")


def test_bandwidth_is_a_share_of_memory_as_the_cpu_is() -> None:
    assert shaping.share(1769 << 20, 1000) == 1_000_000_000
    assert shaping.share(128 << 20, 1000) == 72_357_263
    assert shaping.share(10_240 << 20, 1000) == 5_788_581_119
    assert shaping.share(128 << 20, 0) == 0  # no limit


@pytest.mark.parametrize("bits", [1, 8_000, 72_000_000, 10**12])
def test_the_kernel_is_told_a_rate_that_its_fields_hold(bits: int) -> None:
    request = shaping.queue(Interface("eth0", 3), bits)
    assert (request.kind, request.flags) == (shaping.RTM_NEWQDISC, 0x500)
    assert struct.unpack_from("=i", request.body, 4) == (3,)
    assert b"tbf\0" in request.body
