// A crowd of clients in one epoll thread that speaks the protocol of the server which is measured, so that every server gets the same job from
// the same program.
//
//   load PROTOCOL HOST PORT CLIENTS [--option value]…          PROTOCOL: heliograph, raw, redis, nats, centrifugo, etcd
//
//   --token T --namespace NS --environment ENV    heliograph: who and where
//   --environments E   spread over ENV-0 … ENV-(E-1) instead of ENV      --views V   over V different views instead of one shared
//   --answer told      heliograph: receipts as an SDK sends them; raw: 60 bytes for each frame. Otherwise nobody answers
//   --greet 1          raw: hello after the upgrade, live when the answer's end has come (a bare server in the place of a snapshot)
//   --heartbeat S      heliograph: seconds between two, 60 by default
//   --never K          the first K clients stop reading when they are live, and are not counted
//   --flight F         connections being opened at a time, 100 by default (the server limits them too)
//   --spin 1           in a round, poll without sleeping: no server pays for waking this program
//   --tls 1            TLS 1.3, certificate not checked
//
// Standard output has one line of JSON for: being live with all clients; and each line of standard input:
//   publish SEQ SIZE EXPECT    SIZE bytes published on a connection of its own, until EXPECT clients have the last of them
//   await EXPECT               says {"armed": true}, then waits for EXPECT frames with a version that somebody else publishes
//   serve MILLISECONDS         serves its connections as long; says how many receipts were acknowledged since the round began
// Times are microseconds since the Unix epoch. Ends with standard input; 1 when a client was dropped, 2 when it could not do its work.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define SOURCES 4                   // addresses 127.0.0.2 to .5, so that ports do not run out
#define JITTER_US 500000
#define TICK_US 5000
#define BEAT_US 250000
#define ROUND_US 30000000LL
#define STALL_US 30000000LL
#define MARK 12                     // "@@00000001@@"
#define DEFAULT_PORTS_ARE_BOUND_LATE 24

enum state { IDLE, CONNECTING, SECURING, GREETING, LIVE, GONE };

struct client {
    int fd, step;
    enum state state;
    SSL *tls;
    char *kept;                     // what is left of the last read: the beginning of a frame
    size_t used;
    int64_t answer_at, heartbeat_at;
    long seq, epoch, number;
    char version[72];
};

// step: how far the greeting is. `say` writes what to send, 0: nothing more, it is live. `heard`: bytes of a complete answer, 0: not all is here yet.
// `take`: what a live client is sent; bytes that are done with. `publish`: the message as a publisher sends it.
struct protocol {
    const char *name;
    size_t (*say)(struct client *, int step, char *out);
    size_t (*heard)(struct client *, int step, char *in, size_t n);
    size_t (*take)(struct client *, char *in, size_t n, int64_t at);
    size_t (*publish)(char *out, const char *payload, size_t n);
};

static const struct protocol *protocol;
static const char *host, *token = "", *namespace_ = "", *environment = "";
static int port, clients, environments = 1, views = 1, answering, greet, never, flight = 100, spin, secure;
static int64_t heartbeat_us = 60000000;
static struct client *all;
static SSL_CTX *context;
static int poller, opened, in_flight, live, dropped, tick_wanted;
static char scratch[4 << 20];
// of the round that runs
static int64_t *arrivals, acked_at, published_at;
static int got, expected, acked, sequence;
static size_t bytes_read;

// --- small things ---

static int64_t now_us(void) {
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    return t.tv_sec * 1000000LL + t.tv_nsec / 1000;
}

static void die(const char *format, ...) {
    va_list rest;
    va_start(rest, format);
    fputs("load: ", stderr);
    vfprintf(stderr, format, rest);
    fputc('\n', stderr);
    exit(2);
}

static int is_publisher(const struct client *c) { return c == &all[clients]; }

static void drop(struct client *c, const char *why) {
    if (dropped++ < 5) fprintf(stderr, "load: client %ld dropped: %s\n", (long)(c - all), why);
    if (c->state == LIVE) live--;
    else in_flight--;
    if (c->tls) SSL_free(c->tls);
    close(c->fd);
    c->state = GONE;
}

static const char *after(const char *text, size_t n, const char *mark) {
    const char *at = memmem(text, n, mark, strlen(mark));
    return at ? at + strlen(mark) : NULL;
}

