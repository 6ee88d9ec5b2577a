/* A container's warm start in C: the system calls of runtime/launch.py's plan, in its order, without Python.
 *
 * It is the yardstick of tests/bench/c_start.py, which compiles it and tells it what to do:
 *   warm_start SCRIPT FILTER LOWER SCRATCH
 * SCRIPT: lines "mkdir PATH", "write PATH VALUE", "tasks PATH", "unified PATH", "late PATH VALUE" and "rmdir
 * PATH", with %d for the container's number. FILTER: the seccomp program. LOWER: the image's only layer.
 * SCRATCH: a folder for upper and work folders. Each line "FIRST COUNT" on standard input starts COUNT
 * containers at once, and waits for them; the answer is four numbers in µs: until all had their cgroups, until
 * the last had replaced its child (execve), until the last had ended, and until all cgroups were removed.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <linux/openat2.h>
#include <linux/seccomp.h>
#include <linux/filter.h>
#include <linux/capability.h>
#include <linux/mount.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* sys/mount.h and linux/mount.h exclude each other in some C libraries. */
int mount(const char *, const char *, const char *, unsigned long, const void *);
int umount2(const char *, int);

#define INTO_CGROUP 0x200000000ULL
#define CLEAR_SIGHAND 0x100000000ULL
#define PIDFD 0x1000
#define EMPTY 0x1000
#define BOTH_EMPTY (MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH)
#define STRICT (RESOLVE_NO_SYMLINKS | RESOLVE_BENEATH)
#define INSIDE (RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS)
#define HARDENED (MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC)
#define MAX_LINES 64
#define MAX_MASKS 16

struct line { char verb[16], path[256], value[64]; };
struct late_mount { char name[32]; int fd; int kind; };
struct start {
    int number, pid, pidfd, host_proc, root, null, unified, opened[64], count;
    int tasks[16], task_count;
    int proc_target, proc_fs, proc_mount;
    struct late_mount masks[MAX_MASKS], protected[MAX_MASKS];
    int mask_count, protected_count;
};

static struct line lines[MAX_LINES];
static int line_count;
static struct sock_fprog filter;
static const char *lower, *scratch;
static int dev_null;
static const int dropped[] = {2, 9, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 25, 26, 27, 28, 29,
                              30, 31, 32, 33, 34, 35, 36, 37, 38, 39, 40};
static const uint32_t kept = 0x000005fb; /* CHOWN … NET_BIND_SERVICE */

static void fail(const char *what) {
    fprintf(stderr, "warm_start: %s: %s\n", what, strerror(errno));
    _exit(1);
}

static long must(long result, const char *what) {
    if (result < 0) fail(what);
    return result;
}

static int keep(struct start *s, long fd, const char *what) {
    s->opened[s->count++] = (int)must(fd, what);
    return (int)fd;
}

static long openat2(int at, const char *path, uint64_t flags, uint64_t resolve) {
    struct open_how how = {.flags = flags | O_CLOEXEC, .resolve = resolve};
    return syscall(SYS_openat2, at, path, &how, sizeof how);
}

static void put(const char *path, const char *value) {
    int fd = (int)must(open(path, O_WRONLY | O_CLOEXEC), path);
    must(write(fd, value, strlen(value)), path);
    close(fd);
}

static void numbered(char *out, const char *pattern, int number) { snprintf(out, 256, pattern, number); }

static void *make_cgroups(void *argument) {
    struct start *s = argument;
    char path[256];
    for (int i = 0; i < line_count; i++) {
        numbered(path, lines[i].path, s->number);
        if (!strcmp(lines[i].verb, "mkdir")) mkdir(path, 0755);
        if (strcmp(lines[i].verb, "write")) continue;
        int fd = (int)must(open(path, O_WRONLY | O_CLOEXEC), path);
        must(write(fd, lines[i].value, strlen(lines[i].value)), path);
        for (; i + 1 < line_count && !strcmp(lines[i + 1].path, lines[i].path); i++)
            must(write(fd, lines[i + 1].value, strlen(lines[i + 1].value)), path);
        close(fd);
    }
    return NULL;
}

/* A folder inside the root, made if it is missing, as runtime/mounting.py makes it. */
static int make_inside(int root, const char *path) {
    char part[64];
    struct stat status;
    long fd = openat2(root, path, O_PATH, INSIDE);
    if (fd >= 0) return (int)fd;
    long folder = must(openat2(root, "/", O_PATH, INSIDE), "open the root");
    const char *last = strrchr(path, '/') + 1;
    if (last - path > 1) {
        snprintf(part, sizeof part, "%.*s", (int)(last - path - 1), path);
        long next = must(openat2(root, part, O_PATH, INSIDE), part);
        close((int)folder);
        folder = next;
    }
    openat2(root, path, O_PATH, INSIDE);
    must(mkdirat((int)folder, last, 0755), path);
    fd = must(openat2((int)folder, last, O_PATH | O_NOFOLLOW, STRICT), path);
    close((int)folder);
    (void)status;
    return (int)fd;
}

