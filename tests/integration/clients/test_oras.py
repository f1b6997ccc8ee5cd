"""oras (Python): artifacts pushed in one piece and in chunks, pulled, listed, deleted."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from oras.client import OrasClient

from faas.oci.digest import Digest
from tests.support.recorded_registry import RecordedRegistry


@pytest.fixture
def oras(registry: RecordedRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[OrasClient]:
    monkeypatch.chdir(tmp_path)  # it takes files below the folder that it runs in alone
    client = OrasClient(registry.host, insecure=True, auth_backend="basic" if registry.auth == "basic" else "token")
    if registry.auth != "none":
        client.auth.set_basic_auth("admin", registry.token)
    yield client
    client.session.close()


@pytest.mark.parametrize("chunked", [False, True], ids=["whole", "chunked"])
def test_an_artifact_comes_back_as_it_was_pushed(
    oras: OrasClient, registry: RecordedRegistry, name: str, tmp_path: Path, chunked: bool
) -> None:
    (tmp_path / "report.txt").write_text("first line\n" * 100)
    target = f"{registry.host}/{name}:v1"
    annotations = {"org.example.kind": "report"}
    with registry.recorded() as asked:
        pushed = oras.push(
            target,
            files=["report.txt:text/plain"],
            manifest_annotations=annotations,
            do_chunked=chunked,
            chunk_size=500,
            quiet=True,
        )
    assert pushed.status_code == 201
    chunks = [one for one in asked if one.method == "PATCH" and one.status == 202]
    assert len(chunks) == (3 if chunked else 0)
    stored = registry.call("GET", f"/v2/{name}/manifests/v1")
    assert pushed.headers["Docker-Content-Digest"] == str(Digest.of(stored.body))
    assert stored.json()["annotations"] == annotations
    oras.pull(target, outdir=str(tmp_path / "pulled"))
    assert (tmp_path / "pulled" / "report.txt").read_bytes() == (tmp_path / "report.txt").read_bytes()


def test_tags_are_listed_and_deleted(oras: OrasClient, registry: RecordedRegistry, name: str) -> None:
    for tag in ("v1", "v2"):
        registry.push_image(name, tag, tag.encode())
    repository = f"{registry.host}/{name}"
    assert oras.get_tags(repository) == ["v1", "v2"]
    assert oras.delete_tag(repository, "v1")
    assert oras.get_tags(repository) == ["v2"]
