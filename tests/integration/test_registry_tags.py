"""Lists of names: end-8 and Docker's catalog, in order and in pages that end."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.registry import RegistryProcess, registry_process

NAMES = ["0", "A", "Z", "_", "a", "a.b", "b", "v1", "v10", "v2"]  # in ASCII order


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RegistryProcess]:
    with registry_process(tmp_path_factory.mktemp("registry")) as running:
        for tag in reversed(NAMES):
            running.push_image("tagged", tag)
        running.push_blob("without", b"no tag here")
        for letter in "abc":
            running.push_image(f"team/{letter}", "v1")
        yield running


@pytest.mark.parametrize(
    ("query", "names", "more"),
    [
        ("", NAMES, False),
        ("?n=3", NAMES[:3], True),
        ("?n=10", NAMES, False),
        ("?n=9", NAMES[:9], True),
        ("?n=11", NAMES, False),
        ("?n=0", [], False),
        ("?n=0&last=a", [], False),
        ("?last=a", NAMES[5:], False),
        ("?n=2&last=a", NAMES[5:7], True),
        ("?last=aa", NAMES[6:], False),  # need not be there
        ("?last=zzz", [], False),
        ("?last=", NAMES, False),
        ("?n=2147483648", NAMES, False),
        ("?n=9223372036854775808", NAMES, False),
    ],
)
def test_tags_come_in_order_and_in_pages(registry: RegistryProcess, query: str, names: list[str], more: bool) -> None:
    reply = registry.call("GET", f"/v2/tagged/tags/list{query}")
    assert (reply.status, reply.json()) == (200, {"name": "tagged", "tags": names})
    assert ("Link" in reply.headers) is more


@pytest.mark.parametrize("path", ["/v2/tagged/tags/list", "/v2/_catalog", f"/v2/tagged/referrers/sha256:{'0' * 64}"])
@pytest.mark.parametrize("n", ["-1", "x", "", "1.5", "0x10", "%D9%A3", "1" * 20])
def test_what_is_no_number_of_names_is_said(registry: RegistryProcess, path: str, n: str) -> None:
    reply = registry.call("GET", f"{path}?n={n}")
    assert (reply.status, reply.code) == (400, "UNSUPPORTED")


@pytest.mark.parametrize(("path", "key"), [("/v2/tagged/tags/list", "tags"), ("/v2/_catalog", "repositories")])
@pytest.mark.parametrize("n", [1, 2, 4])
def test_whoever_follows_the_links_sees_each_name_once(registry: RegistryProcess, path: str, key: str, n: int) -> None:
    whole = registry.call("GET", path).json()[key]
    assert len(whole) > 4
    seen: list[str] = []
    following = f"{path}?n={n}"
    while following:
        reply = registry.call("GET", following)
        assert 0 < len(reply.json()[key]) <= n
        seen += reply.json()[key]
        link = reply.headers.get("Link", "")
        assert not link or link.endswith('; rel="next"')
        following = link.partition("<")[2].partition(">")[0]
    assert seen == whole == sorted(whole)


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/v2/without/tags/list", 200, None),
        ("/v2/nobody/tags/list", 404, "NAME_UNKNOWN"),
        ("/v2/nobody/tags/list?n=0", 404, "NAME_UNKNOWN"),
    ],
)
def test_a_repository_without_tags_is_no_unknown_one(
    registry: RegistryProcess, path: str, status: int, code: str | None
) -> None:
    reply = registry.call("GET", path)
    assert reply.status == status
    if code is None:
        assert reply.json() == {"name": "without", "tags": []}
    else:
        assert reply.code == code


def test_a_deleted_tag_is_off_the_list_at_once(registry: RegistryProcess) -> None:
    digest, _ = registry.push_image("deleted", "one")
    registry.push_image("deleted", "two")
    registry.push_image("deleted", "three")
    assert registry.call("DELETE", "/v2/deleted/manifests/one").status == 202
    assert registry.call("GET", "/v2/deleted/manifests/one").status == 404
    assert registry.call("DELETE", "/v2/deleted/manifests/one").code == "MANIFEST_UNKNOWN"
    assert registry.call("GET", "/v2/deleted/tags/list").json()["tags"] == ["three", "two"]
    assert registry.call("GET", f"/v2/deleted/manifests/{digest}").status == 200
    assert registry.call("DELETE", f"/v2/deleted/manifests/{digest}").status == 202
    assert registry.call("GET", "/v2/deleted/manifests/two").status == 404
    assert registry.call("GET", "/v2/deleted/tags/list").json()["tags"] == []
