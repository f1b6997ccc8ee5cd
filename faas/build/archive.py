"""A runtime base as an OCI layout in a file, for a machine without a network: `python -m faas.build.archive NAME FILE`.

It needs Python alone, as `faas.build.recipe` does.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from faas.build import rootfs
from faas.build.recipe import build, recipe
from faas.oci.descriptor import Descriptor
from faas.oci.layout import entry, open_layout

CHUNK = 1 << 20


def write_base(name: str, target: Path) -> str:
    """Blocking. Writes what `python`, `node` … is on this machine into `target`, a new FILE.tar.

    Returns what it is called there: `runtime/python:3.11`. Raises NotFound, InvalidInput.
    """
    made = recipe(name)
    called = f"{made.repository}:{made.tag}"
    with rootfs.work_folder() as work, open_layout(target) as layout:
        built = build(made, work)
        image = built.manifest.descriptor()
        blobs: list[tuple[Descriptor, Iterable[bytes]]] = [
            (image, (built.manifest.raw,)),
            (built.config_descriptor, (built.config,)),
            *((layer.descriptor, _chunks(layer.path)) for layer in built.layers),
        ]
        layout.begin([entry(image, called)], [blob for blob, _ in blobs])
        for blob, chunks in blobs:
            writer = layout.blob(blob)
            for chunk in chunks:
                writer.write(chunk)
            writer.commit()
        layout.finish()
    return called


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            yield chunk


if __name__ == "__main__":
    sys.stdout.write(write_base(sys.argv[1], Path(sys.argv[2])) + "\n")
