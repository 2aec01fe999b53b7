/* An open loop of HTTP requests: `open HOST PORT MESSAGE DUE FOUND`.
 *
 * DUE holds seconds from the start, doubles in rising order; the bytes of MESSAGE are sent at each of them, whatever
 * became of those before, over as many connections as that takes. FOUND gets, per request, three doubles: the HTTP
 * status (0: the connection broke, or nothing came within 30 s of the last one), the seconds from when it was due to the
 * whole answer, and the seconds by which this program was late in sending it.
 *
 * One thread and one epoll: a generator that shares the server's processors must cost little beside it. So it looks every
 * 0.3 ms, whatever has come by then; woken by each answer, it costs the processors twice as much, and the server has to
 * pay for the waking. A request is that much late at most, which counts, and so is the reading of its answer.
 *
 * Where the system allows it, it goes before every other process when it wakes: clients that have machines of their own
 * send in time however busy the server is.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { MOST = 2000, HEAD = 8192, EVENTS = 256 };
static const double PATIENCE = 30.0;
static const struct timespec tick = {.tv_nsec = 300000};
static const struct sched_param first = {.sched_priority = 1};

struct result { double status, latency, late; };
struct client {
    int fd;
    long request;              /* -1: idle */
    size_t sent, got, need;    /* need: bytes of the answer, 0 until its head is there */
    int status;
    char head[HEAD];
};

static struct client *clients[MOST];
static int idle[MOST], idles, count;
static struct sockaddr_in address;
static char *message;
static size_t length;
static double *due, begin;
static struct result *found;
static long requests, left;
static int poller;

static void fail(const char *what) {
    perror(what);
    exit(1);
}

static double seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec + 1e-9 * now.tv_nsec;
}

static void *read_file(const char *path, size_t *size) {
    FILE *file = fopen(path, "rb");
    if (!file || fseek(file, 0, SEEK_END)) fail(path);
    *size = ftell(file);
    rewind(file);
    void *data = malloc(*size + 1);
    if (!data || fread(data, 1, *size, file) != *size) fail(path);
    fclose(file);
    return data;
}

static int dial(int slot) {
    int one = 1, fd = socket(AF_INET, SOCK_STREAM, 0);
    if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof address)) {
        if (fd >= 0) close(fd);
        return -1;
    }
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    fcntl(fd, F_SETFL, O_NONBLOCK);
    struct epoll_event event = {.events = EPOLLIN, .data.u32 = slot};
    if (epoll_ctl(poller, EPOLL_CTL_ADD, fd, &event)) fail("epoll");
    clients[slot]->fd = fd;
    clients[slot]->request = -1;
    return fd;
}

/* A connection that waits for nothing; -1 if there can be no more. */
static int take(void) {
    if (idles) return idle[--idles];
    if (count == MOST) return -1;
    clients[count] = calloc(1, sizeof(struct client));
    return clients[count] && dial(count) >= 0 ? count++ : -1;
}

static void finish(int slot, int status) {
    struct client *c = clients[slot];
    if (c->request >= 0) {
        struct result *r = &found[c->request];
        r->status = status;
        r->latency = status ? seconds() - begin - due[c->request] : INFINITY;
        c->request = -1;
        left--;
    }
    idle[idles++] = slot;
}

static void broken(int slot) {
    close(clients[slot]->fd);
    if (clients[slot]->request < 0) {  /* it is among the idle ones */
        for (int i = 0; i < idles; i++)
            if (idle[i] == slot) idle[i--] = idle[--idles];
    }
    finish(slot, 0);
    if (dial(slot) < 0) idles--;
}

static void wanted(int slot, unsigned events) {
    struct epoll_event event = {.events = events, .data.u32 = slot};
    epoll_ctl(poller, EPOLL_CTL_MOD, clients[slot]->fd, &event);
}

static void write_more(int slot) {
    struct client *c = clients[slot];
    while (c->sent < length) {
        ssize_t n = send(c->fd, message + c->sent, length - c->sent, MSG_NOSIGNAL);
        if (n < 0) {
            if (errno == EAGAIN) wanted(slot, EPOLLIN | EPOLLOUT);
            else broken(slot);
            return;
        }
        c->sent += n;
    }
}

static void read_more(int slot) {
    static char rest[1 << 18];
    struct client *c = clients[slot];
    char *into = c->need ? rest : c->head + c->got;
    ssize_t n = recv(c->fd, into, c->need ? sizeof rest : HEAD - 1 - c->got, 0);
    if (n < 0 && errno == EAGAIN) return;
    if (n <= 0 || c->request < 0) return broken(slot);
    c->got += n;
    if (!c->need) {
        c->head[c->got] = 0;
        char *end = strstr(c->head, "\r\n\r\n"), *size = strcasestr(c->head, "\r\nContent-Length:");
        if (!end && c->got == HEAD - 1) return broken(slot);
        if (!end) return;
        c->status = atoi(c->head + 9);
        c->need = end + 4 - c->head + (size && size < end ? strtoul(size + 17, NULL, 10) : 0);
    }
    if (c->got >= c->need) finish(slot, c->status);
}

static void send_due(long *next) {
    double now = seconds() - begin;
    while (*next < requests && due[*next] <= now) {
        int slot = take();
        if (slot < 0) return;  /* every connection is busy: what is due is late, and says so */
        struct client *c = clients[slot];
        c->request = *next;
        c->sent = c->got = c->need = 0;
        now = seconds() - begin;
        found[*next].late = now - due[*next];
        ++*next;
        write_more(slot);
    }
}

int main(int argc, char **argv) {
    size_t size;
    if (argc != 6) return fprintf(stderr, "usage: open HOST PORT MESSAGE DUE FOUND\n"), 2;
    address.sin_family = AF_INET;
    address.sin_port = htons(atoi(argv[2]));
    if (inet_pton(AF_INET, argv[1], &address.sin_addr) != 1) return fprintf(stderr, "no address: %s\n", argv[1]), 2;
    message = read_file(argv[3], &length);
    due = read_file(argv[4], &size);
    left = requests = size / sizeof *due;
    found = calloc(requests, sizeof *found);
    if (!found || (poller = epoll_create1(0)) < 0) fail("start");
    for (long i = 0; i < requests; i++) found[i].latency = INFINITY;
    for (int i = 0; i < MOST && i < requests; i++) {
        int slot = take();
        if (slot < 0) fail("connect");
    }
    for (int i = 0; i < count; i++) idle[idles++] = i;
    sched_setscheduler(0, SCHED_FIFO, &first);
    begin = seconds() + 0.5;  /* the server takes its time with so many new connections */
    double last = requests ? due[requests - 1] + PATIENCE : 0;
    struct epoll_event events[EVENTS];
    for (long next = 0; left && seconds() - begin < last;) {
        send_due(&next);
        nanosleep(&tick, NULL);
        for (int n = EVENTS; n == EVENTS;) {
            n = epoll_wait(poller, events, EVENTS, 0);
            for (int i = 0; i < n; i++) {
                int slot = events[i].data.u32;
                if (events[i].events & EPOLLOUT) {
                    wanted(slot, EPOLLIN);
                    write_more(slot);
                }
                if (events[i].events & (EPOLLIN | EPOLLERR | EPOLLHUP)) read_more(slot);
            }
        }
    }
    FILE *out = fopen(argv[5], "wb");
    if (!out || fwrite(found, sizeof *found, requests, out) != (size_t)requests || fclose(out)) fail(argv[5]);
    return 0;
}
