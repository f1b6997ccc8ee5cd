/* Ways out of a sandbox, tried from inside by tests/integration/test_escape.py: one static program, one line per way:
 * `name refused detail` or `name FOUND detail`. What comes as words is what only the host knows. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <linux/netlink.h>
#include <linux/pkt_sched.h>
#include <linux/rtnetlink.h>
#include <mqueue.h>
#include <net/if.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/shm.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static void item(const char *name, int found, const char *detail) {
    printf("%s %s %s\n", name, found ? "FOUND" : "refused", detail && *detail ? detail : "-");
}

/* A call that must fail. */
static long must_fail(const char *name, long result) {
    item(name, result >= 0, result >= 0 ? "it worked" : strerrorname_np(errno));
    return result;
}

static void opens(const char *name, const char *path, int flags) {
    int fd = open(path, flags | O_CLOEXEC);
    if (fd >= 0 && flags == O_RDONLY) { /* masked: /dev/null, or an empty folder */
        char byte;
        struct stat status;
        fstat(fd, &status);
        errno = ENODATA;
        if (S_ISDIR(status.st_mode)) {
            DIR *folder = fdopendir(fd);
            int entries = 0;
            while (readdir(folder)) entries++;
            item(name, entries > 2, "a folder");
            closedir(folder);
            return;
        }
        if (read(fd, &byte, 1) <= 0) { item(name, 0, "empty"); close(fd); return; }
    }
    must_fail(name, fd);
    if (fd >= 0) close(fd);
}

static char *text_of(const char *path) {
    static char buffer[1 << 18];
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t size = 0, n;
    while (fd >= 0 && size < (ssize_t)sizeof buffer - 1 && (n = read(fd, buffer + size, sizeof buffer - 1 - size)) > 0) size += n;
    buffer[size] = 0;
    if (fd >= 0) close(fd);
    return buffer;
}

static void contains(const char *name, const char *path, const char *word) {
    item(name, strstr(text_of(path), word) != 0, path);
}

static void descriptors(void) {
    char path[64], target[256], seen[1024] = "";
    int extra = 0;
    for (int fd = 0; fd < 1024; fd++) {
        snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
        ssize_t size = readlink(path, target, sizeof target - 1);
        if (size < 0) continue;
        target[size] = 0;
        if (fd > 2 || (fd == 0 && strcmp(target, "/dev/null")) || (fd > 0 && strncmp(target, "pipe:", 5))) {
            extra++;
            snprintf(seen + strlen(seen), sizeof seen - strlen(seen), "%d=%s,", fd, target);
        }
    }
    item("descriptors", extra, seen);
}

static void processes(void) {
    int others = 0, signalled = 0, environs = 0;
    char path[64];
    for (int pid = 1; pid < 40000; pid++) {
        if (pid == getpid()) continue;
        if (kill(pid, 0) == 0 || errno == EPERM) signalled++;
        if (pid > 3000) continue;
        snprintf(path, sizeof path, "/proc/%d/stat", pid);
        if (access(path, F_OK) == 0) others++;
        snprintf(path, sizeof path, "/proc/%d/environ", pid);
        if (access(path, F_OK) == 0) environs++;
    }
    item("processes_of_others", others, "");
    item("signals_to_others", signalled, "");
    item("environments_of_others", environs, "");
    item("process_1_is_another", getpid() != 1, "");
    struct stat own, first;
    int same = stat("/", &own) == 0 && stat("/proc/1/root", &first) == 0 && own.st_ino == first.st_ino && own.st_dev == first.st_dev;
    item("root_of_process_1", !same, "/proc/1/root");
    stat("/proc/1/cwd/..", &first);
    item("folder_above_the_root", own.st_ino != first.st_ino, "/proc/1/cwd/..");
}

static int writables;
static char first_writable[256];