static int new_mount(const char *type, int attributes, const char *const *options) {
    int fs = (int)must(syscall(SYS_fsopen, type, 1), type);
    for (; *options; options += 2)
        must(syscall(SYS_fsconfig, fs, options[1] ? FSCONFIG_SET_STRING : FSCONFIG_SET_FLAG, options[0],
                     options[1], 0), options[0]);
    must(syscall(SYS_fsconfig, fs, FSCONFIG_CMD_CREATE, NULL, NULL, 0), type);
    int mounted = (int)must(syscall(SYS_fsmount, fs, 1, attributes), type);
    close(fs);
    return mounted;
}

static void mount_inside(struct start *s, const char *type, const char *path, int attributes,
                         const char *const *options) {
    struct mount_attr private = {.propagation = 1 << 18};
    struct stat status;
    struct statfs system;
    int mounted = new_mount(type, attributes, options);
    must(syscall(SYS_mount_setattr, mounted, "", EMPTY | AT_RECURSIVE, &private, sizeof private), path);
    fstat(mounted, &status);
    int target = make_inside(s->root, path);
    fstatfs(target, &system);
    must(syscall(SYS_move_mount, mounted, "", target, "", BOTH_EMPTY), path);
    close(target);
    close(mounted);
}

static const char *const cover[] = {"nr_blocks", "1", "nr_inodes", "1", NULL};

static void protect_proc(struct start *s, const char *name) {
    struct stat status;
    long fd = openat2(s->host_proc, name, O_PATH, STRICT);
    if (fd < 0) return;
    fstat((int)fd, &status);
    close((int)fd);
    struct late_mount *entry = &s->protected[s->protected_count++];
    strcpy(entry->name, name);
    entry->fd = keep(s, fcntl(s->host_proc, F_DUPFD_CLOEXEC, 3), name);
}

static void mask_proc(struct start *s, const char *name) {
    struct stat status;
    long fd = openat2(s->host_proc, name, O_PATH, STRICT);
    if (fd < 0) return;
    fstat((int)fd, &status);
    close((int)fd);
    struct late_mount *entry = &s->masks[s->mask_count++];
    strcpy(entry->name, name);
    if (S_ISDIR(status.st_mode))
        entry->fd = keep(s, new_mount("tmpfs", MOUNT_ATTR_RDONLY | HARDENED, cover), name);
    else
        entry->fd = keep(s, syscall(SYS_open_tree, s->null, "", OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | EMPTY), name);
}

static void mask_sys(struct start *s, const char *path) {
    struct stat status;
    long fd = openat2(s->root, path, O_PATH, INSIDE);
    if (fd < 0) return;
    fstat((int)fd, &status);
    int mounted = new_mount("tmpfs", MOUNT_ATTR_RDONLY | HARDENED, cover);
    must(syscall(SYS_move_mount, mounted, "", (int)fd, "", BOTH_EMPTY), path);
    close(mounted);
    close((int)fd);
}

static void make_devices(struct start *s) {
    static const struct { const char *name; int major, minor; } nodes[] = {
        {"null", 1, 3}, {"zero", 1, 5}, {"full", 1, 7}, {"random", 1, 8}, {"urandom", 1, 9}, {"tty", 5, 0}};
    static const char *const links[][2] = {
        {"/proc/self/fd", "fd"}, {"/proc/self/fd/0", "stdin"}, {"/proc/self/fd/1", "stdout"},
        {"/proc/self/fd/2", "stderr"}, {"pts/ptmx", "ptmx"}};
    int dev = (int)must(openat2(s->root, "/dev", O_PATH, INSIDE), "/dev");
    for (unsigned i = 0; i < sizeof nodes / sizeof *nodes; i++)
        must(mknodat(dev, nodes[i].name, S_IFCHR | 0666, makedev(nodes[i].major, nodes[i].minor)), nodes[i].name);
    close(dev);
    dev = (int)must(openat2(s->root, "/dev", O_PATH, INSIDE), "/dev");
    for (unsigned i = 0; i < sizeof links / sizeof *links; i++)
        must(symlinkat(links[i][0], dev, links[i][1]), links[i][1]);
    close(dev);
}

