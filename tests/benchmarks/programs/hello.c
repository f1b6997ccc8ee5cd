/* The http function: answers every request on $PORT, keeps connections, many at once. With an argument it only exits. */
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

enum { CONNECTIONS = 4096 };
static const char answer[] = "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 6\r\n\r\nhello\n";
static const char end[] = "\r\n\r\n";
static unsigned char matched[CONNECTIONS]; /* how much of `end` each connection has sent last */

static void watch(int epoll, int descriptor) {
    struct epoll_event event = {.events = EPOLLIN, .data.fd = descriptor};
    epoll_ctl(epoll, EPOLL_CTL_ADD, descriptor, &event);
}

static void welcome(int epoll, int listener) {
    int one = 1, connection = accept(listener, 0, 0);
    if (connection >= CONNECTIONS) close(connection);
    if (connection < 0 || connection >= CONNECTIONS) return;
    setsockopt(connection, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    matched[connection] = 0;
    watch(epoll, connection);
}

static void serve(int connection) {
    char bytes[16384];
    ssize_t size = read(connection, bytes, sizeof bytes);
    if (size <= 0) {
        close(connection);
        return;
    }
    unsigned char at = matched[connection];
    for (ssize_t i = 0; i < size; i++) {
        at = bytes[i] == end[at] ? at + 1 : bytes[i] == '\r';
        if (at < 4) continue;
        at = 0;
        if (write(connection, answer, sizeof answer - 1) < 0) break;
    }
    matched[connection] = at;
}

int main(int words, char **unused) {
    (void)unused;
    if (words > 1) return 0;
    const char *port = getenv("PORT");
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port ? atoi(port) : 8080)};
    int one = 1, listener = socket(AF_INET, SOCK_STREAM, 0), epoll = epoll_create1(0);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(listener, (void *)&address, sizeof address) || listen(listener, 1024)) return 1;
    watch(epoll, listener);
    for (struct epoll_event events[64];;) {
        int count = epoll_wait(epoll, events, 64, -1);
        for (int i = 0; i < count; i++) {
            if (events[i].data.fd == listener) welcome(epoll, listener);
            else serve(events[i].data.fd);
        }
    }
}