static int writable(const char *path, const struct stat *status, int kind, struct FTW *at) {
    if (kind == FTW_F && access(path, W_OK) == 0) {
        int fd = open(path, O_WRONLY | O_CLOEXEC | O_NONBLOCK);
        if (fd >= 0) {
            if (!writables++) snprintf(first_writable, sizeof first_writable, "%s", path);
            close(fd);
        }
    }
    return 0;
}

static void walk(const char *name, const char *path) {
    writables = 0, *first_writable = 0;
    nftw(path, writable, 32, FTW_PHYS);
    item(name, writables, first_writable);
}

static int strays;
static char first_stray[256];

static int stray(const char *path, const struct stat *status, int kind, struct FTW *at) {
    int device = S_ISBLK(status->st_mode) || S_ISCHR(status->st_mode);
    if (device && strncmp(path, "/dev/", 5)) strays++;
    if (kind == FTW_F && status->st_mode & (S_ISUID | S_ISGID)) strays++;
    if (strays == 1 && !*first_stray) snprintf(first_stray, sizeof first_stray, "%s", path);
    return 0;
}

static void files(void) {
    static const char *devices[] = {"null", "zero", "full", "random", "urandom", "tty", "shm", "fd", "stdin", "stdout", "stderr", "core", "ptmx", "pts", "console", "mqueue", ".", "..", 0};
    char unknown[256] = "";
    DIR *folder = opendir("/dev");
    for (struct dirent *entry; folder && (entry = readdir(folder));) {
        int known = 0;
        for (const char **name = devices; *name; name++) known |= !strcmp(*name, entry->d_name);
        if (!known) snprintf(unknown, sizeof unknown, "%s", entry->d_name);
    }
    if (folder) closedir(folder);
    item("devices", *unknown != 0, unknown);
    opens("own_program", "/proc/self/exe", O_WRONLY);
    opens("program_of_process_1", "/proc/1/exe", O_RDWR);
    opens("core_pattern", "/proc/sys/kernel/core_pattern", O_WRONLY);
    opens("modprobe_path", "/proc/sys/kernel/modprobe", O_WRONLY);
    opens("binfmt_misc", "/proc/sys/fs/binfmt_misc/register", O_WRONLY);
    opens("sysrq", "/proc/sysrq-trigger", O_WRONLY);
    opens("kernel_log", "/dev/kmsg", O_RDONLY);
    opens("kernel_log_by_proc", "/proc/kmsg", O_RDONLY);
    opens("kernel_memory", "/proc/kcore", O_RDONLY);
    opens("physical_memory", "/dev/mem", O_RDONLY);
    opens("ports", "/dev/port", O_RDWR);
    opens("page_counts", "/proc/kpagecount", O_RDONLY);
    opens("keys", "/proc/keys", O_RDONLY);
    opens("timers", "/proc/timer_list", O_RDONLY);
    opens("scheduler", "/proc/sched_debug", O_RDONLY);
    opens("interrupts", "/proc/interrupts", O_RDONLY);
    opens("latencies", "/proc/latency_stats", O_RDONLY);
    opens("acpi", "/proc/acpi", O_RDONLY);
    opens("scsi", "/proc/scsi", O_RDONLY);
    opens("sys", "/sys", O_RDONLY);
    opens("cgroups", "/sys/fs/cgroup", O_RDONLY);
    opens("release_agent", "/sys/fs/cgroup/release_agent", O_WRONLY);
    opens("uevent_helper", "/sys/kernel/uevent_helper", O_WRONLY);
    opens("debugfs", "/sys/kernel/debug", O_RDONLY);
    opens("powercap", "/sys/devices/virtual/powercap", O_RDONLY);
    opens("firmware", "/sys/firmware", O_RDONLY);
    opens("terminal", "/dev/tty", O_RDWR);
    opens("console", "/dev/console", O_RDWR);
    opens("new_terminal", "/dev/ptmx", O_RDWR);
    opens("engine_socket", "/var/run/docker.sock", O_RDONLY);
    opens("containerd", "/run/containerd", O_RDONLY);
    opens("servers_folder", "/run/faas", O_RDONLY);
    opens("servers_data", "/var/lib/faas", O_RDONLY);
    opens("shadow", "/etc/shadow", O_RDONLY);
    opens("write_root", "/escaped", O_WRONLY | O_CREAT);
    opens("write_dev", "/dev/escaped", O_WRONLY | O_CREAT);
    opens("write_proc", "/proc/escaped", O_WRONLY | O_CREAT);
    int map = open("/proc/self/uid_map", O_WRONLY | O_CLOEXEC);
    must_fail("uid_map", map < 0 ? -1 : write(map, "0 0 1\n", 6));
    close(map);
    must_fail("block_device", mknod("/tmp/disk", S_IFBLK | 0600, 0xfe00));
    must_fail("memory_device", mknod("/tmp/mem", S_IFCHR | 0600, 0x0101));
    must_fail("terminal_input", ioctl(0, TIOCSTI, "x"));
    walk("kernel_settings", "/proc/sys");
    walk("proc_fs", "/proc/fs");
    walk("files_of_the_image", "/bin");
    strays = 0, *first_stray = 0;
    nftw("/", stray, 32, FTW_PHYS | FTW_MOUNT);
    item("set_id_files_and_devices", strays, first_stray);
    contains("cgroup_mounts", "/proc/self/mounts", " cgroup");
    contains("sysfs_mounts", "/proc/self/mounts", " sysfs ");
    contains("own_group_by_name", "/proc/self/cgroup", "faas");
}

