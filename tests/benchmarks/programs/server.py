"""What Docker runs beside the Python function: a bare socket, the leanest server that this interpreter can be."""

from _socket import SO_REUSEADDR, SOCK_STREAM, SOL_SOCKET, socket  # type: ignore[attr-defined]

listener = socket(2, SOCK_STREAM)
listener.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)
listener.bind(("0.0.0.0", 8080))
listener.listen(64)
while True:
    descriptor, _ = listener._accept()  # type: ignore[attr-defined]
    connection = socket(2, SOCK_STREAM, 0, descriptor)
    connection.recv(65536)
    connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nhello\n")
    connection.close()
