"""Functions that do what they should not, one handler for all: the path says what. Each row of the plan for hostile
functions is a mode here, and a test in tests/e2e/test_hostile_functions.py."""

CODE = '''
import ctypes, http.client, os, secrets, signal, socket, sys, threading, time

NAME = secrets.token_hex(4)
API = ("127.0.0.1", 9001)
INVOCATION = "/2018-06-01/runtime/invocation/"

with open("/proc/self/comm", "w") as file:
    file.write("hostile")


def deaf():
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


def post(path, body=b"x", headers={}):
    """The status; 0 where the connection was closed on us."""
    connection = http.client.HTTPConnection(*API, timeout=5)
    try:
        connection.request("POST", path, body, headers)
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return 0
    finally:
        connection.close()


def refused(work):
    try:
        work()
        return "allowed"
    except OSError as error:
        return error.strerror


def fork(context):
    """As many as there may be, each of which forks on, in a session of its own, deaf to every signal it may be."""
    deaf()
    while True:
        try:
            if os.fork() == 0:
                os.setsid()
        except OSError:
            time.sleep(0.01)


def memory(context):
    """1 MB each millisecond."""
    hog = []
    while True:
        hog.append(bytearray(os.urandom(64)) * 16384)
        time.sleep(0.001)


def memory_at_once(context):
    return len(bytearray(b"x") * (2 << 30))


def memory_of_a_child(context):
    child = os.fork()
    if child == 0:
        memory(context)
    os.waitpid(child, 0)
    raise RuntimeError("the child is gone")


def spin(context):
    def turn():
        while True:
            pass

    for _ in range(8):
        threading.Thread(target=turn, daemon=True).start()
    turn()


def full(folder):
    """Fills it; what the last write said, and how many bytes went in."""
    written = 0
    try:
        with open(folder + "/full", "wb") as file:
            while True:
                written += file.write(b"x" * (1 << 20))
                file.flush()
    except OSError as error:
        return [error.strerror, written]


def many(folder):
    made = 0
    try:
        while True:
            os.close(os.open(folder + "/n%d" % made, os.O_CREAT | os.O_WRONLY))
            made += 1
    except OSError as error:
        return [error.strerror, made]


def sparse(folder):
    """A file that says it is 1 TB, and a block at each MB of it."""
    written = 0
    try:
        with open(folder + "/sparse", "wb", buffering=0) as file:
            file.truncate(1 << 40)
            while True:
                file.seek(written << 20)
                file.write(b"x" * 4096)
                written += 1
    except OSError as error:
        return [error.strerror, written]


def disk(context):
    found = {"root": refused(lambda: open("/full", "wb")), "code": refused(lambda: open("/var/task/full", "wb"))}
    for name, work in (("full", full), ("many", many), ("sparse", sparse)):
        for folder in ("/tmp", "/dev/shm"):
            found[folder + " " + name] = work(folder)
            for left in os.listdir(folder):
                os.unlink(folder + "/" + left)
    return found


def flood(context):
    line, until, written = b"y" * 199 + b"\\n", time.monotonic() + 1.5, 0
    while time.monotonic() < until or written < 12 << 20:
        written += os.write(1, line * 256)
    return written


def daemon(context):
    """Double-forked, in a session of its own, deaf, with stdout and stderr open."""
    if os.fork() == 0:
        os.setsid()
        deaf()
        if os.fork():
            os._exit(0)
        time.sleep(600)
        os._exit(0)
    return "left one behind"


def daemon_and_loop(context):
    daemon(context)
    deaf()
    while True:
        pass


def never_again(context):
    """Answers by itself, and never asks for another event."""
    post(INVOCATION + context.aws_request_id + "/response", b'"answered"')
    time.sleep(600)


def two_polls(context):
    """A second and a third poll in parallel, whose events nobody looks at."""
    for _ in range(2):
        poll = socket.create_connection(API)
        poll.sendall(b"GET " + INVOCATION.encode() + b"next HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n")
        globals().setdefault("POLLS", []).append(poll)
    time.sleep(0.2)
    return "polled"


def other_id(context):
    first, last = context.aws_request_id[:-1], context.aws_request_id[-1]
    other = first + ("0" if last != "0" else "1")
    ways = [who + "/" + what for who in (other, "", "../next", "%00") for what in ("response", "error")]
    return [post(INVOCATION + way) for way in ways]


def answer_twice(context):
    path = INVOCATION + context.aws_request_id + "/response"
    sent = [post(path, b'"first"'), post(path, b'"second"')]
    sent.append(post(path.replace("response", "error"), b'{"errorType": "x"}'))
    print("answered", sent)
    return "third"


def answer_late(context):
    """A child that would answer after the deadline, and answer whatever comes next as well."""
    if os.fork() == 0:
        os.setsid()
        deaf()
        while True:
            time.sleep(0.05)
            if context.get_remaining_time_in_millis() == 0:
                post(INVOCATION + context.aws_request_id + "/response", b'"late"')
    while True:
        time.sleep(1)


def at_the_deadline(context):
    while context.get_remaining_time_in_millis() > 5:
        time.sleep(0.001)
    return context.aws_request_id


def large_error(context):
    body = b'{"errorType": "Large", "errorMessage": "' + b"e" * (50 << 20) + b'"}'
    print("posted", post(INVOCATION + context.aws_request_id + "/error", body))
    return "went on"


def large_answer(context):
    return "x" * (50 << 20)


def leave(context):
    os._exit(0)


def segfault(context):
    ctypes.string_at(0)


def sockets(context):
    """As many at once as there may be, then one after the other as quickly as it goes."""
    held, made, until = [], 0, time.monotonic() + 1.5
    try:
        while True:
            held.append(socket.create_connection(API, 0.05))
    except OSError:
        at_once = len(held)
    for one in held:
        one.close()
    while made < 100_000 and time.monotonic() < until:
        try:
            socket.create_connection(API, 0.05).close()
            made += 1
        except OSError:
            pass
    return [at_once, made]


def secret(context):
    """Leaves something everywhere."""
    for name in ("/tmp/note", "/dev/shm/note"):
        with open(name, "wb") as file:
            file.write(b"SECRET" * 1000)
    try:
        with open("/tmp/large", "wb") as file:
            while True:
                file.write(b"SECRET" * 10_000)
                file.flush()
    except OSError:
        return "left it"


def look(context):
    """What is left of others: names, and what is on the disk below a file that was never written."""
    names = sorted(set(os.listdir("/tmp") + os.listdir("/dev/shm")) - {"lost+found"})
    with open("/tmp/blank", "wb+") as file:
        size = os.statvfs("/tmp").f_bavail * 4096 - (1 << 20)
        os.posix_fallocate(file.fileno(), 0, size)
        seen = file.read()
    os.unlink("/tmp/blank")
    return [names, size, seen.count(b"SECRET"), len(seen.replace(b"\\0", b""))]


def name(context):
    return NAME


def handler(event, context):
    return globals()[event["rawPath"].strip("/")](context)
'''
