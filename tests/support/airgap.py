"""A machine without a network, made of namespaces of this one: a root, a loopback, and a way out that leads nowhere and
counts what is sent there."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.processes import children

MEGABYTES = 3000  # its files are in memory, and gone with it
HAND = "mnt"  # in its root, what is carried to it
ROOT = "/mnt"

# $1: a tar file with its root file system, or nothing: then it is this machine's, whose own stays as it is.
# $2: the folder that is carried to it. Its processes are in a namespace that ends with this one.
_MAKE = f"""
set -eu
mount --make-rprivate /
hand=$(mktemp -d)
mount --bind "$2" "$hand"
mount -t tmpfs -o size={MEGABYTES}m,mode=755 tmpfs {ROOT}
mkdir {ROOT}/root {ROOT}/upper {ROOT}/work
if [ -n "$1" ]; then
    mount --bind {ROOT}/root {ROOT}/root # a root is a mount of its own
    tar -xf "$1" -C {ROOT}/root --numeric-owner
else
    mount -t overlay -o lowerdir=/,upperdir={ROOT}/upper,workdir={ROOT}/work overlay {ROOT}/root
fi
cd {ROOT}/root
mount -t proc proc proc
mount --rbind /sys sys
mount --rbind /dev dev
mount -t tmpfs tmpfs run
mount -t tmpfs -o mode=1777 tmpfs tmp
mount --bind "$hand" {HAND}
umount "$hand"
rmdir "$hand"
ip link set lo up
ip link add out type veth peer name nowhere
for name in out nowhere; do
    echo 1 > /proc/sys/net/ipv6/conf/$name/disable_ipv6
    ip link set $name up
done
ip address add 192.0.2.1/24 dev out
ip route add default via 192.0.2.2
rm -f etc/resolv.conf
echo nameserver 192.0.2.2 > etc/resolv.conf
echo made
exec sleep infinity
"""


@dataclass(frozen=True)
class Machine:
    """`hand` is the folder that is `/mnt` there; `env` what its shells have beside a home and a path."""

    pid: int
    hand: Path
    env: Mapping[str, str]

    def run(
        self, command: str, *, folder: str = "/root", check: bool = True, timeout: float = 200
    ) -> subprocess.CompletedProcess[str]:
        """A shell's words, as root."""
        env = {"HOME": "/root", "PATH": "/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", **self.env}
        enter = ("nsenter", f"--target={self.pid}", "--mount", "--net", "--pid", "chroot", f"{ROOT}/root", "env", "-i")
        words = [*enter, *(f"{name}={value}" for name, value in env.items()), "sh", "-c", f"cd {folder} && {command}"]
        done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout)
        if check and done.returncode:
            raise AssertionError(f"{command}\nanswers {done.returncode}: {done.stdout}{done.stderr}")
        return done

    @property
    def sent(self) -> int:
        """Packets that it sent to anybody else; a question where somebody is counts too."""
        words = self.run("cat /proc/net/dev").stdout.split("nowhere:")[1].split()
        return int(words[1])


@contextmanager
def without_network(hand: Path, env: Mapping[str, str], root: Path | None = None) -> Iterator[Machine]:
    """`root`: an archive of its file system, else it is as this machine is."""
    apart = ("unshare", "--mount", "--net", "--pid", "--fork", "--kill-child")
    words = [*apart, "sh", "-c", _MAKE, "sh", str(root or ""), str(hand)]
    made = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert made.stdout is not None
    assert made.stderr is not None
    try:
        if made.stdout.readline() != "made\n":
            raise RuntimeError(f"no machine: {made.stderr.read()}")
        (inside,) = children(made.pid)
        yield Machine(inside, hand, env)
    finally:
        made.kill()
        made.wait()
        made.stdout.close()
        made.stderr.close()
