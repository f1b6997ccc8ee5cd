/* What OpenFaaS's of-watchdog does in its http mode, seen from outside: starts $fprocess, waits for it at
   $upstream_url, listens on $port (8080), answers /_/health by the lock file /tmp/.lock, passes all else on. */
#include <arpa/inet.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/wait.h>
#include <unistd.h>

#define LOCK "/tmp/.lock"

static struct sockaddr_in upstream = {.sin_family = AF_INET};
static pid_t function;
static char buffer[1 << 20];

static void ended(int number) {
    (void)number;
    for (pid_t pid; (pid = waitpid(-1, 0, WNOHANG)) > 0;)
        if (pid == function) dprintf(2, "Forked function has terminated\n"), _exit(1);
}

static int dial(void) {
    int connection = socket(AF_INET, SOCK_STREAM, 0);
    if (!connect(connection, (struct sockaddr *)&upstream, sizeof upstream)) return connection;
    close(connection);
    return -1;
}

static void start_function(const char *line) {
    char *words[16] = {0}, *copy = strdup(line);
    for (int i = 0; i < 15 && (words[i] = strtok(i ? 0 : copy, " ")); i++) continue;
    dprintf(2, "Forking: %s\n", line);
    if (!(function = fork())) {
        execvp(words[0], words);
        perror(words[0]);
        _exit(127);
    }
    if (fork()) return;
    for (int connection; (connection = dial()) < 0; usleep(2000)) continue;
    close(open(LOCK, O_CREAT | O_WRONLY, 0660));
    _exit(0);
}

static void say(int connection, const char *status) {
    dprintf(connection, "HTTP/1.1 %s\r\nContent-Length: 0\r\nConnection: close\r\n\r\n", status);
}

static void serve(int connection) {
    size_t have = 0;
    ssize_t got;
    char *end = 0;
    while (!end && (got = read(connection, buffer + have, sizeof buffer - 1 - have)) > 0)
        buffer[have += got] = 0, end = strstr(buffer, "\r\n\r\n");
    if (!end) return;
    if (!strncmp(buffer, "GET /_/health ", 14)) {
        say(connection, access(LOCK, F_OK) ? "503 Service Unavailable" : "200 OK");
        return;
    }
    char *field = strcasestr(buffer, "\r\ncontent-length:"), *body = end + 4;
    size_t length = field && field < end ? strtoul(field + 17, 0, 10) : 0;
    int onward = dial();
    if (onward < 0) {
        say(connection, "502 Bad Gateway");
        return;
    }
    if (write(onward, buffer, end - buffer) < 0) return;
    dprintf(onward, "\r\nConnection: close\r\n\r\n");
    size_t passed = buffer + have - body;
    if (passed && write(onward, body, passed) < 0) return;
    for (; passed < length && (got = read(connection, buffer, sizeof buffer)) > 0; passed += got)
        if (write(onward, buffer, got) < 0) return;
    while ((got = read(onward, buffer, sizeof buffer)) > 0 && write(connection, buffer, got) == got) continue;
}

int main(void) {
    const char *mode = getenv("mode"), *line = getenv("fprocess"), *url = getenv("upstream_url");
    const char *port = getenv("port");
    if (!mode || strcmp(mode, "http") || !line || !url)
        return dprintf(2, "mode=http, fprocess and upstream_url are needed\n"), 1;
    upstream.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    upstream.sin_port = htons(atoi(strrchr(url, ':') + 1));
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port ? atoi(port) : 8080)};
    int one = 1, listener = socket(AF_INET, SOCK_STREAM, 0);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 64)) return perror("listen"), 1;
    signal(SIGCHLD, ended);
    start_function(line);
    for (;;) {
        int connection = accept(listener, 0, 0);
        if (connection < 0) continue;
        if (!fork()) {
            serve(connection);
            _exit(0);
        }
        close(connection);
    }
}
