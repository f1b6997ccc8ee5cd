/* Tried from inside a sandbox by the tests of the drivers: one static program, one word per experiment. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/netlink.h>
#include <resolv.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

static void report(const char *name, long result) {
    printf("%s %s\n", name, result < 0 ? strerrorname_np(errno) : "allowed");
    if (result >= 0 && strncmp(name, "socket", 6) == 0) close(result);
}

static void calls(void) {
    char buffer[4096] = {0};
    struct { unsigned long long flags, rest[7]; } clone3_args = {CLONE_NEWUSER, {0}};
    report("unshare_user", unshare(CLONE_NEWUSER));
    report("unshare_mount", unshare(CLONE_NEWNS));
    report("setns", setns(open("/proc/self/ns/net", O_RDONLY), 0));
    report("mount", mount("none", "/tmp", "tmpfs", 0, ""));
    report("umount", umount2("/tmp", MNT_DETACH));
    report("pivot_root", syscall(SYS_pivot_root, "/", "/"));
    report("open_tree", syscall(428, AT_FDCWD, "/", 1));
    report("fsopen", syscall(430, "tmpfs", 0));
    report("mount_setattr", syscall(442, AT_FDCWD, "/", 0, buffer, 32));
    report("chroot", chroot("/"));
    report("ptrace", ptrace(PTRACE_TRACEME, 0, 0, 0));
    report("process_vm_readv", syscall(SYS_process_vm_readv, getpid(), 0, 0, 0, 0, 0));
    report("keyctl", syscall(SYS_keyctl, 0, -3, 0));
    report("add_key", syscall(SYS_add_key, "user", "k", "v", 1, -3));
    report("bpf", syscall(SYS_bpf, 0, buffer, 128));
    report("perf_event_open", syscall(SYS_perf_event_open, buffer, 0, -1, -1, 0));
    report("userfaultfd", syscall(SYS_userfaultfd, 0));
    report("io_uring_setup", syscall(425, 8, buffer));
    report("clone_newuser", syscall(SYS_clone, CLONE_NEWUSER | SIGCHLD, 0, 0, 0, 0));
    report("clone3", syscall(435, &clone3_args, sizeof clone3_args));
    report("init_module", syscall(SYS_init_module, buffer, 16, ""));
    report("kexec_load", syscall(SYS_kexec_load, 0, 0, 0, 0));
    report("reboot", syscall(SYS_reboot, 0, 0, 0, 0));
    report("settimeofday", settimeofday(&(struct timeval){0}, 0));
    report("sethostname", sethostname("x", 1));
    report("swapon", syscall(SYS_swapon, "/tmp/x", 0));
    report("open_by_handle_at", syscall(SYS_open_by_handle_at, AT_FDCWD, buffer, 0));
    report("socket_packet", socket(AF_PACKET, SOCK_RAW, 0));
    report("socket_raw", socket(AF_INET, SOCK_RAW, IPPROTO_ICMP));
    report("socket_vsock", socket(40, SOCK_STREAM, 0));
    report("socket_alg", socket(38, SOCK_SEQPACKET, 0));
    report("socket_audit", socket(AF_NETLINK, SOCK_RAW, NETLINK_AUDIT));
    report("mknod", mknod("/tmp/disk", S_IFBLK | 0600, 0xfe00));
    report("setuid_0", setuid(0));
    report("write_root", open("/written", O_CREAT | O_WRONLY, 0600));
    report("write_dev", open("/dev/written", O_CREAT | O_WRONLY, 0600));
    report("write_sysctl", open("/proc/sys/kernel/core_pattern", O_WRONLY));
    report("write_sysrq", open("/proc/sysrq-trigger", O_WRONLY));
    int core = open("/proc/kcore", O_RDONLY);
    long taken = core < 0 ? -1 : read(core, buffer, 1);
    if (taken == 0) errno = ENODATA; /* masked by /dev/null */
    report("read_kcore", taken > 0 ? 0 : -1);
}

static void good_calls(void) {
    report("socket_inet", socket(AF_INET, SOCK_STREAM, 0));
    report("socket_unix", socket(AF_UNIX, SOCK_STREAM, 0));
    report("socket_route", socket(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE));
    report("write_tmp", open("/tmp/written", O_CREAT | O_WRONLY, 0600));
    report("write_shm", open("/dev/shm/written", O_CREAT | O_WRONLY, 0600));
    report("write_null", open("/dev/null", O_WRONLY));
    report("read_random", open("/dev/urandom", O_RDONLY));
    report("memfd", memfd_create("m", 0));
    pid_t child = fork();
    if (child == 0) _exit(0);
    report("fork", waitpid(child, 0, 0));
}

static int patience = 1; /* seconds that `tcp` and `udp` wait */

static int reach(int type, const char *host, const char *port, const char *words) {
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(atoi(port))};
    struct timeval limit = {.tv_sec = patience};
    char buffer[512];
    int fd = socket(AF_INET, type, 0);
    inet_pton(AF_INET, host, &to.sin_addr);
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
    if (connect(fd, (struct sockaddr *)&to, sizeof to) < 0 || send(fd, words, strlen(words), 0) < 0) {
        printf("%s\n", strerrorname_np(errno));
        return 1;
    }
    ssize_t size = recv(fd, buffer, sizeof buffer, 0);
    if (size < 0) {
        printf("%s\n", strerrorname_np(errno));
        return 1;
    }
    printf("answer %.*s\n", (int)size, buffer);
    return 0;
}

