/* A static HTTP server for images that are made in tests, on the port of its argument, else $PORT.
   /env/NAME answers a variable, /uid its user, /file/PATH a file; all else the method and the target, and then the body. */
#include <arpa/inet.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

static char buffer[1 << 20];

/* One request: answers it, and keeps the connection (1) unless it was asked to close it (0). */
static int request(int connection) {
    size_t have = 0;
    ssize_t got;
    char *end = 0;
    while (!end && (got = read(connection, buffer + have, sizeof buffer - 1 - have)) > 0)
        buffer[have += got] = 0, end = strstr(buffer, "\r\n\r\n");
    if (!end) return 0;
    char *body = end + 4, *field = strcasestr(buffer, "\r\ncontent-length:");
    char *closes = strcasestr(buffer, "\r\nconnection: close");
    size_t length = field && field < end ? strtoul(field + 17, 0, 10) : 0;
    while (have < (size_t)(body - buffer) + length) {
        if ((got = read(connection, buffer + have, sizeof buffer - 1 - have)) <= 0) return 0;
        have += got;
    }
    char method[16], target[1024], text[2048], uid[16];
    if (sscanf(buffer, "%15s %1023s", method, target) != 2) return 0;
    const char *answer = text;
    if (!strncmp(target, "/env/", 5)) answer = getenv(target + 5) ? getenv(target + 5) : "";
    else if (!strcmp(target, "/uid")) sprintf(uid, "%d", (int)getuid()), answer = uid;
    else if (!strncmp(target, "/file/", 6)) {
        int file = open(target + 5, O_RDONLY);
        ssize_t size = file < 0 ? 0 : read(file, text, sizeof text - 1);
        text[size > 0 ? size : 0] = 0, close(file);
    }
    else sprintf(text, "%s %s ", method, target);
    size_t echoed = answer == text ? length : 0;
    int keep = !(closes && closes < end);
    dprintf(connection, "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n%sContent-Length: %zu\r\n\r\n%s",
            keep ? "" : "Connection: close\r\n", strlen(answer) + echoed, answer);
    return (!echoed || write(connection, body, echoed) == (ssize_t)echoed) && keep;
}

int main(int count, char **words) {
    const char *port = count > 1 ? words[1] : getenv("PORT");
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port ? atoi(port) : 8080)};
    int one = 1, listener = socket(AF_INET, SOCK_STREAM, 0);
    signal(SIGCHLD, SIG_IGN);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 64)) return perror("listen"), 1;
    for (;;) {
        int connection = accept(listener, 0, 0);
        if (!fork()) {
            while (request(connection)) continue;
            return 0;
        }
        close(connection);
    }
}
