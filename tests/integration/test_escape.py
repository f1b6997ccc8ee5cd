"""Ways out of an instance, tried from inside: each of them is refused."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import random
import socket
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from faas.errors import ImageUnusable
from faas.spec import Network
from tests.integration.test_oci_isolation import instance_addresses, interface_addresses
from tests.support.images import tar_of
from tests.support.sandboxes import MB, Workbench, compiled, probe, workbench
from worker.drivers.base import PreparedImage, Sandbox
from worker.drivers.linux import seccomp
from worker.drivers.oci import runtime
from worker.drivers.oci.driver import OciDriver
from worker.layers.store import UnpackedImage

pytestmark = [pytest.mark.root, pytest.mark.oci]

ABSTRACT = "faas-escape-test"
SHARED_KEY = 0x46414153
QUEUE = b"/faas-escape-test"
NAMESPACES = ("user", "mnt", "net", "pid", "ipc", "uts", "cgroup")
SERVICES = (22, 53, 80, 111, 443, 2375, 2376, 3306, 5000, 5432, 6379, 8080, 8081, 9001, 9090, 10250)
IPC_CREAT, IPC_RMID = 0o1000, 0
LEAST = 100  # ways


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Workbench]:
    async with workbench(tmp_path) as made:
        programs = {"bin/escape": compiled("escape").read_bytes(), "bin/probe": probe().read_bytes()}
        made.image = await made.driver.prepare(made.images.add("escape", [tar_of(programs, mode=0o755)]))
        yield made


def inside(*words: str) -> dict[str, tuple[str, ...]]:
    return {"args": ("/bin/escape", *words)}


async def lines(bench: Workbench, *words: str, **changes: object) -> list[list[str]]:
    _, text = await bench.run(**inside(*words), **changes)
    return [line.split(maxsplit=2) for line in text.splitlines()]


@pytest.fixture
def of_the_host() -> Iterator[None]:
    """Things of this machine that have no path: an abstract socket, shared memory, a message queue."""
    libc = ctypes.CDLL(None, use_errno=True)
    shared = libc.shmget(SHARED_KEY, 4096, IPC_CREAT | 0o666)
    queue = libc.mq_open(QUEUE, os.O_CREAT | os.O_RDWR, 0o666, None)
    assert min(shared, queue) >= 0
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(f"\0{ABSTRACT}")
        listener.listen()
        yield
    libc.shmctl(shared, IPC_RMID, None)
    libc.mq_unlink(QUEUE)
    os.close(queue)


@pytest.fixture
def listeners() -> Iterator[list[int]]:
    """Services on every address of this host, as the control API and the registry may be; their ports."""
    with contextlib.ExitStack() as stack:
        made = [stack.enter_context(socket.create_server(("0.0.0.0", 0))) for _ in range(3)]
        yield [listener.getsockname()[1] for listener in made]


async def test_every_way_out_is_refused(bench: Workbench, of_the_host: None, listeners: list[int]) -> None:
    assert isinstance(bench.driver, OciDriver)
    subnet = bench.driver._supplies.egress.subnet
    async with bench.running("serve", "8080", network=Network.OUTBOUND) as neighbour:
        assert await neighbour.stdout.readline() == b"listening\n"
        neighbours = instance_addresses(bench.server_id)
        own = [str(subnet[1]), "169.254.169.254", "0.0.0.0", *neighbours]
        before = interface_addresses()
        addresses = [*sorted({address for _, address in before}), *own]
        ports = [*listeners, *SERVICES, *random.Random(7).sample(range(1, 65_536), 40)]
        words = ["files", "processes", "privileges", "neighbours", ABSTRACT, hex(SHARED_KEY), QUEUE.decode()]
        words += ["network", neighbours[0], "192.0.2.1"]
        for kind in NAMESPACES:
            words += ["namespace", f"{kind}={(Path('/proc/self/ns') / kind).readlink().name.partition(':')[2]}"]
        for address in addresses:
            words += ["reach", address, str(len(ports)), *map(str, ports)]
        found = await lines(bench, *words, network=Network.OUTBOUND)
        lasting = {address for _, address in before & interface_addresses()}
    print("\n".join(" ".join(line) for line in found))
    # An address that a test beside this one gave up meanwhile was beyond this machine, even where it is back.
    gone = {f"reach_{address}" for address in {*addresses} - {*lasting, *own}}
    found = [line for line in found if line[0] not in gone]
    assert [line for line in found if line[1] != "refused"] == []
    assert len({line[0] for line in found}) >= LEAST


async def test_the_environment_is_what_was_given_and_nothing_of_the_server(bench: Workbench) -> None:
    _, text = await bench.run(**inside("env"), env={"GREETING": "hello", "PATH": "/bin"})
    assert sorted(text.splitlines()) == ["GREETING=hello", "HOME=/", "PATH=/bin"]  # HOME is the runtime's


# System calls: all that the list does not have


def numbers() -> dict[str, int]:
    """System calls by name, as this machine's headers have them."""
    done = subprocess.run(
        ["cpp", "-dM", "-include", "sys/syscall.h", "/dev/null"],
        capture_output=True,
        text=True,
        check=True,
    )
    rows = [line.split() for line in done.stdout.splitlines() if line.startswith("#define __NR_")]
    return {name.removeprefix("__NR_"): int(number) for _, name, number in rows if number.isdigit()}


