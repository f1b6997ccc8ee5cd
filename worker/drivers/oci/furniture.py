"""The topmost layer of every instance: mount points, and /etc/resolv.conf and /etc/hosts of this machine.

As a layer, and not as files mounted over the image's: it holds for images that have no /proc or whose resolv.conf is a
link to somewhere, no runtime ever resolves a path inside a stranger's root for it, and it costs no mount.
"""

from __future__ import annotations

import hashlib
import secrets
import shutil
from pathlib import Path

from worker.network.resolver import RESOLV_CONFS, hosts, resolv_conf, stamp

SHORT = "f"  # the folder of them
FOLDERS = {"proc": 0o755, "dev": 0o755, "sys": 0o755, "etc": 0o755, "tmp": 0o1777}
SECRETS = ("run", "run/secrets", "var", "var/openfaas", "var/openfaas/secrets")  # of mode 0755


class Furniture:
    """Layers, one per content: instances that run keep theirs when the host's resolver changes.

    They lie among the images' in `layers`, so that they are mapped like them; `links` gets a short name for them.
    """

    def __init__(self, layers: Path, links: Path, sources: tuple[Path, ...] = RESOLV_CONFS) -> None:
        self._real = layers / SHORT
        self._folder = links / SHORT
        self._sources = sources
        self._stamp: tuple[tuple[int, int], ...] = ()
        self._layer: dict[tuple[str, bool], Path] = {}

    def open(self) -> None:
        """Blocking. Begin afresh; nothing uses them yet."""
        shutil.rmtree(self._real, ignore_errors=True)
        self._real.mkdir(mode=0o700)
        self._folder.symlink_to(self._real)
        self._stamp, self._layer = (), {}

    def layer(self, hostname: str, *, with_secrets: bool = False) -> Path:
        """Blocking, but nearly always only one stat. The layer for an instance of this name, all of it root's.
        `with_secrets`: with mount points for them."""
        if (now := stamp(self._sources)) != self._stamp:
            self._stamp = now
            self._layer = {}
        kind = (hostname, with_secrets)
        if kind not in self._layer:
            self._layer[kind] = self._make(resolv_conf(self._sources), hosts(hostname), hostname, with_secrets)
        return self._layer[kind]

    def known(self, hostname: str, *, with_secrets: bool = False) -> Path | None:
        """The same, where it is there and the host's resolver has not changed; only a stat."""
        return self._layer.get((hostname, with_secrets)) if stamp(self._sources) == self._stamp else None

    def _make(self, resolver: str, host_table: str, hostname: str, with_secrets: bool) -> Path:
        content = "\0".join((resolver, host_table, hostname, str(with_secrets)))
        final = self._folder / hashlib.sha256(content.encode()).hexdigest()[:8]
        if final.exists():
            return final
        temporary = self._folder / secrets.token_hex(8)
        temporary.mkdir()
        temporary.chmod(0o755)
        for name, mode in (FOLDERS | (dict.fromkeys(SECRETS, 0o755) if with_secrets else {})).items():
            (temporary / name).mkdir()
            (temporary / name).chmod(mode)
        files = {"resolv.conf": resolver, "hosts": host_table, "hostname": hostname + "\n"}
        for name, text in files.items():
            path = temporary / "etc" / name
            path.write_text(text)
            path.chmod(0o644)
        try:
            temporary.rename(final)
        except OSError:  # another thread made the same
            shutil.rmtree(temporary)
        return final
