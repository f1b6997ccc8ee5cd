"""`faas image quota` and `faas image scrub` against a real registry; the control API beside it is a fake."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from faas.oci.digest import Digest
from tests.support.cli import CommandLine
from tests.support.fake_api import INFO, TOKEN, FakeApi, Reply
from tests.support.registry import RegistryProcess, registry_process


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[RegistryProcess]:
    data = tmp_path / "registry"
    data.mkdir()
    (data / "admin-token").write_text(TOKEN)
    with registry_process(data, "basic") as running:
        yield running


@pytest.fixture
def faas(
    tmp_path: Path,
    registry: RegistryProcess,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[CommandLine]:
    with FakeApi() as api:
        api.replies["GET", "/v1/info"] = Reply({**INFO, "registry": registry.host})
        yield CommandLine(api, tmp_path, capsys, monkeypatch)


def test_a_quota_is_set_seen_enforced_and_taken_away(faas: CommandLine, registry: RegistryProcess) -> None:
    assert faas("image", "quota", "set", "team", "--logical", "2K", "--physical", "1k").out == "team\n"
    registry.push_blob("team/app", bytes(1000))
    data = bytes(100)
    refused = registry.call("POST", f"/v2/team/app/blobs/uploads/?digest={Digest.of(data)}", data)
    assert refused.status == 403
    header, row = faas("image", "quota", "ls").out.splitlines()
    assert header.split() == ["NAMESPACE", "LOGICAL", "PHYSICAL"]
    assert row.split() == ["team", "1000", "B", "of", "2.0", "KB", "1000", "B", "of", "1.0", "KB"]
    assert faas("image", "quota", "ls", "-o", "name").out == "team\n"
    assert json.loads(faas("image", "quota", "ls", "-o", "json").out)[0]["logical_bytes"] == 2048
    faas("image", "quota", "set", "team", "--logical", "1GiB")
    (row,) = faas("image", "quota", "ls").out.splitlines()[1:]
    assert "1000 B of 1.0 GB" in row
    assert "1000 B of any" in row
    faas("image", "quota", "rm", "team")
    assert "2.0 KB" not in faas("image", "quota", "ls").out
    faas("image", "quota", "rm", "team", code=3)
    for wrong in ([], ["--logical", "much"], ["--logical", "-1"], ["--physical", "1.5G"]):
        faas("image", "quota", "set", "team", *wrong, code=2)


def test_a_scrub_says_what_is_damaged_and_which_images_need_it(faas: CommandLine, registry: RegistryProcess) -> None:
    layer = b"a layer that goes bad"
    registry.push_image("team/app", "v1", layer)
    whole = faas("image", "scrub")
    assert whole.out.split() == ["DIGEST", "SIZE", "NEEDED", "BY"]
    assert "checked 2 blobs" in whole.err
    digest = Digest.of(layer)
    (registry.data / "blobs" / "sha256" / digest.hex[:2] / digest.hex).write_bytes(layer.upper())
    found = faas("image", "scrub", code=1)
    assert found.out.splitlines()[1].split() == [str(digest), "21", "B", "team/app:v1"]
    assert faas("image", "scrub", "--status", "-o", "name", code=1).out == f"{digest}\n"
    assert json.loads(faas("image", "scrub", "--status", "-o", "json", code=1).out)["pass"]["damaged"] == 1
    registry.push_blob("team/app", layer)
    faas("image", "scrub", "--status")