def outside_of_it(*words: str) -> list[str]:
    """The same calls, by an ordinary user of this machine."""
    command = [str(compiled("escape")), "calls", *words]
    return subprocess.run(command, capture_output=True, text=True, user=65_534, group=65_534).stdout.splitlines()


async def test_every_call_that_the_list_does_not_have_is_refused(bench: Workbench) -> None:
    allowed = {name for rule in seccomp.profile()["syscalls"] for name in rule["names"]}
    refused = {name: number for name, number in numbers().items() if name not in allowed}
    assert len(refused) > 60
    answers = dict(await lines(bench, "calls", *map(str, refused.values()), network=Network.NONE))
    told = {name: answers[str(number)] for name, number in refused.items()}
    print(told)
    assert {name: answer for name, answer in told.items() if answer not in ("EPERM", "ENOSYS")} == {}
    # Without the list, the kernel itself has another answer to many of them: it is the list that refuses. Linux 6.1 has
    # one to 38 of 76.
    reached = [
        line for line in outside_of_it(*map(str, refused.values())) if line.split()[1] not in ("EPERM", "ENOSYS")
    ]
    assert len(reached) > len(refused) / 3


async def test_calls_that_came_after_the_list_are_refused(bench: Workbench) -> None:
    known = numbers()
    newest = max(known.values()) + 1
    answers = dict(await lines(bench, "calls", *map(str, range(newest, 520)), network=Network.NONE))
    by_name = {"fchmodat2": 452, "futex_wake": 454, "futex_wait": 455, "futex_requeue": 456}  # newer than the headers
    late = {str(number) for name, number in by_name.items() if name in seccomp.ALLOWED}
    assert {n: a for n, a in answers.items() if a not in ("EPERM", "ENOSYS") and n not in late} == {}


# Users


def first_id(sandbox: Sandbox) -> int:
    """What 0 inside is on the host."""
    process = sandbox.process  # type: ignore[attr-defined]
    first, base, count = map(int, Path(f"/proc/{process.pid}/uid_map").read_text().split())
    assert (first, count) == (0, 65_535)
    return base


def host_ids(sandbox: Sandbox) -> tuple[int, int]:
    """The user and the group of its first process, as the host sees them."""
    process = sandbox.process  # type: ignore[attr-defined]
    rows = dict(
        row.split(":\t", 1) for row in Path(f"/proc/{process.pid}/status").read_text().splitlines() if ":\t" in row
    )
    return int(rows["Uid"].split()[0]), int(rows["Gid"].split()[0])


async def test_no_two_instances_have_an_id_in_common_on_the_host(bench: Workbench) -> None:
    async with contextlib.AsyncExitStack() as stack:
        users = ((65_534, 65_534), (1000, 1000), (1000, 1000), (65_534, 65_534))
        made = [await stack.enter_async_context(bench.running(**inside("wait"), user=user)) for user in users]
        for sandbox in made:
            assert await sandbox.stdout.readline() == b"waiting\n"
        ranges = []
        for sandbox, user in zip(made, users, strict=True):
            base = first_id(sandbox)
            assert host_ids(sandbox) == (base + user[0], base + user[1])
            ranges.append(range(base, base + 65_536))
        assert all(a is b or not range(max(a.start, b.start), min(a.stop, b.stop)) for a in ranges for b in ranges)
        assert min(one.start for one in ranges) > 2**24  # no user of this machine