/* As programs do, by /etc/resolv.conf. The address is the end of an answer with one record. */
static void resolve(const char *name) {
    unsigned char answer[512];
    char text[INET_ADDRSTRLEN];
    int size = res_query(name, 1, 1, answer, sizeof answer);
    puts(size < 4 ? "unknown" : inet_ntop(AF_INET, answer + size - 4, text, sizeof text));
}

static void serve(int port) {
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = INADDR_ANY};
    int fd = socket(AF_INET, SOCK_STREAM, 0), one = 1;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(fd, (struct sockaddr *)&at, sizeof at) < 0 || listen(fd, 16) < 0) {
        printf("%s\n", strerrorname_np(errno));
        exit(1);
    }
    puts("listening");
    for (;;) {
        int peer = accept(fd, 0, 0);
        if (write(peer, "hello", 5) < 0) exit(1);
        close(peer);
    }
}

static void show(const char *path) {
    char buffer[8192];
    FILE *file = fopen(path, "r");
    if (!file) {
        printf("%s\n", strerrorname_np(errno));
        return;
    }
    for (size_t n; (n = fread(buffer, 1, sizeof buffer, file)) > 0;) fwrite(buffer, 1, n, stdout);
    fclose(file);
}

static void fill(const char *path, long megabytes) {
    static char block[1 << 16];
    long written = 0;
    int fd = open(path, O_CREAT | O_WRONLY, 0600);
    memset(block, 'x', sizeof block);
    while (written < megabytes << 20) {
        ssize_t n = write(fd, block, sizeof block);
        if (n < 0) {
            printf("%s %ld\n", strerrorname_np(errno), written);
            return;
        }
        written += n;
    }
    printf("written %ld\n", written);
}

static void tasks(int count) {
    for (int i = 0; i < count; i++)
        if (fork() == 0) {
            setsid();
            signal(SIGTERM, SIG_IGN);
            for (;;) pause();
        }
    signal(SIGTERM, SIG_IGN);
    puts("ready");
}

int main(int argc, char **argv) {
    setvbuf(stdout, 0, _IOLBF, 0);
    for (int i = 1; i < argc; i++) {
        const char *word = argv[i];
        if (!strcmp(word, "calls")) calls();
        else if (!strcmp(word, "good-calls")) good_calls();
        else if (!strcmp(word, "ids")) printf("%d %d %d\n", getuid(), getgid(), getpid());
        else if (!strcmp(word, "groups")) printf("%d\n", getgroups(0, 0));
        else if (!strcmp(word, "cat")) show(argv[++i]);
        else if (!strcmp(word, "env")) puts(getenv(argv[++i]) ? getenv(argv[i]) : "");
        else if (!strcmp(word, "stderr")) fprintf(stderr, "%s\n", argv[++i]);
        else if (!strcmp(word, "patience")) patience = atoi(argv[++i]);
        else if (!strcmp(word, "tcp")) reach(SOCK_STREAM, argv[i + 1], argv[i + 2], "hello"), i += 2;
        else if (!strcmp(word, "udp")) reach(SOCK_DGRAM, argv[i + 1], argv[i + 2], "hello"), i += 2;
        else if (!strcmp(word, "resolve")) resolve(argv[++i]);
        else if (!strcmp(word, "serve")) serve(atoi(argv[++i]));
        else if (!strcmp(word, "fill")) fill(argv[i + 1], atol(argv[i + 2])), i += 2;
        else if (!strcmp(word, "touch")) report(argv[i + 1], creat(argv[i + 1], 0600)), i++;
        else if (!strcmp(word, "tasks")) tasks(atoi(argv[++i]));
        else if (!strcmp(word, "spin")) for (;;) ;
        else if (!strcmp(word, "wait")) for (puts("waiting");;) pause();
        else if (!strcmp(word, "abort")) abort();
        else if (!strcmp(word, "exit")) exit(atoi(argv[++i]));
        else if (!strcmp(word, "flood")) for (long n = atol(argv[++i]); n > 0; n -= 64) puts("0123456789012345678901234567890123456789012345678901234567890123");
        else if (!strcmp(word, "eat")) {
            for (long size = atol(argv[++i]) << 20, at = 0; at < size; at += 1 << 20) memset(malloc(1 << 20), 1, 1 << 20);
            puts("eaten");
        } else if (!strcmp(word, "eat-child")) {
            long size = atol(argv[++i]) << 20;
            if (fork() == 0) for (long at = 0;; at += 1 << 20) memset(malloc(1 << 20), 1, at < size ? 1 << 20 : (exit(0), 0));
            int status = 0;
            wait(&status);
            printf("child %d\n", WIFSIGNALED(status) ? WTERMSIG(status) : 0);
        } else if (!strcmp(word, "forks")) {
            int made = 0;
            while (made < 100000 && (errno = 0, fork()) != -1) if (++made, getpid() != 1) for (;;) pause();
            printf("forks %d %s\n", made, strerrorname_np(errno));
        } else {
            printf("what is %s?\n", word);
            return 2;
        }
    }
    return 0;
}