// --- bytes in and out ---

static ssize_t receive(struct client *c, char *into, size_t room) {
    if (!c->tls) return recv(c->fd, into, room, 0);
    int n = SSL_read(c->tls, into, (int)room);
    if (n > 0) return n;
    int error = SSL_get_error(c->tls, n);
    ERR_clear_error();
    if (error != SSL_ERROR_WANT_READ && error != SSL_ERROR_WANT_WRITE) return 0;
    errno = EAGAIN;
    return -1;
}

static void send_all(struct client *c, const char *data, size_t n) {
    while (n && c->state != GONE) {
        ssize_t sent = c->tls ? SSL_write(c->tls, data, (int)n) : send(c->fd, data, n, MSG_NOSIGNAL);
        if (sent > 0) { data += sent; n -= (size_t)sent; }
        else if (!c->tls && errno == EAGAIN && is_publisher(c)) usleep(50);          // a server that is busy; others send a few bytes only
        else return drop(c, "could not write");
    }
}

static size_t frame(char *out, int opcode, const char *payload, size_t n) {          // masked, with a key of zeros
    size_t head = n < 126 ? 2 : 4;
    out[0] = (char)(0x80 | opcode);
    if (n < 126) out[1] = (char)(0x80 | n);
    else { out[1] = (char)(0x80 | 126); out[2] = (char)(n >> 8); out[3] = (char)n; }
    memset(out + head, 0, 4);
    memcpy(out + head + 4, payload, n);
    return head + 4 + n;
}

static void send_text(struct client *c, const char *text, size_t n) {
    char out[2048];
    send_all(c, out, frame(out, 1, text, n));
}

// --- a round's bookkeeping ---

static void arrived(int64_t at) {
    if (got < expected) arrivals[got] = at;
    got++;
}

// Payloads end with a mark that names the round, so no protocol's framing need be understood to know that all of it is here.
static size_t take_marked(struct client *c, char *in, size_t n, int64_t at) {
    char *from = in, *mark;
    while ((mark = memmem(from, n - (size_t)(from - in), "@@", 2)) && n - (size_t)(mark - in) >= MARK) {
        from = mark + 2;
        if (mark[10] != '@' || mark[11] != '@' || atoi(mark + 2) != sequence) continue;
        from = mark + MARK;
        if (is_publisher(c)) { acked = expected; acked_at = at; continue; }
        arrived(at);
        if (answering) {
            static const char answer[60] = "{\"type\":\"receipt\",\"state\":\"applied\"}";
            send_text(c, answer, sizeof answer);
        }
    }
    size_t left = n - (size_t)(from - in);
    return left < MARK ? n - left : n - (MARK - 1);
}

// --- WebSocket ---

static size_t say_upgrade(char *out, const char *path, const char *more) {
    return (size_t)sprintf(out, "GET %s HTTP/1.1\r\nHost: %s:%d\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n%s\r\n", path, host, port, more);
}

static size_t heard_upgrade(struct client *c, char *in, size_t n) {
    char *end = memmem(in, n, "\r\n\r\n", 4);
    if (!end) return 0;
    if (memcmp(in, "HTTP/1.1 101", 12)) { in[n < 200 ? n : 200] = 0; drop(c, in); return 0; }
    return (size_t)(end + 4 - in);
}

// A whole frame at `in`: its payload, or NULL.
static char *whole(char *in, size_t n, size_t *length) {
    unsigned char *f = (unsigned char *)in;
    if (n < 2) return NULL;
    size_t head = 2, size = f[1] & 127;
    if (size == 126) { head = 4; if (n < head) return NULL; size = (size_t)f[2] << 8 | f[3]; }
    else if (size == 127) { head = 10; if (n < head) return NULL; size = 0; for (int i = 2; i < 10; i++) size = size << 8 | f[i]; }
    if (n < head + size) return NULL;
    *length = size;
    return in + head;
}

// --- a raw WebSocket: the C loop and a bare server ---

static size_t raw_say(struct client *c, int step, char *out) {
    if (step == 0) return say_upgrade(out, is_publisher(c) ? "/pub" : "/sub", "");
    if (step > 1 || !greet || is_publisher(c)) return 0;
    char text[400];
    memset(text, 'h', sizeof text);                                                  // as long as a hello
    return frame(out, 1, text, sizeof text);
}