static void privileges(void) {
    char *status = text_of("/proc/self/status");
    static const char *sets[] = {"CapInh:\t0000000000000000", "CapPrm:\t0000000000000000", "CapEff:\t0000000000000000", "CapBnd:\t0000000000000000", "CapAmb:\t0000000000000000", 0};
    int missing = 0;
    for (const char **set = sets; *set; set++) missing += !strstr(status, *set);
    item("capabilities", missing, "");
    item("new_privileges", !strstr(status, "NoNewPrivs:\t1"), "");
    item("no_filter", !strstr(status, "Seccomp:\t2"), "");
    item("root", getuid() == 0 || geteuid() == 0 || getgid() == 0, "");
    item("groups", getgroups(0, 0) != 0, "");
    must_fail("become_root", setuid(0));
    must_fail("become_another", setresuid(1, 1, 1));
    must_fail("group_of_root", setgid(0));
    must_fail("more_priority", setpriority(PRIO_PROCESS, 0, -10));
    struct sched_param realtime = {.sched_priority = 1};
    must_fail("realtime", sched_setscheduler(0, SCHED_FIFO, &realtime));
    struct rlimit more = {1 << 20, 1 << 20};
    must_fail("more_files", setrlimit(RLIMIT_NOFILE, &more));
    int fd = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);
    must_fail("survive_out_of_memory", fd < 0 ? -1 : write(fd, "-1000", 5));
    close(fd);
    must_fail("clock", clock_settime(CLOCK_REALTIME, &(struct timespec){1, 0}));
    must_fail("host_name", sethostname("x", 1));
    must_fail("no_new_privileges_off", prctl(PR_SET_NO_NEW_PRIVS, 0, 0, 0, 0));
    must_fail("bounding_set", prctl(PR_CAPBSET_READ, 21, 0, 0, 0) > 0 ? 0 : (errno = EPERM, -1));
}

/* Words: the host's namespaces, as `user=4026531837`. */
static void namespaces(const char *word) {
    char path[64], target[64], name[64];
    const char *number = strchr(word, '=');
    snprintf(path, sizeof path, "/proc/self/ns/%.*s", (int)(number - word), word);
    ssize_t size = readlink(path, target, sizeof target - 1);
    target[size < 0 ? 0 : size] = 0;
    snprintf(name, sizeof name, "host_%.*s_namespace", (int)(number - word), word);
    item(name, size < 0 || strstr(target, number + 1) != 0, target);
}