async def test_ids_are_used_again_only_when_their_instance_is_gone(bench: Workbench) -> None:
    seen = []
    for _ in range(3):
        async with bench.running(**inside("wait")) as first, bench.running(**inside("wait")) as second:
            for sandbox in (first, second):
                await sandbox.stdout.readline()
            seen.append((host_ids(first), host_ids(second)))
    assert all(one != other for one, other in seen)
    ids = [one for pair in seen for one in pair]
    assert ids[0] not in ids[1:4]  # the one that is free for longest comes first


@pytest.fixture
async def owned(bench: Workbench) -> PreparedImage:
    """Files of root, of user 1000 and of user 100,000."""
    layers = bench.image.handle
    assert isinstance(layers, UnpackedImage)
    reference = bench.images.add(
        "owned", [tar_of({"bin/escape": compiled("escape").read_bytes(), "srv/a": b"a", "srv/b": b"b", "srv/c": b"c"})]
    )
    image = await bench.driver.prepare(reference)
    handle = image.handle
    assert isinstance(handle, UnpackedImage)
    folder = handle.layers[0].resolve() / "srv"
    for name, owner in (("b", 1000), ("c", 100_000)):
        os.chown(folder / name, owner, owner)
        (folder / name).chmod(0o600)
    return image


WHOSE = ("owner", "/srv/a", "owner", "/srv/b", "owner", "/srv/c", "owner", "/etc/hosts", "owner", "/tmp", "owner", "/")


async def test_files_of_the_image_are_whose_they_are_there(bench: Workbench, owned: PreparedImage) -> None:
    found = {line[0]: line[1:] for line in await lines(bench, *WHOSE, image=owned, user=(1000, 1000))}
    assert found["/srv/a"] == ["0", "0 100755"]
    assert found["/srv/b"] == ["1000", "1000 100600"]
    assert found["/srv/c"] == ["65534", "65534 100600"]  # nobody's: no id of the instance
    assert found["/etc/hosts"] == ["0", "0 100644"]
    assert found["/tmp"] == ["0", "0 41777"]
    _, text = await bench.run(**inside("ids", "cat", "/srv/b"), image=owned, user=(1000, 1000))
    assert text == "1000 1000\nb"


async def test_a_user_beyond_16_bits_is_kept_too(bench: Workbench, owned: PreparedImage) -> None:
    _, text = await bench.run(**inside("ids", "cat", "/srv/c", "owner", "/srv/c"), image=owned, user=(100_000, 100_000))
    assert text == "100000 100000\nc/srv/c 100000 100000 100600\n"
    _, text = await bench.run(**inside("ids"), user=(2**31 - 2, 7))
    assert text == f"{2**31 - 2} 7\n"


@pytest.mark.parametrize("user", [(65_534, 65_534), (1000, 1000), (100_000, 100_000)])
async def test_a_writable_root_is_the_users_own(bench: Workbench, owned: PreparedImage, user: tuple[int, int]) -> None:
    words = (
        "write",
        "/new",
        "write",
        "/srv/a",
        "write",
        "/etc/hosts",
        "owner",
        "/srv/a",
        "owner",
        "/new",
        "write",
        "/tmp/x",
    )
    found = {
        (line[0], line[1]): line for line in await lines(bench, *words, image=owned, user=user, writable_root=True)
    }
    for path in ("/new", "/srv/a", "/etc/hosts", "/tmp/x"):
        assert (path, "written") in found, (path, found)
    assert found["/srv/a", str(user[0])][2] == f"{user[1]} 100755"
    assert found["/new", str(user[0])][2] == f"{user[1]} 100600"


async def test_outputs_can_be_opened_by_name(bench: Workbench) -> None:
    _, text = await bench.run(**inside("write", "/dev/stdout"))  # as images do that link their logs there
    assert "x\n" in text


async def test_a_program_with_the_set_id_bits_gains_nothing(bench: Workbench) -> None:
    handle = bench.image.handle
    assert isinstance(handle, UnpackedImage)
    program = handle.layers[0].resolve() / "bin" / "escape"
    program.chmod(0o6755)  # behind the unpacker, which takes such bits away
    assert program.stat().st_uid == 0
    _, text = await bench.run("wait-not", args=("/bin/escape", "run", "/bin/escape", "euid"))
    assert text == "65534\n"


# Hostile images


