"""A fresh Debian 12 in an emulated machine, made and booted for one run of the tests on cgroup v2.

    python -m tests.v2.guest [PYTEST-ARGUMENTS]

Its own kernel, systemd as the first process, crun; the project comes from this checkout. The exit code is that of the
tests inside. Nothing outlives the run.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HOME = Path("opt/faas")  # of the checkout, in the guest
PYTHON = "3.11"  # Debian 12's, for which the environment's compiled modules must be
# What deploy/up installs on such a machine, besides an init and a kernel; the last row is the tests' own.
PACKAGES = (
    "linux-image-cloud-amd64", "systemd-sysv", "python3-venv",
    "crun", "nftables", "iproute2", "e2fsprogs", "ca-certificates", "tzdata", "binutils", "curl",
    "cpp", "libc6-dev",
)  # fmt: skip
PROGRAMS = ("probe", "escape")  # tests/support; the guest's own compiler would take its time
KEPT = "FAAS_V2_DEBIAN"  # names an archive of the Debian, which is made where there is none and used where there is one
PROJECT = ("pyproject.toml", "README.md", "LICENSE", "faas", "registry", "gateway", "worker", "deploy", "tests")
NOT_NEEDED = shutil.ignore_patterns("__editable__*", "ruff*", "mypy*", "boto*", "node_modules")
IMAGE_BYTES = 4 << 30  # sparse
MEMORY_MIB = 3072
RUN_SECONDS = 75 * 60.0  # boot and tests; emulation is 20 to 40 times slower than this machine
VERDICT = re.compile(rb"^v2: exit (\d+)\s*$")

UNIT = """\
[Unit]
Description=The tests of cgroup v2
After=systemd-networkd-wait-online.service
Wants=systemd-networkd-wait-online.service
SuccessAction=poweroff-force
FailureAction=poweroff-force

[Service]
Type=oneshot
WorkingDirectory=/opt/faas
ExecStart=/opt/faas/tests/v2/inside {arguments}
StandardOutput=file:/dev/ttyS1
StandardError=inherit
TasksMax=infinity

[Install]
WantedBy=multi-user.target
"""
NETWORK = "[Match]\nName=en* eth*\n\n[Network]\nDHCP=ipv4\n"


def run(*command: str | Path) -> None:
    subprocess.run(list(command), check=True, stdin=subprocess.DEVNULL)


def debian(root: Path) -> None:
    """Debian's own packages, unpacked and configured in a folder. Nothing is installed on this machine."""
    root.mkdir()
    kept = Path(os.environ.get(KEPT) or root.parent / "debian.tar")
    if not kept.exists():
        # Its mounts are in a namespace of its own, so they end with it.
        made, packages = kept.with_name(f"new-{kept.name}"), ",".join(PACKAGES)
        run("mmdebstrap", "--quiet", "--mode=root", "--variant=minbase", f"--include={packages}", "bookworm", made)
        made.rename(kept)
    run("tar", "-xf", kept, "-C", root, "--numeric-owner", "--xattrs", "--xattrs-include=*")


def furnish(root: Path, arguments: list[str]) -> None:
    """The project, its environment, the tests' program, and the unit that runs them at boot."""
    home = root / HOME
    home.mkdir(parents=True)
    for name in PROJECT:
        source = ROOT / name
        shutil.copytree(source, home / name, ignore=NOT_NEEDED) if source.is_dir() else shutil.copy(source, home)
    run("chroot", root, "python3", "-m", "venv", "--without-pip", f"/{HOME}/.venv")
    site = Path(f".venv/lib/python{PYTHON}/site-packages")
    shutil.copytree(ROOT / site, home / site, ignore=NOT_NEEDED, dirs_exist_ok=True)
    (home / site / "project.pth").write_text(f"/{HOME}\n")
    # By the guest's own interpreter, but here: there it takes a quarter of an hour.
    run("chroot", root, f"/{HOME}/.venv/bin/python", "-m", "tests.support.stem_functions", f"/{HOME}/bases", "python")
    (home / "programs").mkdir()
    for name in PROGRAMS:
        run("gcc", "-static", "-O1", "-w", "-o", home / "programs" / name, ROOT / f"tests/support/{name}.c")
    (root / "etc/systemd/network/all.network").write_text(NETWORK)
    (root / "etc/resolv.conf").write_text("nameserver 10.0.2.3\n")  # qemu's
    (root / "etc/fstab").write_text("/dev/vda / ext4 defaults 0 1\n")
    (root / "etc/systemd/system/v2.service").write_text(UNIT.format(arguments=shlex.join(arguments)))
    run("chroot", root, "systemctl", "enable", "--quiet", "v2", "systemd-networkd", "systemd-networkd-wait-online")


def pack(root: Path, image: Path) -> None:
    with image.open("wb") as file:
        file.truncate(IMAGE_BYTES)
    run("mkfs.ext4", "-q", "-d", root, image)


def boot(kernel: Path, initrd: Path, image: Path, console: Path) -> int:
    """Run it, passing on what the tests write. Their exit code; 1 where the guest ended without one."""
    command = [
        "qemu-system-x86_64", "-nodefaults", "-display", "none", "-no-reboot",
        "-accel", "tcg,thread=multi,tb-size=1024", "-cpu", "max", "-smp", "2", "-m", str(MEMORY_MIB),
        "-kernel", str(kernel), "-initrd", str(initrd),
        "-append", "root=/dev/vda rw console=ttyS0 panic=-1 mitigations=off",
        "-drive", f"file={image},format=raw,if=virtio,cache=unsafe",
        "-nic", "user,model=virtio-net-pci,restrict=on", "-device", "virtio-rng-pci",
        "-serial", f"file:{console}", "-serial", "stdio",
    ]  # fmt: skip
    machine = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    deadline = threading.Timer(RUN_SECONDS, machine.kill)
    deadline.start()
    code = None
    try:
        assert machine.stdout is not None
        for line in machine.stdout:
            if verdict := VERDICT.match(line):
                code = int(verdict[1])
            else:
                sys.stdout.buffer.write(line)
                sys.stdout.flush()
        machine.wait()
    finally:
        deadline.cancel()
        machine.kill()
        machine.wait()
    if code is None:
        print(*console.read_text(errors="replace").splitlines()[-60:], sep="\n")
        print(f"the guest ended without a result (at most {RUN_SECONDS:.0f} s are waited); above is its console")
    return 1 if code is None else code


def main() -> int:
    if os.geteuid() != 0 or sys.version_info[:2] != (3, 11):
        print(f"needs root, and a .venv of Python {PYTHON} as Debian 12 has it")
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    began = time.monotonic()

    def say(text: str) -> None:
        print(f"{time.monotonic() - began:5.0f}s  {text}", flush=True)

    with tempfile.TemporaryDirectory(prefix="faas-v2-") as folder:
        work = Path(folder)
        root = work / "root"
        say("making a Debian 12")
        debian(root)
        furnish(root, sys.argv[1:])
        kernel, initrd = (
            Path(shutil.copy(next(root.glob(f"boot/{name}-*")), work)) for name in ("vmlinuz", "initrd.img")
        )
        pack(root, work / "disk")
        shutil.rmtree(root)
        say("booting it")
        code = boot(kernel, initrd, work / "disk", work / "console")
        say(f"done: exit {code}")
    return code


if __name__ == "__main__":
    sys.exit(main())