static void neighbours(const char *abstract, const char *key, const char *queue) {
    struct sockaddr_un to = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    strcpy(to.sun_path + 1, abstract);
    must_fail("abstract_socket_of_the_host", connect(fd, (struct sockaddr *)&to, 3 + strlen(abstract)));
    close(fd);
    must_fail("shared_memory_of_the_host", shmget(strtol(key, 0, 0), 1, 0));
    must_fail("queue_of_the_host", mq_open(queue, O_RDONLY));
    contains("sockets_of_the_host", "/proc/net/unix", "@faas");
}

static void netlink(const char *name, int kind, int flags, const void *body, int size) {
    char message[256] = {0};
    struct nlmsghdr *head = (void *)message;
    struct sockaddr_nl kernel = {.nl_family = AF_NETLINK};
    int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
    head->nlmsg_len = NLMSG_LENGTH(size), head->nlmsg_type = kind, head->nlmsg_flags = NLM_F_REQUEST | NLM_F_ACK | flags;
    memcpy(NLMSG_DATA(head), body, size);
    sendto(fd, message, head->nlmsg_len, 0, (struct sockaddr *)&kernel, sizeof kernel);
    ssize_t got = recv(fd, message, sizeof message, 0);
    struct nlmsgerr *answer = NLMSG_DATA(head);
    errno = -answer->error;
    must_fail(name, got > 0 && answer->error ? -1 : 0);
    close(fd);
}

static void network(const char *spoofed, const char *beyond) {
    must_fail("raw_socket", socket(AF_INET, SOCK_RAW, IPPROTO_ICMP));
    must_fail("raw_ip", socket(AF_INET, SOCK_RAW, IPPROTO_RAW));
    must_fail("packets", socket(AF_PACKET, SOCK_RAW, htons(3)));
    must_fail("arp", socket(AF_PACKET, SOCK_DGRAM, htons(0x0806)));
    must_fail("ping_socket", socket(AF_INET, SOCK_DGRAM, IPPROTO_ICMP));
    must_fail("raw_ipv6", socket(AF_INET6, SOCK_RAW, IPPROTO_ICMPV6));
    must_fail("vsock", socket(40, SOCK_STREAM, 0));
    must_fail("crypto", socket(38, SOCK_SEQPACKET, 0));
    must_fail("netfilter", socket(AF_NETLINK, SOCK_RAW, NETLINK_NETFILTER));
    must_fail("uevents", socket(AF_NETLINK, SOCK_RAW, NETLINK_KOBJECT_UEVENT));
    must_fail("audit", socket(AF_NETLINK, SOCK_RAW, NETLINK_AUDIT));
    must_fail("connections_of_others", socket(AF_NETLINK, SOCK_RAW, NETLINK_SOCK_DIAG));
    struct rtmsg route = {.rtm_family = AF_INET, .rtm_table = RT_TABLE_MAIN, .rtm_protocol = RTPROT_STATIC, .rtm_scope = RT_SCOPE_UNIVERSE, .rtm_type = RTN_UNICAST};
    netlink("new_route", RTM_NEWROUTE, NLM_F_CREATE, &route, sizeof route);
    netlink("delete_route", RTM_DELROUTE, 0, &route, sizeof route);
    struct ifinfomsg link = {.ifi_family = AF_UNSPEC, .ifi_index = 2, .ifi_change = IFF_UP};
    netlink("change_link", RTM_NEWLINK, 0, &link, sizeof link);
    netlink("remove_link", RTM_DELLINK, 0, &link, sizeof link);
    struct ifaddrmsg address = {.ifa_family = AF_INET, .ifa_prefixlen = 32, .ifa_index = 2};
    netlink("new_address", RTM_NEWADDR, NLM_F_CREATE, &address, sizeof address);
    struct ndmsg neighbour = {.ndm_family = AF_INET, .ndm_ifindex = 2, .ndm_state = 0x80};
    netlink("new_neighbour", RTM_NEWNEIGH, NLM_F_CREATE, &neighbour, sizeof neighbour);
    struct tcmsg shape = {.tcm_family = AF_UNSPEC, .tcm_ifindex = 2, .tcm_parent = TC_H_ROOT};
    netlink("more_bandwidth", RTM_DELQDISC, 0, &shape, sizeof shape);
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0), one = 1;
    must_fail("transparent", setsockopt(fd, SOL_IP, IP_TRANSPARENT, &one, sizeof one));
    must_fail("mark", setsockopt(fd, SOL_SOCKET, SO_MARK, &one, sizeof one));
    struct sockaddr_in from = {.sin_family = AF_INET}, to = {.sin_family = AF_INET, .sin_port = htons(53)};
    close(fd), fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    inet_pton(AF_INET, spoofed, &from.sin_addr), inet_pton(AF_INET, beyond, &to.sin_addr);
    setsockopt(fd, SOL_IP, IP_FREEBIND, &one, sizeof one);
    long sent = bind(fd, (struct sockaddr *)&from, sizeof from);
    must_fail("spoofed_source", sent < 0 ? sent : sendto(fd, "spoofed", 7, 0, (struct sockaddr *)&to, sizeof to));
    close(fd);
    char *arp = strchr(text_of("/proc/net/arp"), '\n');
    int neighbours = 0;
    while (arp && arp[1]) neighbours++, arp = strchr(arp + 1, '\n');
    item("neighbours", neighbours > 1, "");
    contains("bridges", "/proc/net/dev", "docker");
    contains("ipv6_link_local", "/proc/net/if_inet6", "fe80");
}

