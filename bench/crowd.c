// A crowd of synthetic heliograph.v1 clients in one epoll thread, cheap enough not to be what a benchmark measures.
//
//   crowd HOST PORT TOKEN NAMESPACE ENVIRONMENT CLIENTS OUT
//
// Each client connects, says hello with its own instance id, takes the snapshot, and then notes for every delta or advance frame the
// moment its last byte was read. It answers each version with a receipt: at once when the frame says "now", otherwise after a random part
// of 500 ms, as an SDK does. It does not verify anything. It is a batch process that looks at its
// sockets at most every 300 µs, so that it does not preempt the server some hundred times in a fan-out, which it could not from a machine of its own;
// its times are late by that, never early. Prints "READY" when all have their snapshot; on end of standard input or SIGTERM writes OUT: one line
// "number client microseconds" a frame (Unix time), and exits 0; 1 if a client was dropped by the server.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define IN_FLIGHT 100              // handshakes at a time: the server limits them too
#define JITTER_US 500000
#define HEARTBEAT_US 20000000LL
#define TICK_MS 5
#define PAUSE_NS 300000

enum state { IDLE, CONNECTING, UPGRADING, WELCOMED, LIVE, GONE };

struct client {
    int fd;
    enum state state;
    char *buffer;                  // unread bytes, always from the start of a frame
    size_t used, room;
    int64_t answer_at, heartbeat_at;
    long seq, epoch, number, answered;
    char version[80];
};

struct sample { int32_t number, client; int64_t at; };

static const char *host, *token, *namespace_, *environment;
static int port, clients, opened, in_flight, live, dropped, poller;
static struct client *all;
static struct sample *samples;
static size_t sampled, sample_room;
static volatile sig_atomic_t ending;

static int64_t now_us(void) {
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    return t.tv_sec * 1000000LL + t.tv_nsec / 1000;
}

static void on_term(int signal_) { (void)signal_; ending = 1; }

static void drop(struct client *c, const char *why) {
    fprintf(stderr, "crowd: client %ld dropped: %s\n", (long)(c - all), why);
    if (c->state == LIVE) live--;
    else in_flight--;
    close(c->fd);
    c->state = GONE;
    dropped++;
}

static void send_all(struct client *c, const char *data, size_t n) {
    ssize_t sent = send(c->fd, data, n, MSG_NOSIGNAL);     // frames are tiny and the socket is drained: a short write means trouble
    if (sent != (ssize_t)n) drop(c, "could not write");
}

static void send_text(struct client *c, const char *text, size_t n) {
    char frame[2048];
    size_t head = n < 126 ? 2 : 4;
    frame[0] = (char)0x81;
    if (n < 126) frame[1] = (char)(0x80 | n);
    else { frame[1] = (char)(0x80 | 126); frame[2] = (char)(n >> 8); frame[3] = (char)n; }
    memset(frame + head, 0, 4);                            // masked, with a key of zeros
    memcpy(frame + head + 4, text, n);
    send_all(c, frame, head + 4 + n);
}

static void say_hello(struct client *c) {
    char text[1024];
    int id = (int)(c - all), n = snprintf(text, sizeof text,
        "{\"type\":\"hello\",\"instance\":\"01900000-0000-7000-8000-%06x%06x\",\"incarnation\":%lld,"
        "\"fingerprint\":{\"sdk\":\"crowd\",\"sdk_version\":\"1\",\"language\":\"c\",\"host\":\"crowd-%d\"},"
        "\"subscriptions\":[{\"id\":1,\"namespace\":\"%s\",\"environment\":\"%s\",\"view\":[\"\"],\"have\":null}],\"sent_at_us\":%lld}",
        (unsigned)getpid() & 0xffffff, id, (long long)now_us(), id % 7, namespace_, environment, (long long)now_us());
    send_text(c, text, (size_t)n);
}

static void send_receipt(struct client *c) {
    char text[512];
    int n = snprintf(text, sizeof text,
        "{\"type\":\"receipt\",\"seq\":%ld,\"subscription\":1,\"epoch\":%ld,\"number\":%ld,\"version\":\"%s\",\"state\":\"applied\","
        "\"applied_at_us\":%lld,\"clock_offset_us\":0}", ++c->seq, c->epoch, c->number, c->version, (long long)now_us());
    c->answer_at = 0;
    c->answered = c->number;
    send_text(c, text, (size_t)n);
}

