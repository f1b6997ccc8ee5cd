"""Listening sockets."""

from __future__ import annotations

import os

import pytest

from faas.listener import AddressTaken, bound, holder, listen
from faas.settings import Address


def test_port_0_becomes_a_real_port() -> None:
    with listen(Address("127.0.0.1", 0)) as listener:
        address = bound(listener)
        assert address.host == "127.0.0.1"
        assert address.port > 0


def test_a_taken_port_says_which_process_holds_it() -> None:
    with listen(Address("127.0.0.1", 0)) as first, pytest.raises(AddressTaken) as refused:
        listen(bound(first))
    assert f"pid {os.getpid()}" in refused.value.message


def test_nobody_holds_a_free_port() -> None:
    with listen(Address("127.0.0.1", 0)) as listener:
        port = bound(listener).port
    assert holder(port) == ""