/* `address port port …`: connections to all of them at once. */
static void reach(const char *address, int count, char **ports) {
    static struct pollfd tries[1000];
    static char name[128], detail[64];
    struct sockaddr_in to = {.sin_family = AF_INET};
    int made = 0, found = 0;
    inet_pton(AF_INET, address, &to.sin_addr);
    for (int i = 0; i < count && made < 1000; i++) {
        int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
        if (fd < 0) break;
        to.sin_port = htons(atoi(ports[i]));
        connect(fd, (struct sockaddr *)&to, sizeof to);
        tries[made++] = (struct pollfd){fd, POLLOUT, 0};
    }
    usleep(400000);
    poll(tries, made, 0);
    for (int i = 0; i < made; i++) {
        int error = 0;
        socklen_t size = sizeof error;
        getsockopt(tries[i].fd, SOL_SOCKET, SO_ERROR, &error, &size);
        struct sockaddr_in peer, own;
        socklen_t length = sizeof peer, other = sizeof own;
        getsockname(tries[i].fd, (struct sockaddr *)&own, &other);
        /* A port may have been given to the very try that asks for it, which is then connected to itself. */
        if (getpeername(tries[i].fd, (struct sockaddr *)&peer, &length) == 0
            && (own.sin_port != peer.sin_port || own.sin_addr.s_addr != peer.sin_addr.s_addr)) {
            found++;
            snprintf(detail, sizeof detail, "port_%d", ntohs(peer.sin_port));
        }
        close(tries[i].fd);
    }
    snprintf(name, sizeof name, "reach_%s", address);
    if (!found) snprintf(detail, sizeof detail, "%d_ports", made);
    item(name, found, detail);
}

/* Each call of the list with no arguments, in a child: `number ERRNO`, `number allowed` or `number signal`. */
static void calls(int count, char **numbers) {
    for (int i = 0; i < count; i++) {
        int answer[2];
        if (pipe(answer) < 0) exit(1);
        fflush(stdout);
        pid_t child = fork();
        if (child == 0) {
            close(answer[0]);
            alarm(2);
            long result = syscall(strtol(numbers[i], 0, 0), 0, 0, 0, 0, 0, 0);
            int told = result < 0 ? errno : 0;
            if (write(answer[1], &told, sizeof told) < 0) _exit(1);
            _exit(0);
        }
        close(answer[1]);
        int told = -1;
        ssize_t size = read(answer[0], &told, sizeof told);
        close(answer[0]);
        int status = 0;
        waitpid(child, &status, 0);
        if (size <= 0) printf("%s %s\n", numbers[i], WIFSIGNALED(status) ? sigabbrev_np(WTERMSIG(status)) : "gone");
        else printf("%s %s\n", numbers[i], told ? strerrorname_np(told) : "allowed");
    }
}