static size_t raw_heard(struct client *c, int step, char *in, size_t n) {
    if (step == 0) return heard_upgrade(c, in, n);
    const char *end = after(in, n, "@@greeted@@");
    return end ? (size_t)(end - in) : 0;
}

static size_t raw_publish(char *out, const char *payload, size_t n) { return frame(out, 1, payload, n); }

// --- heliograph.v1 ---

static size_t hello(struct client *c, char *out) {
    char text[1024], where[128], view[64] = "\"\"";
    int id = (int)(c - all);
    snprintf(where, sizeof where, environments > 1 ? "%s-%d" : "%s", environment, id % environments);
    if (views > 1) snprintf(view, sizeof view, "\"service-0\",\"view-%d\"", id % views);
    int n = snprintf(text, sizeof text,
        "{\"type\":\"hello\",\"instance\":\"01900000-0000-7000-8000-%06x%06x\",\"incarnation\":%lld,"
        "\"fingerprint\":{\"sdk\":\"load\",\"sdk_version\":\"1\",\"language\":\"c\",\"host\":\"load-%d\"},"
        "\"subscriptions\":[{\"id\":1,\"namespace\":\"%s\",\"environment\":\"%s\",\"view\":[%s],\"have\":null}],\"sent_at_us\":%lld}",
        (unsigned)getpid() & 0xffffff, id, (long long)now_us(), id % 7, namespace_, where, view, (long long)now_us());
    return frame(out, 1, text, (size_t)n);
}

static size_t heliograph_say(struct client *c, int step, char *out) {
    if (step == 1) return hello(c, out);
    if (step > 1) return 0;
    char more[400];
    snprintf(more, sizeof more, "Sec-WebSocket-Protocol: heliograph.v1\r\nAuthorization: Bearer %s\r\n", token);
    return say_upgrade(out, "/v1/stream", more);
}

// The head travels as text inside the frame, so its members stand there with escaped quotes. Frames are shared: the last one is mostly this one.
static int read_head(struct client *c, const char *text, size_t n) {
    static struct client last;
    static char *seen;
    static size_t length;
    if (n != length || memcmp(seen, text, n)) {
        const char *head = after(text, n, "\"head\":{");
        if (!head) return 0;
        size_t left = n - (size_t)(head - text);
        const char *epoch = after(head, left, "\\\"epoch\\\":"), *number = after(head, left, "\\\"number\\\":");
        const char *version = after(head, left, "\\\"version\\\":\\\"");
        if (!epoch || !number || !version) return 0;
        last.epoch = atol(epoch);
        last.number = atol(number);
        memcpy(last.version, version, 71);
        memcpy(seen = realloc(seen, n), text, length = n);
    }
    c->epoch = last.epoch;
    c->number = last.number;
    memcpy(c->version, last.version, sizeof c->version);
    return 1;
}

static void send_receipt(struct client *c) {
    char text[512];
    int n = snprintf(text, sizeof text,
        "{\"type\":\"receipt\",\"seq\":%ld,\"subscription\":1,\"epoch\":%ld,\"number\":%ld,\"version\":\"%s\",\"state\":\"applied\","
        "\"applied_at_us\":%lld,\"clock_offset_us\":0}", ++c->seq, c->epoch, c->number, c->version, (long long)now_us());
    c->answer_at = 0;
    send_text(c, text, (size_t)n);
}

// Whether this was the snapshot's end.
static int heliograph_frame(struct client *c, const char *text, size_t n, int64_t at) {
    size_t beginning = n < 64 ? n : 64;
    int delta = memmem(text, beginning, "\"delta\"", 7) || memmem(text, beginning, "\"advance\"", 9);
    int snapshot = !delta && memmem(text, beginning, "\"snapshot\"", 10) != NULL;
    const char *acknowledged = delta || snapshot ? NULL : after(text, n, "\"receipt_ack\",\"seq\":");
    if (acknowledged && atol(acknowledged) == c->seq) { acked++; acked_at = at; }
    if (after(text, beginning, "\"error\"")) { fprintf(stderr, "load: %.*s\n", (int)n, text); drop(c, "an error"); }
    if ((!delta && !snapshot) || c->state == GONE) return 0;
    if (memmem(text, n, "\"parts\":", 8) && !memmem(text, n, "\"proof\":", 8)) return 0;      // not the last piece yet
    if (!read_head(c, text, n)) { drop(c, "no head in a frame"); return 0; }
    if (c->state == LIVE) arrived(at);
    if (answering) {
        if (memmem(text, n, "\"answer\":\"now\"", 14)) send_receipt(c);
        else if (!c->answer_at) c->answer_at = at + rand() % JITTER_US;
    }
    return snapshot;
}

