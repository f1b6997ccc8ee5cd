"""The topmost layer of every instance: mount points, and /etc/resolv.conf and /etc/hosts of this machine.

As a layer, and not as files mounted over the image's: it holds for images that have no /proc or whose resolv.conf is a
link to somewhere, no runtime ever resolves a path inside a stranger's root for it, and it costs no mount.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
from pathlib import Path

from worker.network.resolver import RESOLV_CONFS, hosts, resolv_conf, stamp

FOLDERS = {"proc": 0o755, "dev": 0o755, "sys": 0o755, "etc": 0o755, "tmp": 0o1777}


class Furniture:
    """Layers below `folder`, one per content: instances that run keep theirs when the host's resolver changes."""

    def __init__(self, folder: Path, sources: tuple[Path, ...] = RESOLV_CONFS) -> None:
        self._folder = folder
        self._sources = sources
        self._stamp: tuple[tuple[int, int], ...] = ()
        self._layer: dict[tuple[str, int, int], Path] = {}

    def layer(self, hostname: str, owner: tuple[int, int] = (0, 0)) -> Path:
        """Blocking, but nearly always only one stat. The layer for an instance of this name, all of it `owner`'s.

        It is made so, not id-mapped like an image's layers: it lies on a tmpfs, which Linux maps only from 6.3 on.
        """
        if (now := stamp(self._sources)) != self._stamp:
            self._stamp = now
            self._layer = {}
        key = (hostname, *owner)
        if key not in self._layer:
            self._layer[key] = self._make(resolv_conf(self._sources), hosts(hostname), hostname, owner)
        return self._layer[key]

    def _make(self, resolver: str, host_table: str, hostname: str, owner: tuple[int, int]) -> Path:
        content = "\0".join((resolver, host_table, hostname, *map(str, owner)))
        final = self._folder / hashlib.sha256(content.encode()).hexdigest()[:8]
        if final.exists():
            return final
        temporary = self._folder / secrets.token_hex(8)
        temporary.mkdir(parents=True)
        temporary.chmod(0o755)
        for name, mode in FOLDERS.items():
            (temporary / name).mkdir()
            (temporary / name).chmod(mode)
        files = {"resolv.conf": resolver, "hosts": host_table, "hostname": hostname + "\n"}
        for name, text in files.items():
            path = temporary / "etc" / name
            path.write_text(text)
            path.chmod(0o644)
        for path in (temporary, *temporary.rglob("*")):
            os.chown(path, *owner)
        try:
            temporary.rename(final)
        except OSError:  # another thread made the same
            shutil.rmtree(temporary)
        return final
