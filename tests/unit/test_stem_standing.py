"""Which images and which sandboxes a runtime that was started ahead can serve."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from faas.oci import labels
from faas.oci.digest import Digest
from faas.oci.manifest import ImageConfig
from faas.oci.platform import architecture
from faas.spec import Network
from worker.drivers.base import PreparedImage, SandboxSpec
from worker.drivers.oci.standing import LAYERS_MOST, base_of, can_become, parked, standing
from worker.layers.store import UnpackedImage
from worker.memory.meminfo import says_short

DIGEST = Digest.of(b"base")
BASE = ImageConfig(
    architecture(),
    entrypoint=("/usr/bin/python3.11", "-I", "/opt/faas/python/bootstrap.py"),
    env=("PATH=/usr/bin", "LANG=C.UTF-8"),
    workdir="/var/task",
    labels={labels.BASE_STEM: labels.STEM_PROTOCOL},
)


def prepared(*layers: Path, config: ImageConfig = BASE) -> PreparedImage:
    return PreparedImage(f"runtime/python:3.11@{DIGEST}", config, UnpackedImage(DIGEST, config, layers))


STEM = parked(prepared(), "stem1")


def wanted(**changes: Any) -> SandboxSpec:
    env = {**STEM.env, "_HANDLER": "app.handler", **changes.pop("env", {})}
    return replace(STEM, id="i1", env=env, **changes)


def test_nothing_of_a_function_is_in_a_stem() -> None:
    assert (STEM.args, STEM.workdir, STEM.network) == (BASE.entrypoint, "/var/task", Network.OUTBOUND)
    assert STEM.env["PATH"] == "/usr/bin"
    assert not {name for name in STEM.env if name.startswith(("AWS_LAMBDA", "_H"))}


@pytest.mark.parametrize(
    "changes",
    [{}, {"memory_bytes": 1 << 30}, {"cpus": 2.0}, {"env": {"TZ": "Asia/Tokyo", "SECRET": "x", "NODE_PATH": "/opt"}}],
)
def test_what_a_stem_can_become(changes: dict[str, Any]) -> None:
    assert can_become(STEM, wanted(**changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"args": ("/bin/other",)},
        {"workdir": "/tmp"},
        {"user": (1000, 1000)},
        {"tmp_bytes": 1 << 20},
        {"memory_bytes": 64 << 20},
        {"pids": 64},
        {"open_files": 64},
        {"writable_root": True},
        {"network": Network.NONE},
        {"hostname": "other"},
        {"env": {"LD_PRELOAD": "/x.so"}},
        {"env": {"PYTHONHASHSEED": "1"}},
        {"env": {"NODE_OPTIONS": "--inspect"}},
        {"env": {"LANG": "C"}},
        {"env": {"LC_ALL": "C"}},
    ],
)
def test_what_a_stem_cannot_become(changes: dict[str, Any]) -> None:
    assert not can_become(STEM, wanted(**changes))


def test_a_stem_becomes_what_its_client_runs_a_handler_or_an_application() -> None:
    spec = wanted()
    neither = replace(spec, env={k: v for k, v in spec.env.items() if k != "_HANDLER"})
    assert not can_become(STEM, neither)
    assert can_become(STEM, replace(neither, env={**neither.env, "FAAS_APP": "main:app"}))


@pytest.mark.parametrize(
    ("label", "fine"),
    [
        (f"runtime/python:3.11@{DIGEST}", True),
        ("runtime/python:3.11", False),  # a tag moves
        (f"mine/python:3.11@{DIGEST}", False),
        (f"elsewhere.example/runtime/python@{DIGEST}", False),
        ("", False),
        ("not a reference @", False),
    ],
)
def test_only_a_base_of_this_server_counts(label: str, fine: bool) -> None:
    assert (base_of(replace(BASE, labels={labels.BASE: label})) is not None) is fine


def folders(layer: Path, *names: str) -> None:
    for name in names:
        (layer / name).mkdir(parents=True)
        for folder in (layer / name, (layer / name).parent):
            folder.chmod(0o755)


def link(layer: Path) -> None:
    folders(layer, "var", "elsewhere")
    (layer / "var" / "task").symlink_to("/etc")


def upper_link(layer: Path) -> None:
    layer.mkdir()
    (layer / "var").symlink_to("/")


def closed(layer: Path) -> None:
    folders(layer, "var/task")
    (layer / "var").chmod(0o700)


def file(layer: Path) -> None:
    folders(layer, "var")
    (layer / "var" / "task").write_text("")


@pytest.mark.parametrize(
    "make",
    [
        link,
        upper_link,
        closed,
        file,
        lambda layer: folders(layer, "var/task", "etc"),
        lambda layer: folders(layer, "var/task", "var/lib"),
        lambda layer: folders(layer, "opt/faas"),
    ],
)
@pytest.mark.root
def test_a_layer_with_anything_but_code_is_no_function_of_the_base(
    tmp_path: Path, make: Callable[[Path], None]
) -> None:
    make(tmp_path / "code")
    assert (
        standing(UnpackedImage(DIGEST, BASE, (tmp_path / "base", tmp_path / "code")), prepared(tmp_path / "base"))
        is None
    )


@pytest.mark.root
def test_code_and_dependencies_and_the_names_they_bring(tmp_path: Path) -> None:
    folders(tmp_path / "deps", "opt/python/boto")
    folders(tmp_path / "code", "var/task")
    (tmp_path / "code/var/task/app.py").write_text("")
    image = UnpackedImage(DIGEST, BASE, (tmp_path / "base", tmp_path / "deps", tmp_path / "code"))
    found = standing(image, prepared(tmp_path / "base"))
    assert found is not None
    assert (found.places, found.names) == (("opt/python", "var/task"), {"boto", "app"})
    assert found.layers == image.layers[1:]
    assert standing(image, prepared(tmp_path / "other")) is None
    old = replace(BASE, labels={})
    assert standing(image, prepared(tmp_path / "base", config=old)) is None


def test_memory_is_short_below_a_tenth() -> None:
    text = "MemTotal:       1000 kB\nMemFree:          10 kB\nMemAvailable:    {} kB\nHugePages_Total:       0\n"
    assert says_short(text.format(99))
    assert not says_short(text.format(101))


@pytest.mark.root
def test_more_layers_than_can_be_mounted_are_no_function_of_the_base(tmp_path: Path) -> None:
    own = [tmp_path / str(number) for number in range(LAYERS_MOST + 1)]
    for layer in own:
        folders(layer, "var/task")
    for count, fits in ((LAYERS_MOST, True), (LAYERS_MOST + 1, False)):
        image = UnpackedImage(DIGEST, BASE, (tmp_path / "base", *own[:count]))
        assert (standing(image, prepared(tmp_path / "base")) is not None) == fits