// Bytes of whole frames. Stops after a snapshot's end while the client is not live.
static size_t heliograph_frames(struct client *c, char *in, size_t n, int64_t at, int *greeted) {
    size_t done = 0, length;
    char *payload;
    while (c->state != GONE && (payload = whole(in + done, n - done, &length))) {
        int opcode = in[done] & 15;
        if (opcode == 8) { payload[length] = 0; drop(c, length > 2 ? payload + 2 : "closed by the server"); break; }
        if (opcode == 9) { char pong[8]; send_all(c, pong, frame(pong, 10, "", 0)); }
        done = (size_t)(payload + length - in);
        if (opcode == 1 && heliograph_frame(c, payload, length, at) && c->state != LIVE) { *greeted = 1; break; }
    }
    return done;
}

// As an SDK does: at the next quarter of a second of the server's clock, which is ours here.
static int64_t in_step(int64_t at) { return (at + BEAT_US - 1) / BEAT_US * BEAT_US; }

static size_t heliograph_heard(struct client *c, int step, char *in, size_t n) {
    if (step == 0) return heard_upgrade(c, in, n);
    int greeted = 0;
    size_t done = heliograph_frames(c, in, n, now_us(), &greeted);
    if (greeted) c->heartbeat_at = in_step(now_us() + rand() % heartbeat_us);
    return greeted ? done : 0;
}

static size_t heliograph_take(struct client *c, char *in, size_t n, int64_t at) {
    int ignored;
    return heliograph_frames(c, in, n, at, &ignored);
}

static void due(int64_t at) {
    for (int i = 0; i < opened; i++) {
        struct client *c = &all[i];
        if (c->state == LIVE && c->answer_at && c->answer_at <= at) send_receipt(c);
        if (c->state != LIVE || c->heartbeat_at > at || is_publisher(c) || i < never) continue;
        char text[96];
        int n = snprintf(text, sizeof text, "{\"type\":\"heartbeat\",\"views\":{},\"sent_at_us\":%lld}", (long long)at);
        c->heartbeat_at = in_step(at + heartbeat_us - BEAT_US / 2);
        send_text(c, text, (size_t)n);
    }
}

// --- Redis, NATS, Centrifugo ---

static size_t redis_say(struct client *c, int step, char *out) {
    if (step) return 0;
    return (size_t)sprintf(out, is_publisher(c) ? "PING\r\n" : "SUBSCRIBE bench\r\n");
}

static size_t redis_heard(struct client *c, int step, char *in, size_t n) {
    (void)step;
    const char *end = after(in, n, is_publisher(c) ? "PONG\r\n" : ":1\r\n");
    return end ? (size_t)(end - in) : 0;
}

static size_t redis_publish(char *out, const char *payload, size_t n) {
    return (size_t)sprintf(out, "*3\r\n$7\r\nPUBLISH\r\n$5\r\nbench\r\n$%zu\r\n%.*s\r\n", n, (int)n, payload);
}

static size_t nats_say(struct client *c, int step, char *out) {
    if (step) return 0;
    return (size_t)sprintf(out, "CONNECT {\"verbose\":false,\"pedantic\":false}\r\n%sPING\r\n", is_publisher(c) ? "" : "SUB bench 1\r\n");
}

static size_t nats_heard(struct client *c, int step, char *in, size_t n) {
    (void)c; (void)step;
    const char *end = after(in, n, "PONG\r\n");
    return end ? (size_t)(end - in) : 0;
}

static size_t nats_publish(char *out, const char *payload, size_t n) {
    return (size_t)sprintf(out, "PUB bench %zu\r\n%.*s\r\n", n, (int)n, payload);
}