async def test_links_where_the_machine_mounts_lead_nowhere(bench: Workbench) -> None:
    links: dict[str, bytes | str | None] = {
        "bin/escape": compiled("escape").read_bytes(),
        "tmp": "/etc",
        "proc": "/tmp",
        "dev": "/proc/self/root",
        "sys": "/../../sys",
        "etc": "/tmp/etc",
        "var/task": "/proc/1/root",
        "run": "/../../../run",
    }
    image = await bench.driver.prepare(bench.images.add("links", [tar_of(links)]))
    for writable in (False, True):
        words = ("files", "owner", "/tmp", "owner", "/proc", "owner", "/dev", "owner", "/etc", "cat", "/etc/hosts")
        _, text = await bench.run(**inside(*words), image=image, writable_root=writable, tmp_bytes=4 * MB)
        kinds = {line.split()[0]: line.split()[3] for line in text.splitlines() if line.startswith("/")}
        assert kinds["/tmp"] == "41777"
        assert kinds["/proc"].startswith("40")
        assert kinds["/dev"] == "40755"
        assert kinds["/etc"].startswith("40")
        assert "localhost function" in text
        found = [line for line in text.splitlines() if " FOUND " in line]
        assert [
            line for line in found if not writable or line.split()[0] not in ("write_root", "files_of_the_image")
        ] == []


@pytest.mark.parametrize("folder", ["/proc/self/fd/7", "/proc/self/fd/8", "/proc/1/root", "/dev/fd/7"])
async def test_a_working_folder_behind_the_runtimes_descriptors_is_refused(bench: Workbench, folder: str) -> None:
    with pytest.raises(ImageUnusable, match="working directory"):
        await bench.driver.create(bench.spec(**inside("files"), workdir=folder))


def runtime_program() -> tuple[str, int]:
    program = Path(runtime.find() or "").resolve()
    return hashlib.sha256(program.read_bytes()).hexdigest(), program.stat().st_mtime_ns


async def test_the_runtime_program_cannot_be_overwritten_by_what_it_starts(bench: Workbench) -> None:
    before = runtime_program()
    script = tar_of({"bin/escape": compiled("escape").read_bytes(), "bin/again": b"#!/proc/self/exe\n"})
    image = await bench.driver.prepare(bench.images.add("again", [script]))
    for args in (("/proc/self/exe", "init"), ("/bin/again",)):  # CVE-2019-5736
        with contextlib.suppress(ImageUnusable):
            await bench.run("-", args=args, image=image)
    assert runtime_program() == before


# Machines without user namespaces


@pytest.fixture
async def plain(tmp_path: Path) -> AsyncIterator[Workbench]:
    async with workbench(tmp_path, user_namespaces=False) as made:
        programs = {"bin/escape": compiled("escape").read_bytes(), "srv/a": b"a"}
        made.image = await made.driver.prepare(made.images.add("escape", [tar_of(programs)]))
        yield made


async def test_without_user_namespaces_each_instance_has_an_id_of_its_own(plain: Workbench) -> None:
    async with plain.running(**inside("ids", "wait")) as one, plain.running(**inside("ids", "wait")) as other:
        told = [await sandbox.stdout.readline() for sandbox in (one, other)]
        ids = [host_ids(sandbox) for sandbox in (one, other)]
    assert told == [b"%d %d\n" % pair for pair in ids]
    assert ids[0] != ids[1]
    assert min(min(pair) for pair in ids) > 2**24


async def test_without_user_namespaces_a_user_of_the_image_is_kept_and_a_deploy_is_told(plain: Workbench) -> None:
    async with plain.running(**inside("ids", "wait"), user=(1000, 7)) as sandbox:
        assert await sandbox.stdout.readline() == b"1000 7\n"
        assert host_ids(sandbox) == (1000, 7)
    layer = tar_of({"bin/escape": compiled("escape").read_bytes()})
    images = [plain.images.add("users", [layer], user=user) for user in ("1000", "", "root", "0")]
    warnings = [(await plain.driver.prepare(image)).warnings for image in images]
    assert "USER 1000 is kept" in warnings[0][0]
    assert warnings[1:] == [(), (), ()]


async def test_without_user_namespaces_a_writable_root_is_the_users_own(plain: Workbench) -> None:
    words = ("write", "/new", "write", "/srv/a", "write", "/etc/hosts", "write", "/tmp/x")
    for user in ((65_534, 65_534), (1000, 1000)):
        found = await lines(plain, *words, user=user, writable_root=True)
        assert [line[1] for line in found] == ["written"] * 4


async def test_with_user_namespaces_a_deploy_is_told_nothing(bench: Workbench) -> None:
    layer = tar_of({"bin/escape": compiled("escape").read_bytes()})
    assert (await bench.driver.prepare(bench.images.add("users", [layer], user="1000"))).warnings == ()
