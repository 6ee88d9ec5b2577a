/* Both ends of the log pump's benchmark, in one program that is compiled when the benchmark runs.
 *
 *   log_pump write MEGABYTES   100-byte lines in 64 kB writes on stdout; begin and end (CLOCK_MONOTONIC, ns)
 *                              on stderr, so that whoever writes the log has both in it
 *   log_pump copy LOG PROGRAM… run PROGRAM and write its stdout and stderr to LOG as CRI lines: one time stamp
 *                              per read, one search and one copy per line, one write per read
 *   log_pump create … --pid-file FILE … ID    what conmon expects of an OCI runtime: start the program in
 *                              $LOG_PUMP_MEGABYTES's size, leave its pid in FILE, go away
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { LINE = 100, BLOCK = 65536, PREFIX = 64 };

static void fail(const char *what) {
    perror(what);
    exit(1);
}

static void write_all(int fd, const char *data, size_t size) {
    while (size > 0) {
        ssize_t written = write(fd, data, size);
        if (written < 0)
            fail("write");
        data += written;
        size -= written;
    }
}

static void say_time(const char *what) {
    struct timespec now;
    char text[64];
    clock_gettime(CLOCK_MONOTONIC, &now);
    int size = snprintf(text, sizeof text, "%s %lld\n", what, now.tv_sec * 1000000000LL + now.tv_nsec);
    write_all(2, text, size);
}

/* Every line has its number, so that the log can be checked. Writes end in the middle of a line. */
static int produce(long megabytes) {
    static char block[BLOCK + LINE];
    size_t filled = 0;
    say_time("begin");
    for (long number = 0; number < megabytes * (1000000 / LINE); number++) {
        char *line = block + filled;
        memset(line, 'x', LINE - 1);
        line[LINE - 1] = '\n';
        for (long digit = 9, rest = number; digit >= 0; digit--, rest /= 10)
            line[digit] = '0' + rest % 10;
        filled += LINE;
        if (filled >= BLOCK) {
            write_all(1, block, BLOCK);
            filled -= BLOCK;
            memcpy(block, block + BLOCK, filled);
        }
    }
    write_all(1, block, filled);
    say_time("end");
    return 0;
}

struct stream {
    int fd;
    const char *name;
    size_t held;
    char data[2 * BLOCK];
};

static size_t prefix(char *into, const char *stream) {
    struct timespec now;
    struct tm parts;
    clock_gettime(CLOCK_REALTIME, &now);
    gmtime_r(&now.tv_sec, &parts);
    size_t size = strftime(into, PREFIX, "%Y-%m-%dT%H:%M:%S", &parts);
    return size + snprintf(into + size, PREFIX - size, ".%09ldZ %s F ", now.tv_nsec, stream);
}

/* One read; 0 at its end. An unfinished line is kept for the next. */
static int pump(struct stream *in, int log) {
    static char out[4 * BLOCK];
    char stamp[PREFIX];
    ssize_t got = read(in->fd, in->data + in->held, BLOCK);
    if (got <= 0)
        return 0;
    size_t size = prefix(stamp, in->name), used = 0;
    char *line = in->data, *end = in->data + in->held + got, *newline;
    while ((newline = memchr(line, '\n', end - line))) {
        memcpy(out + used, stamp, size);
        memcpy(out + used + size, line, newline + 1 - line);
        used += size + (newline + 1 - line);
        line = newline + 1;
    }
    in->held = end - line;
    memmove(in->data, line, in->held);
    write_all(log, out, used);
    return 1;
}

static int copy(const char *path, char **argv) {
    static struct stream streams[2] = {{.name = "stdout"}, {.name = "stderr"}};
    int log = open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0640), out[2], err[2];
    if (log < 0 || pipe2(out, O_CLOEXEC) || pipe2(err, O_CLOEXEC))
        fail(path);
    pid_t child = fork();
    if (child == 0) {
        dup2(out[1], 1);
        dup2(err[1], 2);
        execv(argv[0], argv);
        fail(argv[0]);
    }
    close(out[1]);
    close(err[1]);
    streams[0].fd = out[0];
    streams[1].fd = err[0];
    for (int open_streams = 2; open_streams > 0;) {
        struct pollfd polled[2] = {{streams[0].fd, POLLIN, 0}, {streams[1].fd, POLLIN, 0}};
        if (poll(polled, 2, -1) < 0)
            fail("poll");
        for (int number = 0; number < 2; number++)
            if (polled[number].revents && !pump(&streams[number], log)) {
                close(streams[number].fd);
                streams[number].fd = -1;
                open_streams--;
            }
    }
    return waitpid(child, NULL, 0) == child ? 0 : 1;
}

/* conmon's pipes are our stdio; it finds the program's exit by being its reaper. */
static int create(int argc, char **argv) {
    const char *pid_file = NULL, *size = getenv("LOG_PUMP_MEGABYTES");
    for (int at = 1; at + 1 < argc; at++)
        if (!strcmp(argv[at], "--pid-file"))
            pid_file = argv[at + 1];
    if (!pid_file || !size)
        return 1;
    pid_t child = fork();
    if (child == 0) {
        setsid();
        exit(produce(atol(size)));
    }
    FILE *file = fopen(pid_file, "w");
    if (!file)
        fail(pid_file);
    fprintf(file, "%d", child);
    return fclose(file);
}

int main(int argc, char **argv) {
    if (argc == 3 && !strcmp(argv[1], "write"))
        return produce(atol(argv[2]));
    if (argc > 3 && !strcmp(argv[1], "copy"))
        return copy(argv[2], argv + 3);
    for (int at = 1; at < argc; at++)
        if (!strcmp(argv[at], "create"))
            return create(argc, argv);
    return 0;
}