static size_t centrifugo_say(struct client *c, int step, char *out) {
    static const char connect_[] = "{\"id\":1,\"connect\":{}}", subscribe[] = "{\"id\":2,\"subscribe\":{\"channel\":\"bench\"}}";
    if (step == 0) return say_upgrade(out, "/connection/websocket", "");
    if (step == 1) return frame(out, 1, connect_, sizeof connect_ - 1);
    return step == 2 && !is_publisher(c) ? frame(out, 1, subscribe, sizeof subscribe - 1) : 0;
}

static size_t centrifugo_heard(struct client *c, int step, char *in, size_t n) {
    size_t length;
    if (step == 0) return heard_upgrade(c, in, n);
    char *payload = whole(in, n, &length);
    if (!payload) return 0;
    if (after(payload, length, "\"error\"") || (in[0] & 15) == 8) { fprintf(stderr, "load: %.*s\n", (int)length, payload); drop(c, "refused"); }
    return (size_t)(payload + length - in);
}

static size_t centrifugo_publish(char *out, const char *payload, size_t n) {
    static char text[70000];
    int length = sprintf(text, "{\"id\":3,\"publish\":{\"channel\":\"bench\",\"data\":%.*s}}", (int)n, payload);
    return frame(out, 1, text, (size_t)length);
}

// --- etcd: as much of HTTP/2 and gRPC as one watch and one put need ---

static int stream_id = 1;

static size_t h2(char *out, int type, int flags, int stream, const char *payload, size_t n) {
    char head[9] = {(char)(n >> 16), (char)(n >> 8), (char)n, (char)type, (char)flags, 0, 0, (char)(stream >> 8), (char)stream};
    memcpy(out, head, sizeof head);
    memmove(out + sizeof head, payload, n);
    return sizeof head + n;
}

static size_t header(char *out, const char *name, const char *value) {
    return (size_t)sprintf(out, "%c%c%s%c%s", 16, (char)strlen(name), name, (char)strlen(value), value);       // literal, never indexed
}

static size_t call(char *out, int stream, const char *path) {
    char text[512];
    size_t n = 0;
    const char *pairs[][2] = {{":method", "POST"}, {":scheme", "http"}, {":path", path}, {":authority", "etcd"}, {"te", "trailers"},
                              {"content-type", "application/grpc"}};
    for (size_t i = 0; i < sizeof pairs / sizeof *pairs; i++) n += header(text + n, pairs[i][0], pairs[i][1]);
    return h2(out, 1, 4, stream, text, n);
}

static size_t field(char *out, int number, const char *value, size_t n) {            // of protobuf, length-delimited
    size_t at = 0, left = n;
    out[at++] = (char)(number << 3 | 2);
    for (; left > 127; left >>= 7) out[at++] = (char)(left | 128);
    out[at++] = (char)left;
    memcpy(out + at, value, n);
    return at + n;
}

static size_t message(char *out, int flags, int stream, const char *body, size_t n) {
    static char text[70000];
    char head[5] = {0, (char)(n >> 24), (char)(n >> 16), (char)(n >> 8), (char)n};
    memcpy(text, head, sizeof head);
    memcpy(text + sizeof head, body, n);
    return h2(out, 0, flags, stream, text, sizeof head + n);
}

