"""An http function that does not speak HTTP as it should: its request's path says what it answers. `/mutated/SEED/MARK`
is a good answer with a few bytes changed by chance, `/good/MARK` one that is as it should be."""

CODE = r'''
import os, random, socket, threading, time

OK = b"HTTP/1.1 200 OK\r\n"
ENDS = b"Content-Length: 0\r\n\r\n"
SECOND = b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nSMUGGLED"
TRUE = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n%b"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
SEEDS = (
    TRUE,
    OK + b"Transfer-Encoding: chunked\r\nX-A: b\r\n\r\n%x\r\n%b\r\n0\r\n\r\n",
    b"HTTP/1.1 404 Not Found\r\nContent-Length: %d\r\nSet-Cookie: a=b\r\n\r\n%b",
)
PIECES = (
    b"\r\n", b"\n", b"\r", b"\0", b" ", b":", b"\r\n\r\n", b"+", b"-", b"0", b"5", b";", b"\xff", b"x" * 70000, SECOND,
    b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n", b"Transfer-Encoding: gzip\r\n", b" folded\r\n",
    b"HTTP/1.1 101 Switching\r\n\r\n", b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.0 ", b"Connection: close\r\n",
    b"Upgrade: websocket\r\n",
)

# Those that are no answer at all: 502.
REFUSED = {
    "words": b"hello\r\n\r\n",
    "version": b"HTTP/9.9 200 OK\r\n\r\n",
    "low": b"HTTP/1.1 99 Low\r\n\r\n",
    "high": b"HTTP/1.1 700 High\r\n" + ENDS,
    "no-status": b"HTTP/1.1 \r\n" + ENDS,
    "carriage-return": OK + b"X: a\rSet-Cookie: b=c\r\n" + ENDS,
    "nul": OK + b"X: a\x00b\r\n" + ENDS,
    "line-feeds": b"HTTP/1.1 200 OK\nContent-Length: 0\n\n",
    "space": OK + b"X : a\r\n" + ENDS,
    "two-lengths": OK + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nab",
    "negative-length": OK + b"Content-Length: -1\r\n\r\n",
    "huge-length": OK + b"Content-Length: 99999999999999999999999\r\n\r\n",
    "length-and-coding": OK + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "gzip": OK + b"Transfer-Encoding: gzip\r\n\r\nabc",
    "upgrade": b"HTTP/1.1 101 Switching\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
    "cookies": OK + b"Set-Cookie: a=b\r\n" * 500 + ENDS,
    "large-field": OK + b"X: " + b"a" * 1_000_000 + b"\r\n\r\n",
    "interims": b"HTTP/1.1 100 Continue\r\n\r\n" * 50,
    "http2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "nothing": b"",
}
# Those that begin well and do not end so: the client sees that it is not whole.
CUT = {
    "short": OK + b"Content-Length: 1000000\r\n\r\nshort",
    "no-last-chunk": CHUNKED + b"3\r\nabc\r\n",
    "bad-chunk": CHUNKED + b"3\r\nabc\r\nzz\r\n",
    "huge-chunk": CHUNKED + b"3\r\nabc\r\nffffffffffffffffff\r\nabc",
    "over-chunk": CHUNKED + b"3\r\nabcdef\r\n0\r\n\r\n",
}
# Without end: the first piece, and what comes again and again behind it.
ENDLESS = {
    "endless-head": (OK + b"X: ", b"a" * 65536),
    "endless-fields": (OK, b"X-A: b\r\n" * 8192),
    "endless-interims": (b"", b"HTTP/1.1 102 Processing\r\n\r\n" * 1000),
    "endless-words": (b"", b"x" * 65536),
    "endless-extension": (CHUNKED + b"3;", b"e" * 65536),
    "endless-trailers": (CHUNKED + b"3\r\nabc\r\n0\r\nT: ", b"t" * 65536),
    "endless-chunks": (CHUNKED, b"10000\r\n" + b"c" * 65536 + b"\r\n"),
    "endless-body": (OK + b"\r\n", b"b" * 65536),
    "endless-tiny-chunks": (CHUNKED, b"1\r\nc\r\n" * 10000),
}


def mutated(seed, mark):
    chance = random.Random(seed)
    data = chance.choice(SEEDS) % (len(mark), mark)
    for _ in range(chance.choice((1, 1, 2, 3))):
        at = chance.randrange(len(data) + 1)
        how = chance.randrange(5)
        if how == 0:
            data = data[:at] + chance.choice(PIECES) + data[at:]
        elif how == 1:
            data = data[:at] + data[at + chance.randrange(1, 4):]
        elif how == 2:
            data = data[:at] + bytes([chance.randrange(256)]) + data[at + 1:]
        elif how == 3:
            data = data[:at] + data
        else:
            data = data + SECOND
    return data


def answered(client, path):
    """Whether the connection goes on."""
    mode, _, mark = path.strip("/").partition("/")
    if mode == "good":
        client.sendall(TRUE % (len(mark), mark.encode()))
        return True
    if mode == "mutated":
        seed, _, mark = mark.partition("/")
        client.sendall(mutated(int(seed), mark.encode()))
        return True
    if mode in ("second", "late-second", "over"):  # one answer, and more than one asked for
        body = mark.encode()
        if mode == "late-second":
            client.sendall(TRUE % (len(body), body))
            time.sleep(0.05)
            client.sendall(SECOND)
        else:
            client.sendall(TRUE % (len(body), body) + (SECOND if mode == "second" else b"more"))
        return True
    if mode in ENDLESS:
        first, again = ENDLESS[mode]
        client.sendall(first)
        while True:
            client.sendall(again)
    client.sendall(REFUSED[mode] if mode in REFUSED else CUT[mode])
    return False


def serve(client):
    data = b""
    client.settimeout(None)
    try:
        while True:
            while b"\r\n\r\n" not in data:
                got = client.recv(65536)
                if not got:
                    return
                data += got
            head, _, data = data.partition(b"\r\n\r\n")
            path = head.split()[1].decode()
            if not answered(client, path):
                return
            if path.startswith("/mutated"):
                client.settimeout(0.2)  # else what is not whole is waited for
    except OSError:
        pass
    finally:
        client.close()


if __name__ == "__main__":
    listener = socket.create_server(("", int(os.environ["PORT"])), backlog=1000)
    while True:
        threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
'''