/* A call of the 32-bit table (int 0x80) and one of x32's: the number alone does not say what it is. */
static void other_tables(void) {
    for (int kind = 0; kind < 2; kind++) {
        fflush(stdout);
        pid_t child = fork();
        if (child == 0) {
            long result = -1;
            if (kind) result = syscall(0x40000000 | SYS_getpid);
#ifdef __x86_64__
            else __asm__ volatile("int $0x80" : "=a"(result) : "a"(20) : "memory");
#endif
            _exit(result == getpid() ? 42 : 0);
        }
        int status = 0;
        waitpid(child, &status, 0);
        item(kind ? "x32_calls" : "i386_calls", WIFEXITED(status) && WEXITSTATUS(status) == 42, WIFSIGNALED(status) ? sigabbrev_np(WTERMSIG(status)) : "");
    }
}

int main(int argc, char **argv) {
    setvbuf(stdout, 0, _IOLBF, 0);
    for (int i = 1; i < argc; i++) {
        const char *word = argv[i];
        if (!strcmp(word, "files")) descriptors(), files();
        else if (!strcmp(word, "processes")) processes();
        else if (!strcmp(word, "privileges")) privileges(), other_tables();
        else if (!strcmp(word, "namespace")) namespaces(argv[++i]);
        else if (!strcmp(word, "neighbours")) neighbours(argv[i + 1], argv[i + 2], argv[i + 3]), i += 3;
        else if (!strcmp(word, "network")) network(argv[i + 1], argv[i + 2]), i += 2;
        else if (!strcmp(word, "euid")) printf("%d\n", geteuid());
        else if (!strcmp(word, "env")) for (char **one = environ; *one; one++) puts(*one);
        else if (!strcmp(word, "ids")) printf("%d %d\n", getuid(), getgid());
        else if (!strcmp(word, "cat")) fputs(text_of(argv[++i]), stdout);
        else if (!strcmp(word, "run")) {
            fflush(stdout);
            if (fork() == 0) execl(argv[i + 1], argv[i + 1], argv[i + 2], NULL), _exit(127);
            wait(0), i += 2;
        } else if (!strcmp(word, "owner")) {
            struct stat status;
            if (lstat(argv[++i], &status)) printf("%s %s\n", argv[i], strerrorname_np(errno));
            else printf("%s %d %d %o\n", argv[i], status.st_uid, status.st_gid, status.st_mode);
        } else if (!strcmp(word, "write")) {
            int fd = open(argv[++i], O_WRONLY | O_CREAT, 0600);
            printf("%s %s\n", argv[i], fd < 0 || write(fd, "x\n", 2) < 0 ? strerrorname_np(errno) : "written");
        } else if (!strcmp(word, "send")) { /* address port bytes */
            static char block[1 << 16];
            struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[i + 2]))};
            int fd = socket(AF_INET, SOCK_STREAM, 0);
            inet_pton(AF_INET, argv[i + 1], &to.sin_addr);
            if (connect(fd, (struct sockaddr *)&to, sizeof to) < 0) return 1;
            for (long left = atol(argv[i + 3]), n; left > 0; left -= n)
                if ((n = write(fd, block, left < (long)sizeof block ? left : (long)sizeof block)) <= 0) return 1;
            shutdown(fd, SHUT_WR);
            while (read(fd, block, sizeof block) > 0) ;
            i += 3;
        } else if (!strcmp(word, "wait")) for (puts("waiting");;) pause();
        else if (!strcmp(word, "calls")) {
            calls(argc - i - 1, argv + i + 1);
            return 0;
        } else if (!strcmp(word, "reach")) {
            int many = atoi(argv[i + 2]);
            reach(argv[i + 1], many, argv + i + 3), i += 2 + many;
        } else {
            printf("what is %s?\n", word);
            return 2;
        }
    }
    return 0;
}
