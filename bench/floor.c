// The physical floor: what a frame comes in on /pub is sent to every socket on /sub, by send() in a loop, in one thread. Nothing else is done, so
// no server can be faster in this way. Answers from /sub are counted; when all have come, the mark at the frame's end goes back to /pub.
//
//   floor PORT
//
// Congestion control and buffers are those that heliograph sync asks for, so that the kernel does the same work for both.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#define FILES (1 << 17)
#define SEND_BUFFER (64 * 1024)
#define BACKLOG 4096
#define MARK 14                     // "@@00000001@@" and the end of the text

enum kind { NEW, SUBSCRIBER, PUBLISHER };

static unsigned char kinds[FILES];
static int subscribers[FILES], count, publisher = -1, answers, poller;
static char mark[MARK], in[1 << 18], out[1 << 18];
static const char welcome[] = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                              "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

static void watch(int fd) {
    struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};
    epoll_ctl(poller, EPOLL_CTL_ADD, fd, &event);
}

static size_t frame(const char *payload, size_t n) {
    size_t head = n < 126 ? 2 : 4;
    out[0] = (char)0x81;
    if (n < 126) out[1] = (char)n;
    else { out[1] = 126; out[2] = (char)(n >> 8); out[3] = (char)n; }
    memcpy(out + head, payload, n);
    return head + n;
}

static void fan_out(const char *payload, size_t n) {
    memcpy(mark, payload + n - MARK, MARK);
    answers = 0;
    n = frame(payload, n);
    for (int i = 0; i < count; i++)
        if (send(subscribers[i], out, n, MSG_DONTWAIT | MSG_NOSIGNAL) != (ssize_t)n) fprintf(stderr, "floor: a short write\n");
}

static void answered(void) {
    if (++answers < count) return;
    size_t n = frame(mark, MARK);
    send(publisher, out, n, MSG_DONTWAIT | MSG_NOSIGNAL);
}

static void begin(int fd, size_t n) {
    in[n] = 0;
    kinds[fd] = strstr(in, "GET /pub") ? PUBLISHER : SUBSCRIBER;
    if (kinds[fd] == PUBLISHER) publisher = fd;
    else subscribers[count++] = fd;
    send(fd, welcome, sizeof welcome - 1, MSG_NOSIGNAL);
}

static void end(int fd) {
    for (int i = 0; i < count; i++) if (subscribers[i] == fd) { subscribers[i] = subscribers[--count]; break; }
    kinds[fd] = NEW;
    close(fd);
}

static void readable(int fd) {
    ssize_t n = recv(fd, in, sizeof in - 1, MSG_DONTWAIT);
    if (n < 0 && errno == EAGAIN) return;
    if (n <= 0) return end(fd);
    if (kinds[fd] == NEW) return begin(fd, (size_t)n);
    for (char *p = in; in + n - p >= 6; ) {                                          // whole frames, masked with a key of zeros
        unsigned char *f = (unsigned char *)p;
        size_t length = f[1] & 127, head = 6;
        if (length == 126) { length = (size_t)f[2] << 8 | f[3]; head = 8; }
        if (kinds[fd] == PUBLISHER) fan_out(p + head, length);
        else answered();
        p += head + length;
    }
}

static int listening(int port) {
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), one = 1, buffer = SEND_BUFFER;
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &buffer, sizeof buffer);
    setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, "cubic", 5);
    if (bind(fd, (struct sockaddr *)&at, sizeof at) || listen(fd, BACKLOG)) { perror("floor"); exit(2); }
    return fd;
}

int main(int argc, char **argv) {
    if (argc != 2) { fprintf(stderr, "usage: floor PORT\n"); return 2; }
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    poller = epoll_create1(0);
    int listener = listening(atoi(argv[1])), one = 1;
    watch(listener);
    static struct epoll_event events[1024];
    for (;;) {
        int n = epoll_wait(poller, events, 1024, -1);
        for (int i = 0; i < n; i++) {
            if (events[i].data.fd != listener) { readable(events[i].data.fd); continue; }
            for (int fd; (fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0; watch(fd)) setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        }
    }
}