static void connect_next(void) {
    struct client *c = &all[opened++];
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)}, from = {.sin_family = AF_INET};
    char source[32];
    snprintf(source, sizeof source, "127.0.0.%d", 2 + (int)((c - all) % 8));       // spreads the ports over several addresses
    inet_pton(AF_INET, host, &to.sin_addr);
    inet_pton(AF_INET, source, &from.sin_addr);
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    int one = 1;
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (bind(c->fd, (struct sockaddr *)&from, sizeof from)) perror("bind");
    if (connect(c->fd, (struct sockaddr *)&to, sizeof to) && errno != EINPROGRESS) perror("connect");
    struct epoll_event want = {.events = EPOLLOUT, .data.u32 = (uint32_t)(c - all)};
    epoll_ctl(poller, EPOLL_CTL_ADD, c->fd, &want);
    c->state = CONNECTING;
    in_flight++;
}

static void upgrade(struct client *c) {
    char text[2048];
    int n = snprintf(text, sizeof text,
        "GET /v1/stream HTTP/1.1\r\nHost: %s:%d\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: heliograph.v1\r\nAuthorization: Bearer %s\r\n\r\n", host, port, token);
    struct epoll_event want = {.events = EPOLLIN, .data.u32 = (uint32_t)(c - all)};
    epoll_ctl(poller, EPOLL_CTL_MOD, c->fd, &want);
    c->state = UPGRADING;
    send_all(c, text, (size_t)n);
}

static const char *after(const char *text, size_t n, const char *mark) {
    const char *at = memmem(text, n, mark, strlen(mark));
    return at ? at + strlen(mark) : NULL;
}

// The head travels as text inside the frame, so its members stand there with escaped quotes.
static int read_head(struct client *c, const char *text, size_t n) {
    const char *head = after(text, n, "\"head\":{");
    if (!head) return 0;
    size_t left = n - (size_t)(head - text);
    const char *epoch = after(head, left, "\\\"epoch\\\":"), *number = after(head, left, "\\\"number\\\":");
    const char *version = after(head, left, "\\\"version\\\":\\\"");
    if (!epoch || !number || !version) return 0;
    c->epoch = atol(epoch);
    c->number = atol(number);
    memcpy(c->version, version, 71);
    c->version[71] = 0;
    return 1;
}

static void take(struct client *c, const char *text, size_t n, int64_t at) {
    int delta = memmem(text, n < 64 ? n : 64, "\"delta\"", 7) || memmem(text, n < 64 ? n : 64, "\"advance\"", 9);
    int snapshot = !delta && memmem(text, n < 64 ? n : 64, "\"snapshot\"", 10) != NULL;
    if (!delta && !snapshot) return;
    if (after(text, n, "\"parts\":") && !after(text, n, "\"proof\":")) return;      // not the last piece yet
    if (!read_head(c, text, n)) return drop(c, "no head in a frame");
    if (snapshot && c->state == WELCOMED) { c->state = LIVE; live++; in_flight--; }
    if (delta) {
        if (sampled == sample_room) samples = realloc(samples, (sample_room = sample_room * 2 + 65536) * sizeof *samples);
        samples[sampled++] = (struct sample){(int32_t)c->number, (int32_t)(c - all), at};
    }
    int urgent = memmem(text, n, "\"answer\":\"now\"", 14) != NULL;
    if (urgent) send_receipt(c);
    else if (!c->answer_at) c->answer_at = at + rand() % JITTER_US;
}

static void frames(struct client *c, int64_t at) {
    size_t done = 0;
    while (c->used - done >= 2 && c->state != GONE) {
        unsigned char *f = (unsigned char *)c->buffer + done;
        size_t head = 2, n = f[1] & 127;
        if (n == 126) { head = 4; if (c->used - done < head) break; n = (size_t)f[2] << 8 | f[3]; }
        else if (n == 127) { head = 10; if (c->used - done < head) break; n = 0; for (int i = 2; i < 10; i++) n = n << 8 | f[i]; }
        if (c->used - done < head + n) break;
        int opcode = f[0] & 15;
        if (opcode == 8) return drop(c, "closed by the server");
        if (opcode == 9) { char pong[6] = {(char)0x8a, (char)0x80, 0, 0, 0, 0}; send_all(c, pong, sizeof pong); }
        if (opcode == 1) take(c, (char *)f + head, n, at);
        done += head + n;
    }
    if (c->state != GONE) memmove(c->buffer, c->buffer + done, c->used -= done);
}