static size_t etcd_say(struct client *c, int step, char *out) {
    static const char window[] = {0, 4, 0x7f, (char)0xff, (char)0xff, (char)0xff};   // the peer may send without waiting for us
    char key[16], request[32];
    if (step) return 0;
    size_t n = (size_t)sprintf(out, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
    n += h2(out + n, 4, 0, 0, window, sizeof window);
    n += h2(out + n, 8, 0, 0, "\x7f\xff\0\0", 4);
    if (is_publisher(c)) return n;
    n += call(out + n, 1, "/etcdserverpb.Watch/Watch");
    size_t length = field(request, 1, key, field(key, 1, "bench", 5));
    return n + message(out + n, 0, 1, request, length);
}

static size_t etcd_heard(struct client *c, int step, char *in, size_t n) {           // settings suffice for the publisher, a watcher has an answer
    (void)step;
    for (size_t at = 0; at + 9 <= n;) {
        unsigned char *f = (unsigned char *)in + at;
        size_t length = (size_t)f[0] << 16 | (size_t)f[1] << 8 | f[2];
        at += 9 + length;
        if (at > n) return 0;
        if (f[3] == 7) { drop(c, "sent away"); return 0; }
        if (f[3] == 4 && !(f[4] & 1)) { char ok[9]; send_all(c, ok, h2(ok, 4, 1, 0, "", 0)); if (is_publisher(c)) return n; f[3] = 255; }
        if (f[3] == 0 && length) return at;
    }
    return 0;
}

static size_t etcd_publish(char *out, const char *payload, size_t n) {
    static char body[70000];
    size_t length = field(body, 1, "bench", 5);
    length += field(body + length, 2, payload, n);
    stream_id += 2;
    n = call(out, stream_id, "/etcdserverpb.KV/Put");
    return n + message(out + n, 1, stream_id, body, length);
}

static const struct protocol protocols[] = {
    {"heliograph", heliograph_say, heliograph_heard, heliograph_take, NULL},
    {"raw", raw_say, raw_heard, take_marked, raw_publish},
    {"redis", redis_say, redis_heard, take_marked, redis_publish},
    {"nats", nats_say, nats_heard, take_marked, nats_publish},
    {"centrifugo", centrifugo_say, centrifugo_heard, take_marked, centrifugo_publish},
    {"etcd", etcd_say, etcd_heard, take_marked, etcd_publish},
};

// --- connections ---

static void watch(struct client *c, int operation, uint32_t events) {
    struct epoll_event event = {.events = events, .data.u32 = (uint32_t)(c - all)};
    epoll_ctl(poller, operation, c->fd, &event);
}

static void open_next(void) {
    struct client *c = &all[opened++];
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)}, from = {.sin_family = AF_INET};
    struct linger at_once = {1, 0};                                                  // no thousands of sockets in TIME_WAIT for the next run
    int one = 1;
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    if (c->fd < 0) die("socket %d of %d: %s", opened, clients, strerror(errno));
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    setsockopt(c->fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once);
    setsockopt(c->fd, IPPROTO_IP, DEFAULT_PORTS_ARE_BOUND_LATE, &one, sizeof one);
    from.sin_addr.s_addr = htonl(0x7f000002u + (uint32_t)(opened % SOURCES));
    inet_pton(AF_INET, host, &to.sin_addr);
    if (bind(c->fd, (struct sockaddr *)&from, sizeof from)) die("bind: %s", strerror(errno));
    c->state = CONNECTING;
    in_flight++;
    if (connect(c->fd, (struct sockaddr *)&to, sizeof to) && errno != EINPROGRESS) return drop(c, strerror(errno));
    watch(c, EPOLL_CTL_ADD, EPOLLOUT);
}

static void say_next(struct client *c) {
    static char out[80000];
    size_t n = protocol->say(c, c->step, out);
    if (n) return send_all(c, out, n);
    c->state = LIVE;
    live++;
    in_flight--;
    if (c - all < never) epoll_ctl(poller, EPOLL_CTL_DEL, c->fd, NULL);
}

static void secured(struct client *c) {
    int done = SSL_do_handshake(c->tls), error = done == 1 ? 0 : SSL_get_error(c->tls, done);
    if (error == SSL_ERROR_WANT_WRITE) return watch(c, EPOLL_CTL_MOD, EPOLLOUT);
    watch(c, EPOLL_CTL_MOD, EPOLLIN);
    if (error == SSL_ERROR_WANT_READ) return;
    if (error) { ERR_clear_error(); return drop(c, "no TLS"); }
    c->state = GREETING;
    say_next(c);
}

static void connected(struct client *c) {
    int error = 0;
    socklen_t size = sizeof error;
    getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &error, &size);
    if (error) return drop(c, strerror(error));
    if (secure) {
        c->tls = SSL_new(context);
        SSL_set_fd(c->tls, c->fd);
        SSL_set_connect_state(c->tls);
        c->state = SECURING;
        return secured(c);
    }
    watch(c, EPOLL_CTL_MOD, EPOLLIN);
    c->state = GREETING;
    say_next(c);
}

