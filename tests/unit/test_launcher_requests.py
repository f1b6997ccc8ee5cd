"""What the launcher lets a server ask for: the way there and back, and its bounds."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from faas.errors import InvalidInput
from faas.oci.manifest import ImageConfig
from faas.secret import Given, Secret
from faas.spec import Network
from worker.drivers.base import PreparedImage, SandboxSpec
from worker.launcher import requests

IMAGE = PreparedImage("hello@sha256:" + "0" * 64, ImageConfig("amd64"), None)
SPEC = SandboxSpec(
    id="a1b2",
    image=IMAGE,
    args=("/bin/sh", "-c", "", "ü\udc80"),
    env={"A": "", "B": "x=y", "C": "\udcff"},
    workdir="/var/task",
    memory_bytes=128 << 20,
    cpus=0.5,
    tmp_bytes=512 << 20,
    user=(1000, 1000),
    writable_root=True,
    network=Network.NONE,
    labels={"faas.function": "hello"},
    secrets=Given({"db-password": Secret("geheim\n")}, {"DB_PASSWORD": "db-password"}),
)


def sent(spec: SandboxSpec, **changes: Any) -> dict[str, Any]:
    """As it comes out of a packet."""
    return dict(json.loads(json.dumps({**requests.written(spec), **changes})))


def test_a_sandbox_is_what_was_asked_for() -> None:
    assert requests.spec(sent(SPEC), IMAGE) == SPEC


def test_the_largest_command_line_that_a_revision_may_have_passes_and_nothing_above_it() -> None:
    largest = replace(SPEC, args=tuple("x" * 131_071 for _ in range(7)), env={})
    assert requests.spec(sent(largest), IMAGE) == largest
    for changes in ({"args": ["x" * 131_072]}, {"args": ["x" * 131_000] * 8 + ["y" * 3000]}, {"args": ["é" * 65_536]}):
        with pytest.raises(InvalidInput, match="bytes"):
            requests.spec(sent(SPEC, **changes), IMAGE)


def test_a_variable_counts_with_its_name() -> None:
    name, value = "N" * 100_000, "v" * 31_070
    assert requests.spec(sent(SPEC, env={name: value}), IMAGE).env == {name: value}
    with pytest.raises(InvalidInput, match="bytes"):
        requests.spec(sent(SPEC, env={name: value + "vv"}), IMAGE)


@pytest.mark.parametrize(
    "secrets",
    [
        {"values": {}},
        {"values": {}, "variables": {}, "folder": "/etc"},
        {"values": {"../etc/passwd": "geheim"}, "variables": {}},
        {"values": {"a/b": "geheim"}, "variables": {}},
        {"values": {"": "geheim"}, "variables": {}},
        {"values": {"a": "geheim"}, "variables": {"A": "b"}},
        {"values": {"a": "geheim"}, "variables": {"A=B": "a"}},
        {"values": {"a": "geheim" * 11_000}, "variables": {}},
        {"values": {"a": "gehe\0im"}, "variables": {}},
        {"values": {"a": ["geheim"]}, "variables": {}},
        {"values": {f"a{n}": "geheim" for n in range(51)}, "variables": {}},
        {"values": {"a": "geheim"}, "variables": {f"A{n}": "a" for n in range(51)}},
        {"values": {"a": "x" * 60_000}, "variables": {f"A{n}": "a" for n in range(20)}},
    ],
)
def test_secrets_are_files_with_plain_names_and_bounded_and_no_error_repeats_one(secrets: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput) as caught:
        requests.spec(sent(SPEC, secrets=secrets), IMAGE)
    assert "geheim" not in caught.value.message


def test_a_host_name_is_not_the_servers_to_choose() -> None:
    with pytest.raises(InvalidInput, match="host name"):
        requests.written(replace(SPEC, hostname="gateway"))
    assert requests.spec(sent(SPEC, hostname="gateway"), IMAGE).hostname == "function"


@pytest.mark.parametrize("key", requests.written(SPEC))
@pytest.mark.parametrize("value", [None, [], {}, "", -1, 1.5, True, [None], {"a": None}, "\0"], ids=repr)
def test_a_value_of_another_kind_is_refused_and_breaks_nothing(key: str, value: Any) -> None:
    fitting: dict[str, list[Any]] = {
        "env": [{}],
        "labels": [{}],
        "writable_root": [True],
        "terminal": [True],
        "cpus": [1.5],
    }
    if value in fitting.get(key, []) or key == "image":
        return
    with pytest.raises(InvalidInput):
        requests.spec(sent(SPEC, **{key: value}), IMAGE)