static void readable(struct client *c) {
    for (;;) {
        if (c->room - c->used < 65536) c->buffer = realloc(c->buffer, c->room = c->room * 2 + 65536);
        ssize_t n = recv(c->fd, c->buffer + c->used, c->room - c->used, 0);
        if (n < 0 && errno == EAGAIN) break;
        if (n <= 0) return drop(c, "connection lost");
        c->used += (size_t)n;
        if (c->used < c->room) break;                                             // drained
    }
    int64_t at = now_us();
    if (c->state == UPGRADING) {
        char *end = memmem(c->buffer, c->used, "\r\n\r\n", 4);
        if (!end) return;
        if (memcmp(c->buffer, "HTTP/1.1 101", 12)) return drop(c, "not upgraded");
        size_t head = (size_t)(end + 4 - c->buffer);
        memmove(c->buffer, end + 4, c->used -= head);
        c->state = WELCOMED;
        c->heartbeat_at = at + rand() % HEARTBEAT_US;
        say_hello(c);
    }
    frames(c, at);
}

static void due(int64_t at) {
    for (int i = 0; i < opened; i++) {
        struct client *c = &all[i];
        if (c->state != LIVE) continue;
        if (c->answer_at && c->answer_at <= at) send_receipt(c);
        if (c->state == LIVE && c->heartbeat_at <= at) {
            char text[96];
            int n = snprintf(text, sizeof text, "{\"type\":\"heartbeat\",\"views\":{},\"sent_at_us\":%lld}", (long long)at);
            c->heartbeat_at = at + HEARTBEAT_US;
            send_text(c, text, (size_t)n);
        }
    }
}

static int write_out(const char *path) {
    FILE *out = fopen(path, "w");
    if (!out) { perror(path); return 2; }
    for (size_t i = 0; i < sampled; i++) fprintf(out, "%d %d %lld\n", samples[i].number, samples[i].client, (long long)samples[i].at);
    return fclose(out) || dropped ? 1 : 0;
}

int main(int argc, char **argv) {
    if (argc != 8) { fprintf(stderr, "usage: crowd HOST PORT TOKEN NAMESPACE ENVIRONMENT CLIENTS OUT\n"); return 2; }
    host = argv[1]; port = atoi(argv[2]); token = argv[3]; namespace_ = argv[4]; environment = argv[5]; clients = atoi(argv[6]);
    all = calloc((size_t)clients, sizeof *all);
    poller = epoll_create1(0);
    struct sched_param none = {0};
    sched_setscheduler(0, SCHED_BATCH, &none);
    struct timespec pause = {.tv_nsec = PAUSE_NS};
    signal(SIGTERM, on_term);
    struct epoll_event stdin_event = {.events = EPOLLIN | EPOLLHUP, .data.u32 = UINT32_MAX}, events[512];
    epoll_ctl(poller, EPOLL_CTL_ADD, 0, &stdin_event);
    int said = 0;
    int64_t next = 0;
    while (!ending) {
        while (opened < clients && in_flight < IN_FLIGHT) connect_next();
        int n = epoll_wait(poller, events, 512, TICK_MS);
        for (int i = 0; i < n; i++) {
            if (events[i].data.u32 == UINT32_MAX) { char byte; if (read(0, &byte, 1) <= 0) ending = 1; continue; }
            struct client *c = &all[events[i].data.u32];
            if (c->state == GONE) continue;
            if (c->state == CONNECTING) upgrade(c);
            else readable(c);
        }
        int64_t at = now_us();
        if (at >= next) { due(at); next = at + TICK_MS * 1000; }
        if (!said && live + dropped == clients) { said = 1; printf("READY %d\n", live); fflush(stdout); }
        nanosleep(&pause, NULL);
    }
    return write_out(argv[7]);
}
