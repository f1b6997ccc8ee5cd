/* A static HTTP server: every request on $PORT is answered with a line. Built into an image of its own. */
#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char answer[] = "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 20\r\n\r\nHello from a binary\n";

int main(void) {
    const char *port = getenv("PORT");
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port ? atoi(port) : 8080)};
    int one = 1, listener = socket(AF_INET, SOCK_STREAM, 0);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 64)) return perror("listen"), 1;
    for (char buffer[16384];;) {
        int connection = accept(listener, 0, 0);
        ssize_t have = 0, got;
        while ((got = read(connection, buffer + have, sizeof buffer - 1 - have)) > 0) {
            have += got;
            buffer[have] = 0;
            if (!strstr(buffer, "\r\n\r\n")) continue;
            have = 0;
            if (write(connection, answer, sizeof answer - 1) < 0) break;
        }
        close(connection);
    }
}
