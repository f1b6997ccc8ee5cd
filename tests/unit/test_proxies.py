"""Whose word on the client's address is believed: the rightmost address that is no trusted proxy's is the client."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from faas.proxies import Client, TrustedProxies

TRUSTED = TrustedProxies.parse("10.0.0.0/8, 192.168.1.1 fd00::/8")
CLIENT, OTHER, PROXY, NEXT = "203.0.113.7", "198.51.100.9", "10.1.2.3", "10.9.9.9"


def found(peer: str, *, forwarded_for: str = "", forwarded: str = "", proto: str = "") -> Client:
    return TRUSTED.client(
        peer,
        "http",
        forwarded_for=[forwarded_for] if forwarded_for else [],
        forwarded=[forwarded] if forwarded else [],
        forwarded_proto=[proto] if proto else [],
    )


def test_a_stranger_is_believed_nothing() -> None:
    assert found(OTHER, forwarded_for=CLIENT, forwarded=f"for={CLIENT}", proto="https") == Client(
        OTHER, "http", (OTHER,)
    )
    assert TrustedProxies().client(PROXY, "http", forwarded_for=[CLIENT]) == Client(PROXY, "http", (PROXY,))


@pytest.mark.parametrize(
    ("forwarded_for", "chain"),
    [
        (CLIENT, (CLIENT, PROXY)),
        (f"{CLIENT}, {NEXT}", (CLIENT, NEXT, PROXY)),
        (f"127.0.0.1, {OTHER}, {CLIENT},{NEXT}", (CLIENT, NEXT, PROXY)),  # what stands before it is made up
        (f"{OTHER}, made up, {NEXT}", (NEXT, PROXY)),  # nobody trusted has named who called NEXT
        (f"{NEXT}, 192.168.1.1", (NEXT, "192.168.1.1", PROXY)),  # all are ours: the first one asks
        (f"{CLIENT}:4711", (CLIENT, PROXY)),
        ("2001:db8::1", ("2001:db8::1", PROXY)),
        ("[2001:db8::1]:80", ("2001:db8::1", PROXY)),
        ("::ffff:203.0.113.7", (CLIENT, PROXY)),
        ("fd00::1, ::ffff:10.0.0.1", ("fd00::1", "10.0.0.1", PROXY)),
        ("unknown", (PROXY,)),
        ("_hidden", (PROXY,)),
        ("203.0.113.7.1", (PROXY,)),
        (" , ", (PROXY,)),
    ],
)
def test_the_rightmost_address_that_is_not_trusted_is_the_client(forwarded_for: str, chain: tuple[str, ...]) -> None:
    client = found(PROXY, forwarded_for=forwarded_for)
    assert (client.chain, client.address) == (chain, chain[0])


@pytest.mark.parametrize(
    ("forwarded", "address"),
    [
        (f"for={CLIENT}", CLIENT),
        (f"For={CLIENT};proto=http;by=10.0.0.1", CLIENT),
        (f"for={OTHER}, for={CLIENT}, proto=https;for={NEXT}", CLIENT),
        ('for="[2001:db8::1]:4711"', "2001:db8::1"),
        (f'for="{CLIENT}:99"', CLIENT),
        (f'by=", for={OTHER}, for={CLIENT}', CLIENT),  # a quote that the client opened hides nothing
        ("for=_secret", PROXY),
        ("proto=https", PROXY),
    ],
)
def test_forwarded_is_read_in_the_same_way(forwarded: str, address: str) -> None:
    assert found(PROXY, forwarded=forwarded).address == address


def test_of_both_lists_the_one_that_proxies_write_counts() -> None:
    assert found(PROXY, forwarded_for=CLIENT, forwarded=f"for={OTHER}").address == CLIENT


def test_several_fields_are_one_list() -> None:
    assert TRUSTED.client(PROXY, "http", forwarded_for=[OTHER, CLIENT, NEXT]).chain == (CLIENT, NEXT, PROXY)


def test_the_scheme_is_what_the_last_proxy_says() -> None:
    assert found(PROXY, forwarded_for=CLIENT, proto="https").scheme == "https"
    assert found(PROXY, forwarded_for=CLIENT, proto="http, HTTPS").scheme == "https"
    assert found(PROXY, forwarded_for=CLIENT, proto="gopher").scheme == "http"


@given(st.lists(st.text(max_size=40), max_size=5), st.lists(st.text(max_size=40), max_size=5))
def test_whatever_a_client_writes_it_is_who_the_trusted_proxy_says(before: list[str], forwarded: list[str]) -> None:
    said = ", ".join([*before, CLIENT])
    client = TRUSTED.client(PROXY, "http", forwarded_for=[*before, said], forwarded=forwarded)
    assert client.chain == (CLIENT, PROXY)
    client = TRUSTED.client(PROXY, "http", forwarded=[*forwarded, ",".join([*before, f"for={CLIENT}"])])
    assert client.chain == (CLIENT, PROXY)


def test_functions_are_told_in_both_forms() -> None:
    client = Client(CLIENT, "https", (CLIENT, NEXT, "fd00::1"))
    assert client.forwarded_for == f"{CLIENT}, {NEXT}, fd00::1"
    assert client.forwarded("a.example") == f'for={CLIENT};host=a.example;proto=https, for={NEXT}, for="[fd00::1]"'
    assert client.forwarded("a.example:8080").startswith(f'for={CLIENT};host="a.example:8080";proto=https')
    assert Client("", "http", ("",)).forwarded("") == "for=unknown;proto=http"


@pytest.mark.parametrize("text", ["10.0.0.0/33", "proxy.example", "10.0.0.1/8", "*"])
def test_what_is_no_network_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"networks such as 10\.0\.0\.0/8"):
        TrustedProxies.parse(text)