static size_t understood(struct client *c, char *in, size_t n, int64_t at) {
    size_t done = 0;
    while (c->state == GREETING) {
        size_t heard = protocol->heard(c, c->step, in + done, n - done);
        if (!heard) return done;
        done += heard;
        c->step++;
        say_next(c);
    }
    return c->state == LIVE ? done + protocol->take(c, in + done, n - done, at) : n;
}

static void readable(struct client *c) {
    do {
        size_t n = c->used;
        if (n) memcpy(scratch, c->kept, n);
        ssize_t more = receive(c, scratch + n, sizeof scratch - n - 1);
        if (more < 0 && errno == EAGAIN) return;
        if (more <= 0) return drop(c, "connection lost");
        bytes_read += (size_t)more;
        n += (size_t)more;
        size_t done = understood(c, scratch, n, now_us());
        c->used = n - done;
        if (c->used) memcpy(c->kept = realloc(c->kept, c->used), scratch + done, c->used);
        else if (c->kept) { free(c->kept); c->kept = NULL; }
    } while (c->tls && c->state != GONE && SSL_pending(c->tls));
}

static int serve(int wait_ms) {
    static struct epoll_event events[512];
    static int64_t next;
    int n = epoll_wait(poller, events, 512, wait_ms);
    for (int i = 0; i < n; i++) {
        struct client *c = &all[events[i].data.u32];
        if (c->state == CONNECTING) connected(c);
        else if (c->state == SECURING) secured(c);
        else if (c->state != GONE) readable(c);
    }
    if (tick_wanted) {
        int64_t at = now_us();
        if (at >= next) { due(at); next = at + TICK_US; }
    }
    return n;
}

static void open_until(int count) {
    int64_t stalled = now_us() + STALL_US;
    int before = live;
    while (live + dropped < count) {
        while (opened < count && in_flight < flight) open_next();
        serve(1000);
        if (live != before) { before = live; stalled = now_us() + STALL_US; }
        if (now_us() > stalled) die("only %d of %d connections are live after %lld s without another", live, count, STALL_US / 1000000);
    }
    if (dropped) die("%d of %d connections were dropped while opening", dropped, count);
}

// --- rounds ---

static int by_time(const void *a, const void *b) {
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return x < y ? -1 : x > y;
}

static long long own_cpu_us(void) {
    struct rusage u;
    getrusage(RUSAGE_SELF, &u);
    return (u.ru_utime.tv_sec + u.ru_stime.tv_sec) * 1000000LL + u.ru_utime.tv_usec + u.ru_stime.tv_usec;
}

static void run_round(int answers_too) {
    long long cpu = own_cpu_us();
    int64_t until = now_us() + ROUND_US;
    while (got < expected || (answers_too && acked < expected)) {
        if (!serve(spin ? 0 : 5)) {
            if (now_us() > until) break;
            if (spin) for (int i = 0; i < 50; i++) __builtin_ia32_pause();
        }
    }
    int n = got < expected ? got : expected;
    qsort(arrivals, (size_t)n, sizeof *arrivals, by_time);
    if (!n) arrivals[n++] = 0;
    printf("{\"expected\":%d,\"got\":%d,\"published_us\":%lld,\"first_us\":%lld,\"p50_us\":%lld,\"p99_us\":%lld,\"last_us\":%lld,\"acked\":%d,"
        "\"acked_us\":%lld,\"bytes\":%zu,\"own_cpu_us\":%lld,\"dropped\":%d}\n", expected, got, (long long)published_at, (long long)arrivals[0],
        (long long)arrivals[n / 2], (long long)arrivals[(size_t)(n * 0.99)], (long long)arrivals[n - 1], acked, (long long)acked_at,
        bytes_read, own_cpu_us() - cpu, dropped);
}

static void begin_round(int wanted) {
    expected = wanted;
    got = acked = 0;
    published_at = acked_at = 0;
    bytes_read = 0;
    arrivals = realloc(arrivals, sizeof *arrivals * (size_t)(wanted + 1));
}

static void publish(int size) {
    static char payload[65536], out[80000];
    if (size < 64 || size > (int)sizeof payload) die("a payload has 64 to %zu bytes", sizeof payload);
    int head = sprintf(payload, "{\"number\":%d,\"text\":\"", sequence);
    memset(payload + head, 'a', (size_t)(size - head));
    memset(payload + size - MARK - 2, '@', MARK);
    char digits[16];
    memcpy(payload + size - MARK, digits, (size_t)sprintf(digits, "%08d", sequence));
    memcpy(payload + size - 2, "\"}", 2);
    size_t n = protocol->publish(out, payload, (size_t)size);
    published_at = now_us();
    send_all(&all[clients], out, n);
}

