"""`python -m faas.cli.keeper COMMAND …`: keeps a server's listening sockets while it ends and the next one starts.

    SIGHUP   end the server and start COMMAND, as it is by then; clients wait in the kernel's queue meanwhile
    SIGUSR2  end it, and wait with the sockets for SIGHUP: for what has to be done between the two
    SIGTERM  end it, and go; the exit code is the server's

It reads nothing but its server's sockets, and starts nothing but COMMAND. It becomes its newer self before each start.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import socket
import sys
import time
from collections.abc import Mapping, Sequence

from faas import handover
from faas.settings import environment_for

ANSWER_SECONDS = 10.0  # for the sockets: a server whose loop hangs has none to give
YOUNG_SECONDS = 120.0  # who ends so soon after the start was not good, and
HELD_SECONDS = 120.0  # the sockets wait so long for another one
SIGNALS = (signal.SIGHUP, signal.SIGUSR2, signal.SIGTERM, signal.SIGINT, signal.SIGCHLD)


class Keeper:
    """`command` is what it runs; `held`: the sockets, by name."""

    def __init__(self, command: Sequence[str], held: Mapping[str, socket.socket]) -> None:
        self._command = command
        self._held = dict(held)
        self._server = 0  # its pid; 0: none
        self._end: socket.socket | None = None
        self._began = 0.0
        self._restart = False  # when it has ended
        self._hold = False  # when it has ended
        self._leaving = False
        self._give_up_at: float | None = None
        self._code = 0

    def run(self) -> int:
        """Until there is no server any more, and none is to come."""
        self._start()
        while True:
            wait = 3600.0 if self._give_up_at is None else max(0.0, self._give_up_at - time.monotonic())
            got = signal.sigtimedwait(SIGNALS, wait)
            if got is None:
                if self._give_up_at is not None:
                    return self._code
            elif got.si_signo == signal.SIGCHLD:
                if self._reap() and not self._goes_on():
                    return self._code
            elif got.si_signo in (signal.SIGTERM, signal.SIGINT):
                self._leaving = True
                if not self._server:
                    return 0
                os.kill(self._server, signal.SIGTERM)
            elif not self._leaving:
                self._restart, self._hold = got.si_signo == signal.SIGHUP, got.si_signo == signal.SIGUSR2
                if self._server:
                    self._ask()
                elif self._restart:
                    self._anew()

    def _goes_on(self) -> bool:
        """The server has ended: whether we stay."""
        if self._leaving:
            return False
        if self._restart:
            self._anew()
        if self._hold:
            return True
        if self._code and self._held and time.monotonic() - self._began < YOUNG_SECONDS:
            self._give_up_at = time.monotonic() + HELD_SECONDS  # an update that failed goes back to what ran before
            return True
        return False

    def _ask(self) -> None:
        """For its sockets; it ends when it has given them, or by SIGTERM."""
        assert self._end is not None
        try:
            self._end.settimeout(ANSWER_SECONDS)
            self._end.send(handover.ASK)
            given = handover.receive(self._end)
        except OSError:
            given = {}
        if given:
            self._drop()
            self._held = given
        else:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._server, signal.SIGTERM)

    def _drop(self) -> None:
        for listener in self._held.values():
            listener.close()
        self._held = {}

    def _reap(self) -> bool:
        """Whether it was the server that has ended."""
        found = False
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                if ended[0] == self._server:
                    self._server, found = 0, True
                    code = os.waitstatus_to_exitcode(ended[1])
                    self._code = code if code >= 0 else 128 - code
        return found

    def _start(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._began, self._end = time.monotonic(), ours
        self._server = os.fork()
        if not self._server:
            try:
                os.setsid()  # what a terminal sends to all is for us alone
                signal.pthread_sigmask(signal.SIG_SETMASK, ())
                _become(self._command, {**self._held, handover.KEEPER: theirs})
            finally:
                os._exit(127)
        theirs.close()

    def _anew(self) -> None:
        """From here on we are the installed version's keeper."""
        _become([*sys.orig_argv], self._held)


def _become(command: Sequence[str], sockets: Mapping[str, socket.socket]) -> None:
    """Execute it with the sockets from descriptor 3 on, as sd_listen_fds(3) has them; the keeper's end comes last."""
    least = handover.FIRST + len(sockets)  # a copy of each with a number that none of the places has
    away = [fcntl.fcntl(one.fileno(), fcntl.F_DUPFD_CLOEXEC, least) for one in sockets.values()]
    for index, descriptor in enumerate(away):
        os.dup2(descriptor, handover.FIRST + index)  # inheritable
    listeners = [name for name in sockets if name != handover.KEEPER]
    environment = environment_for(prefixes=("",))
    for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", handover.KEEPER):
        environment.pop(name, None)
    if listeners:
        environment |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": str(len(listeners))}
        environment["LISTEN_FDNAMES"] = ":".join(listeners)
    if handover.KEEPER in sockets:
        environment[handover.KEEPER] = str(handover.FIRST + len(listeners))
    os.execvpe(command[0], list(command), environment)  # noqa: S606 - what we were started with


def main() -> int:
    if len(sys.argv) < 2:
        print("usage: python -m faas.cli.keeper COMMAND …", file=sys.stderr)
        return 2
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    return Keeper(sys.argv[1:], handover.received()).run()


if __name__ == "__main__":
    sys.exit(main())
