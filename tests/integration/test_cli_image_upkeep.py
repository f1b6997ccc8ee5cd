"""`faas image quota`, `scrub` and `retention` against a real registry; the control API beside it is a fake."""

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
    faas("image", "quota", "set", "team", "--logical", "1TiB")
    (row,) = faas("image", "quota", "ls").out.splitlines()[1:]
    assert "1000 B of 1.0 TB" in row
    assert "1000 B of 1.0 KB" in row, "what is not said stays as it is"
    faas("image", "quota", "set", "team", "--physical", "none")
    assert "1000 B of any" in faas("image", "quota", "ls").out
    assert "quota rm team" in faas("image", "quota", "set", "team", "--logical", "none", code=2).err
    assert "such as team" in faas("image", "quota", "set", "team/app", "--logical", "1G", code=2).err
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


def test_retention_rules_are_set_seen_and_taken_away(faas: CommandLine) -> None:
    retention = ("image", "retention")
    assert faas(*retention, "set", "app", "--keep-last", "2", "--keep-days", "1.5").out == "app\n"
    faas(*retention, "set", "app", "--keep-last", "none", "--immutable", "--movable", "latest", "--movable", "dev-*")
    faas(*retention, "set", "team/*", "--keep-last", "5", "--keep-days", "30", "--untagged-days", "7")
    lines = faas(*retention, "ls").out.splitlines()
    assert lines[0].split() == ["PATTERN", "TAGS", "KEPT", "UNTAGGED", "IMMUTABLE"]
    assert lines[1].split() == ["app", "1.5", "days", "default", "all", "but", "latest,", "dev-*"]
    assert lines[2].split() == ["team/*", "the", "last", "5", "and", "30", "days", "7", "days", "no"]
    assert faas(*retention, "ls", "-o", "name").out == "app\nteam/*\n"
    faas(*retention, "set", "app", "--no-immutable")
    assert json.loads(faas(*retention, "ls", "-o", "json").out)[0]["movable"] == []
    assert faas(*retention, "rm", "team/*").out == "team/*\n"
    faas(*retention, "rm", "team/*", code=3)
    for wrong in ([], ["--keep-last", "few"], ["--keep-last", "0"], ["--movable", "latest"]):
        faas(*retention, "set", "other", *wrong, code=2)


def test_a_retention_preview_says_what_a_run_then_takes(faas: CommandLine, registry: RegistryProcess) -> None:
    old, _ = registry.push_image("app", "v1", b"the old layer")
    new, _ = registry.push_image("app", "v2", b"the new layer")
    faas("image", "retention", "set", "app", "--keep-last", "1", "--untagged-days", "0")
    preview = faas("image", "retention", "preview")
    assert preview.out.splitlines()[1].split()[:3] == ["app", "v1", old[:19]]
    assert preview.out.endswith("  1 newer tags, the last 1 are kept\n")
    assert "1 tags, 0 images, 0 blobs; would free 0 B" in preview.err  # a client was told a moment ago that it is here
    assert json.loads(faas("image", "retention", "preview", "-o", "json").out)["counts"]["tags"] == 1
    assert faas("image", "retention", "preview", "-o", "name").out == "app:v1\n"
    ran = faas("image", "retention", "run")
    assert ran.out == "freed 0 B\n"
    assert ran.err.endswith("1 tags, 0 images, 0 blobs\n")
    assert registry.call("GET", "/v2/app/tags/list").json()["tags"] == ["v2"]
    assert registry.call("HEAD", f"/v2/app/manifests/{new}").status == 200
    assert json.loads(faas("image", "retention", "run", "-o", "json").out)["tags"] == 0