static void make_root(struct start *s) {
    char upper[256], work[256], data[1024];
    must(mount("", "/", NULL, MS_REC | MS_SLAVE, NULL), "make / a slave");
    s->null = keep(s, open("/dev/null", O_PATH | O_NOFOLLOW | O_CLOEXEC), "/dev/null");
    struct stat status;
    fstat(s->null, &status);
    snprintf(upper, sizeof upper, "%s/upper%d", scratch, s->number);
    snprintf(work, sizeof work, "%s/work%d", scratch, s->number);
    must(mkdir(upper, 0755), upper);
    must(mkdir(work, 0755), work);
    snprintf(data, sizeof data, "lowerdir=%s,upperdir=%s,workdir=%s,volatile", lower, upper, work);
    must(mount("overlay", upper, "overlay", 0, data), "overlay");
    s->root = keep(s, open(upper, O_PATH | O_DIRECTORY | O_CLOEXEC), upper);
    openat2(s->root, "/proc", O_PATH, INSIDE | RESOLVE_NO_SYMLINKS);
    s->proc_target = keep(s, make_inside(s->root, "/proc"), "/proc");
    s->proc_fs = keep(s, fcntl(s->host_proc, F_DUPFD_CLOEXEC, 3), "reserve");
    s->proc_mount = keep(s, fcntl(s->host_proc, F_DUPFD_CLOEXEC, 3), "reserve");
    mount_inside(s, "tmpfs", "/dev", MOUNT_ATTR_NOSUID | MOUNT_ATTR_STRICTATIME,
                 (const char *const[]){"source", "tmpfs", "mode", "755", "size", "65536k", NULL});
    mount_inside(s, "devpts", "/dev/pts", MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC,
                 (const char *const[]){"source", "devpts", "newinstance", NULL, "ptmxmode", "0666", "mode", "0620",
                                       "gid", "5", NULL});
    mount_inside(s, "tmpfs", "/dev/shm", HARDENED,
                 (const char *const[]){"source", "shm", "mode", "1777", "size", "65536k", NULL});
    mount_inside(s, "mqueue", "/dev/mqueue", HARDENED, (const char *const[]){"source", "mqueue", NULL});
    mount_inside(s, "sysfs", "/sys", HARDENED | MOUNT_ATTR_RDONLY, (const char *const[]){"source", "sysfs", NULL});
    make_devices(s);
    must(sethostname("container", 9), "sethostname");
    static const char *const shown[] = {"bus", "fs", "irq", "sys", "sysrq-trigger"};
    static const char *const hidden[] = {"acpi", "asound", "kcore", "keys", "latency_stats", "timer_list",
                                         "timer_stats", "sched_debug", "scsi", "interrupts"};
    for (unsigned i = 0; i < sizeof shown / sizeof *shown; i++) protect_proc(s, shown[i]);
    for (unsigned i = 0; i < sizeof hidden / sizeof *hidden; i++) mask_proc(s, hidden[i]);
    mask_sys(s, "/sys/firmware");
    mask_sys(s, "/sys/devices/virtual/powercap");
}

static void enter_root(struct start *s) {
    char here[1024];
    struct stat status;
    int old = (int)must(open("/", O_PATH | O_DIRECTORY | O_CLOEXEC), "/");
    must(fchdir(s->root), "fchdir");
    must(syscall(SYS_pivot_root, ".", "."), "pivot_root");
    must(fchdir(old), "fchdir");
    must(mount("", ".", NULL, MS_REC | MS_SLAVE, NULL), "make the old root a slave");
    must(umount2(".", 2), "umount");
    must(chdir("/"), "chdir");
    close(old);
    int cwd = (int)must(openat2(s->root, "/", O_PATH, INSIDE), "/");
    must(fchdir(cwd), "fchdir");
    close(cwd);
    if (!getcwd(here, sizeof here) || stat("/bin/true", &status)) fail("find true");
}

static void move_late(struct start *s, int fd, const char *name) {
    must(syscall(SYS_move_mount, fd, "", s->proc_mount, name, MOVE_MOUNT_F_EMPTY_PATH), name);
}

