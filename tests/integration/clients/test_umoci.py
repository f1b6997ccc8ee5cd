"""umoci unpacks what skopeo pulled: the files are those that went in."""

from __future__ import annotations

from pathlib import Path

import pytest

from faas.oci.digest import Digest
from tests.support.commands import run
from tests.support.images import tar_of
from tests.support.recorded_registry import RecordedRegistry
from tests.support.samples import Samples
from tests.support.skopeo import Skopeo

pytestmark = [pytest.mark.skopeo, pytest.mark.umoci]


def test_a_pulled_layout_unpacks_to_the_files_that_were_pushed(
    registry: RecordedRegistry, name: str, tmp_path: Path
) -> None:
    lower = tar_of({"etc": None, "etc/one": b"1", "etc/two": b"2", "link": "etc/one", "gone": b"gone"})
    upper = tar_of({"etc": None, "etc/two": b"two", ".wh.gone": b""})
    samples, skopeo = Samples(), Skopeo(registry)
    image = samples.image(lower, upper, cmd=("/etc/one",), env=("A=b",))
    skopeo.copy(f"oci:{samples.layout(tmp_path / 'pushed', image)}:v1", skopeo.at(f"{name}:v1"))
    skopeo.copy(skopeo.at(f"{name}:v1"), f"oci:{tmp_path}/pulled:v1")
    run("umoci", "unpack", "--rootless", "--image", f"{tmp_path}/pulled:v1", tmp_path / "bundle")
    root = tmp_path / "bundle" / "rootfs"
    files = {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}
    assert files == {"etc/one": b"1", "etc/two": b"two", "link": b"1"}
    assert (root / "link").readlink() == Path("etc/one")
    assert "v1" in run("umoci", "ls", "--layout", tmp_path / "pulled")


def test_what_umoci_changed_is_pushed_and_pulled(registry: RecordedRegistry, name: str, tmp_path: Path) -> None:
    samples, skopeo = Samples(), Skopeo(registry)
    layout = samples.layout(tmp_path / "layout", samples.image(tar_of({"old": b"old"})))
    run("umoci", "unpack", "--rootless", "--image", f"{layout}:v1", tmp_path / "bundle")
    (tmp_path / "bundle" / "rootfs" / "new").write_text("new")
    run("umoci", "repack", "--image", f"{layout}:v2", tmp_path / "bundle")
    skopeo.copy(f"oci:{layout}:v2", skopeo.at(f"{name}:v2"))
    pushed = registry.call("GET", f"/v2/{name}/manifests/v2")
    assert len(pushed.json()["layers"]) == 2
    skopeo.copy(skopeo.at(f"{name}:v2"), f"oci:{tmp_path}/pulled:v2")
    blobs = tmp_path / "pulled" / "blobs" / "sha256"
    assert (blobs / Digest.of(pushed.body).hex).read_bytes() == pushed.body
    run("umoci", "unpack", "--rootless", "--image", f"{tmp_path}/pulled:v2", tmp_path / "again")
    assert (tmp_path / "again" / "rootfs" / "new").read_text() == "new"
