"""Everything that a function can see of the process and the sandbox that it runs in, taken while it is imported."""

# What is loaded is to be seen, so no pathlib.
# ruff: noqa: PTH109, PTH115, PTH116, PTH208

import sys

LOADED = sorted(name for name in sys.modules if not name.startswith("_"))

import faulthandler  # noqa: E402
import gc  # noqa: E402
import locale  # noqa: E402
import logging  # noqa: E402
import os  # noqa: E402
import random  # noqa: E402
import signal  # noqa: E402
import socket  # noqa: E402
import threading  # noqa: E402
import time  # noqa: E402
import warnings  # noqa: E402

STATUS = (
    *("Name", "Umask", "Pid", "PPid", "Uid", "Gid", "Groups", "Threads", "SigPnd", "ShdPnd", "SigBlk", "SigIgn"),
    *("SigCgt", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp", "Seccomp_filters"),
    "Cpus_allowed_list",
)


def text(path):
    with open(path) as file:
        return file.read()


def refusal(path):
    try:
        with open(path, "w"):
            return "allowed"
    except OSError as error:
        return error.strerror


def status():
    rows = dict(line.split(":", 1) for line in text("/proc/self/status").splitlines())
    return {name: rows.get(name, "").split() for name in STATUS}


def descriptors():
    """Number → what it is, and its flags."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            kind = os.readlink(f"/proc/self/fd/{name}").partition("[")[0]
        except OSError:  # the listing's own
            continue
        found[name] = [kind, text(f"/proc/self/fdinfo/{name}").splitlines()[1]]
    return found


def mounts():
    """Mount point → kind, and flags."""
    rows = [line.split() for line in text("/proc/self/mounts").splitlines()]
    return {row[1]: [row[2], sorted(flag for flag in row[3].split(",") if "=" not in flag)] for row in rows}


def childs_environ():
    with os.popen("export -p") as child:
        return sorted(child.read().splitlines())


def process():
    main = sys.modules["__main__"]
    return {
        "environ": list(os.environ.items()),
        "child's environ": childs_environ(),
        "zone": [time.tzname, time.timezone, time.strftime("%Z", time.localtime(0))],
        "cwd": [os.getcwd(), sorted(os.listdir("."))],
        "descriptors": descriptors(),
        "status": status(),
        "limits": text("/proc/self/limits"),
        "umask": [os.umask(0o77), os.umask(0o22)],
        "ids": [os.getpid(), os.getppid(), os.getsid(0), os.getpgid(0)],
        "priority": [os.getpriority(os.PRIO_PROCESS, 0), os.sched_getscheduler(0), text("/proc/self/oom_score_adj")],
        "command": [text("/proc/1/cmdline"), os.readlink("/proc/1/exe"), sys.argv, sys.orig_argv],
        "children": text("/proc/1/task/1/children").split(),
        "main": [main.__file__, main.__name__, main.__doc__, sorted(vars(main))],
        "module": [__file__, __name__, __spec__.origin],
    }


def interpreter():
    stdin, record = sys.stdin, logging.LogRecord("x", 20, "x", 1, "x", (), None)
    return {
        "path": sys.path,
        "flags": list(sys.flags),
        "stdin": [stdin.name, stdin.mode, stdin.seekable(), stdin.isatty(), stdin.encoding, stdin.read()],
        "stdout": [sys.stdout.encoding, sys.stdout.errors, sys.stdout.line_buffering, sys.stderr.line_buffering],
        "signals": {str(number): str(signal.getsignal(number)) for number in signal.valid_signals()},
        "logging": [logging.root.handlers, logging.root.level, sorted(logging.root.manager.loggerDict)],
        "log clock": 0 <= record.relativeCreated < 5000,
        "locale": [locale.getlocale(), locale.getpreferredencoding(), sys.getfilesystemencoding()],
        "hooks": [str(sys.excepthook), str(sys.gettrace()), str(sys.getprofile()), faulthandler.is_enabled()],
        "warnings": len(warnings.filters),
        "gc": [gc.isenabled(), gc.get_threshold(), gc.get_freeze_count()],
        "threads": [threading.active_count(), threading.current_thread().name],
        "limits": [sys.getrecursionlimit(), socket.getdefaulttimeout()],
    }


def sandbox():
    return {
        "mounts": mounts(),
        "root": sorted(os.listdir("/")),
        "opt": sorted(os.listdir("/opt")),
        "cgroup": text("/proc/self/cgroup"),
        "writing": {path: refusal(path) for path in ("/x", "/var/task/x", "/opt/python/x", "/etc/x", "/tmp/x")},
        "names": [socket.gethostname(), text("/etc/hosts"), text("/etc/resolv.conf")],
        "tmp": [os.statvfs("/tmp").f_blocks, os.stat("/tmp").st_mode, sorted(os.listdir("/tmp"))],
        "interfaces": sorted(name for _, name in socket.if_nameindex()),
    }


SEEN = {**process(), **{f"interpreter: {name}": value for name, value in interpreter().items()}, **sandbox()}
CHANCE = {"random": random.random(), "hash": hash("hello"), "urandom": os.urandom(8).hex()}


def handler(event, context):
    return {"seen": SEEN, "chance": CHANCE, "loaded": LOADED, "name": context.function_name}