static void obey(char *line) {
    int a, b, c;
    if (sscanf(line, "publish %d %d %d", &a, &b, &c) == 3 && protocol->publish) {
        if (opened == clients) open_until(clients + 1);
        begin_round(c);
        sequence = a;
        publish(b);
        run_round(answering);
    } else if (sscanf(line, "await %d", &a) == 1) {
        begin_round(a);
        puts("{\"armed\":true}");
        fflush(stdout);
        run_round(0);
    } else if (sscanf(line, "serve %d", &a) == 1) {
        int64_t until = now_us() + a * 1000LL;
        while (now_us() < until) serve(5);
        printf("{\"acked\":%d,\"acked_us\":%lld,\"dropped\":%d}\n", acked, (long long)acked_at, dropped);
    } else die("not understood: %s", line);
    fflush(stdout);
}

static void obey_all(void) {
    static char text[4096];
    size_t used = 0;
    for (;;) {
        ssize_t n = read(0, text + used, sizeof text - used - 1);
        if (n == 0) return;
        if (n < 0) { serve(5); continue; }
        text[used += (size_t)n] = 0;
        for (char *end; (end = strchr(text, '\n')); ) {
            *end = 0;
            obey(text);
            memmove(text, end + 1, used -= (size_t)(end + 1 - text));
            text[used] = 0;
        }
    }
}

// --- the beginning ---

static void option(const char *name, const char *value) {
    struct { const char *name; int *number; const char **text; } known[] = {
        {"token", NULL, &token}, {"namespace", NULL, &namespace_}, {"environment", NULL, &environment}, {"environments", &environments, NULL},
        {"views", &views, NULL}, {"greet", &greet, NULL}, {"never", &never, NULL}, {"flight", &flight, NULL}, {"spin", &spin, NULL},
        {"tls", &secure, NULL},
    };
    if (!strcmp(name, "answer")) { answering = !strcmp(value, "told"); return; }
    if (!strcmp(name, "heartbeat")) { heartbeat_us = (int64_t)(atof(value) * 1e6); return; }
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        if (strcmp(known[i].name, name)) continue;
        if (known[i].number) *known[i].number = atoi(value);
        else *known[i].text = value;
        return;
    }
    die("there is no option --%s", name);
}

static rlim_t allow_files(void) {
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
    if ((rlim_t)clients + 20 > limit.rlim_cur) die("%d clients need more than the %llu files that this process may open", clients, (unsigned long long)limit.rlim_cur);
    return limit.rlim_cur;
}

int main(int argc, char **argv) {
    if (argc < 5 || argc % 2 == 0) die("usage: load PROTOCOL HOST PORT CLIENTS [--option value]…; see the beginning of load.c");
    for (size_t i = 0; i < sizeof protocols / sizeof *protocols; i++) if (!strcmp(protocols[i].name, argv[1])) protocol = &protocols[i];
    if (!protocol) die("there is no protocol %s", argv[1]);
    host = argv[2]; port = atoi(argv[3]); clients = atoi(argv[4]);
    for (int i = 5; i < argc; i += 2) option(argv[i] + 2, argv[i + 1]);
    rlim_t files = allow_files();
    tick_wanted = protocol == &protocols[0];
    if (secure) {
        context = SSL_CTX_new(TLS_client_method());
        SSL_CTX_set_min_proto_version(context, TLS1_3_VERSION);
        SSL_CTX_set_mode(context, SSL_MODE_RELEASE_BUFFERS);
    }
    all = calloc((size_t)clients + 1, sizeof *all);
    poller = epoll_create1(0);
    int64_t began = now_us();
    open_until(clients);
    printf("{\"live\":%d,\"seconds\":%.4f,\"files\":%llu}\n", live, (double)(now_us() - began) / 1e6, (unsigned long long)files);
    fflush(stdout);
    fcntl(0, F_SETFL, fcntl(0, F_GETFL) | O_NONBLOCK);
    obey_all();
    return dropped ? 1 : 0;
}