/* In the child, which shares our memory until its execve. */
static void child(struct start *s) {
    long fs = must(syscall(SYS_fsopen, "proc", 1), "proc");
    must(dup3((int)fs, s->proc_fs, O_CLOEXEC), "dup3");
    must(syscall(SYS_fsconfig, s->proc_fs, FSCONFIG_SET_STRING, "source", "proc", 0), "proc");
    must(syscall(SYS_fsconfig, s->proc_fs, FSCONFIG_CMD_CREATE, NULL, NULL, 0), "proc");
    long mounted = must(syscall(SYS_fsmount, s->proc_fs, 1, 0), "proc");
    must(dup3((int)mounted, s->proc_mount, O_CLOEXEC), "dup3");
    must(syscall(SYS_move_mount, s->proc_mount, "", s->proc_target, "", BOTH_EMPTY), "/proc");
    for (int i = 0; i < s->protected_count; i++) {
        struct mount_attr readonly = {.attr_set = MOUNT_ATTR_RDONLY};
        struct late_mount *entry = &s->protected[i];
        long tree = must(syscall(SYS_open_tree, s->proc_mount, entry->name,
                                 OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_RECURSIVE), entry->name);
        must(dup3((int)tree, entry->fd, O_CLOEXEC), "dup3");
        must(syscall(SYS_mount_setattr, entry->fd, "", EMPTY | AT_RECURSIVE, &readonly, sizeof readonly), "ro");
        move_late(s, entry->fd, entry->name);
    }
    for (int i = 0; i < s->mask_count; i++) move_late(s, s->masks[i].fd, s->masks[i].name);
    for (int i = 0; i < s->task_count; i++) must(write(s->tasks[i], "0", 1), "tasks");
    must(unshare(CLONE_NEWCGROUP), "unshare");
    char every_cpu[1024];
    memset(every_cpu, 0xff, sizeof every_cpu);
    must(syscall(SYS_sched_setaffinity, 0, sizeof every_cpu, every_cpu), "sched_setaffinity");
    setsid();
    syscall(SYS_keyctl, 1, 0, 0, 0, 0);
    must(openat2(AT_FDCWD, "/bin/true", O_PATH, RESOLVE_NO_MAGICLINKS), "/bin/true");
    for (int fd = 0; fd < 3; fd++) must(dup3(dev_null, fd, 0), "dup3");
    char action[32] = {0}; /* what Python ignores */
    syscall(SYS_rt_sigaction, SIGPIPE, action, NULL, 8);
    syscall(SYS_rt_sigaction, SIGXFSZ, action, NULL, 8);
    uint64_t none = 0;
    syscall(SYS_rt_sigprocmask, SIG_SETMASK, &none, NULL, 8);
    must(syscall(SYS_close_range, 3, ~0U, 4), "close_range");
    for (unsigned i = 0; i < sizeof dropped / sizeof *dropped; i++) prctl(PR_CAPBSET_DROP, dropped[i], 0, 0, 0);
    prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0);
    must(syscall(SYS_setgroups, 0, NULL), "setgroups");
    must(syscall(SYS_setresgid, 0, 0, 0), "setresgid");
    must(syscall(SYS_setresuid, 0, 0, 0), "setresuid");
    prctl(PR_SET_KEEPCAPS, 0, 0, 0, 0);
    umask(022);
    struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct sets[2] = {{kept, kept, 0}, {0, 0, 0}};
    must(syscall(SYS_capset, &header, sets), "capset");
    prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
    prctl(PR_SET_DUMPABLE, 0, 0, 0, 0);
    must(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs");
    must(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &filter), "seccomp");
    execve("/bin/true", (char *[]){"true", NULL}, (char *[]){"PATH=/bin", NULL});
    fail("execve");
}

/* In line: the child must not return from the function whose frame the parent needs. */
static inline __attribute__((always_inline)) long clone_here(void *arguments, size_t size) {
#if defined(__x86_64__)
    long result;
    __asm__ volatile("syscall" : "=a"(result) : "a"(435), "D"(arguments), "S"(size) : "rcx", "r11", "memory");
    return result;
#else
    register long number __asm__("x8") = 435;
    register long first __asm__("x0") = (long)arguments;
    register long second __asm__("x1") = (long)size;
    __asm__ volatile("svc 0" : "+r"(first) : "r"(number), "r"(second) : "memory");
    return first;
#endif
}

static __attribute__((noinline)) void spawn(struct start *s) {
    uint64_t arguments[11] = {CLONE_VM | CLONE_VFORK | PIDFD | CLEAR_SIGHAND | INTO_CGROUP, (uint64_t)(uintptr_t)&s->pidfd};
    arguments[4] = SIGCHLD;
    arguments[10] = (uint64_t)s->unified;
    long pid = clone_here(arguments, sizeof arguments);
    if (pid == 0) child(s);
    s->pid = (int)must(pid, "clone3");
}

static void *set_up(void *argument) {
    struct start *s = argument;
    char path[256];
    uint64_t all = ~0ULL;
    prctl(PR_SET_DUMPABLE, 0, 0, 0, 0);
    syscall(SYS_rt_sigprocmask, SIG_BLOCK, &all, NULL, 8);
    s->host_proc = keep(s, open("/proc", O_PATH | O_DIRECTORY | O_CLOEXEC), "/proc");
    struct statfs system;
    fstatfs(s->host_proc, &system);
    for (int i = 0; i < line_count; i++) {
        numbered(path, lines[i].path, s->number);
        if (!strcmp(lines[i].verb, "unified"))
            s->unified = keep(s, open(path, O_PATH | O_DIRECTORY | O_CLOEXEC), path);
        else if (!strcmp(lines[i].verb, "tasks"))
            s->tasks[s->task_count++] = keep(s, open(path, O_WRONLY | O_CLOEXEC), path);
    }
    must(unshare(CLONE_FS), "unshare");
    umask(0);
    must(unshare(CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWPID | CLONE_NEWNET), "unshare");
    struct ifreq loopback = {.ifr_name = "lo", .ifr_flags = IFF_UP};
    int link = must(socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0), "socket");
    must(ioctl(link, SIOCSIFFLAGS, &loopback), "raise lo");
    close(link);
    make_root(s);
    enter_root(s);
    size_t size = 16384; /* where Python keeps the child's table of system calls */
    void *table = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    spawn(s);
    munmap(table, size);
    while (s->count) close(s->opened[--s->count]);
    return NULL;
}

static void *start(void *argument) {
    struct start *s = argument;
    pthread_t thread;
    char path[256], status[512];
    pthread_create(&thread, NULL, set_up, s);
    pthread_join(thread, NULL);
    for (int i = 0; i < line_count; i++)
        if (!strcmp(lines[i].verb, "late")) {
            numbered(path, lines[i].path, s->number);
            put(path, lines[i].value);
        }
    snprintf(path, sizeof path, "/proc/%d/stat", s->pid);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd >= 0) {
        if (read(fd, status, sizeof status) < 0) fail(path);
        close(fd);
    }
    return NULL;
}

static void *clean(void *argument) {
    struct start *s = argument;
    char path[256];
    for (int i = 0; i < line_count; i++)
        if (!strcmp(lines[i].verb, "rmdir")) {
            numbered(path, lines[i].path, s->number);
            for (int tries = 0; rmdir(path) && errno == EBUSY && tries < 1000; tries++) usleep(500);
        }
    return NULL;
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1e6 + t.tv_nsec / 1e3;
}

static void at_once(struct start *all, int count, void *(*work)(void *)) {
    pthread_t threads[64];
    if (count == 1) {
        work(all);
        return;
    }
    for (int i = 0; i < count; i++) pthread_create(&threads[i], NULL, work, &all[i]);
    for (int i = 0; i < count; i++) pthread_join(threads[i], NULL);
}

static void read_script(const char *name) {
    char text[512];
    FILE *file = fopen(name, "r");
    if (!file) fail(name);
    while (line_count < MAX_LINES && fgets(text, sizeof text, file)) {
        struct line *l = &lines[line_count++];
        sscanf(text, "%15s %255s %63[^\n]", l->verb, l->path, l->value);
    }
    fclose(file);
}

int main(int argc, char **argv) {
    if (argc != 5) return 2;
    read_script(argv[1]);
    int fd = (int)must(open(argv[2], O_RDONLY), argv[2]);
    struct stat status;
    fstat(fd, &status);
    filter.len = (unsigned short)(status.st_size / 8);
    filter.filter = malloc(status.st_size);
    must(read(fd, filter.filter, status.st_size), argv[2]);
    close(fd);
    lower = argv[3];
    scratch = argv[4];
    dev_null = (int)must(open("/dev/null", O_RDWR | O_CLOEXEC), "/dev/null");
    int first, count;
    while (scanf("%d %d", &first, &count) == 2 && count > 0 && count <= 64) {
        struct start *all = calloc(count, sizeof *all);
        for (int i = 0; i < count; i++) all[i].number = first + i;
        double begin = now();
        at_once(all, count, make_cgroups);
        double made = now();
        at_once(all, count, start);
        double executed = now();
        for (int i = 0; i < count; i++) {
            siginfo_t info;
            if (waitid(P_PIDFD, all[i].pidfd, &info, WEXITED) || info.si_status) fail("the container");
            close(all[i].pidfd);
        }
        double ended = now();
        at_once(all, 1, clean);
        for (int i = 1; i < count; i++) clean(&all[i]);
        printf("%.0f %.0f %.0f %.0f\n", made - begin, executed - begin, ended - begin, now() - begin);
        fflush(stdout);
        free(all);
    }
    return 0;
}
