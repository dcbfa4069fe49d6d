/* A layer below libc's calls to the file system: of those that concern a folder, the k-th fails, is cut short, or is
   the last thing that the process does; or all that change something are written down, with what they wrote.

   Preloaded, it does nothing until `calls_watch` names the folder. One call at a time is let through, so that the
   order that is written down is the one in which things happened. */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum { KILL = -1, SHORT = -2 };

static char root[PATH_MAX];
static size_t root_length;
static int watching, action, trace = -1, names = -1;
static long count, target;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static __thread int inside;

/* From now on: the call number `k` (from 1; 0: none) ends as `what` says: with an errno, by KILL, or SHORT.
   What changes something goes to the descriptor `to`, the name of each call to
   `each`, unless they are -1. */
void calls_watch(const char *folder, long k, int what, int to, int each) {
    snprintf(root, sizeof root, "%s", folder);
    root_length = strlen(root);
    target = k, action = what, trace = to, names = each, count = 0;
    watching = 1;
}

long calls_counted(void) { return count; }

static int under(const char *path) {
    return strncmp(path, root, root_length) == 0 && (path[root_length] == '/' || path[root_length] == 0);
}

static int of_fd(int fd, char *out) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t got = syscall(SYS_readlinkat, AT_FDCWD, link, out, PATH_MAX - 1);
    if (got < 0) return 0;
    out[got] = 0;
    return 1;
}

static int of_path(int at, const char *path, char *out) {
    char base[PATH_MAX];
    if (!path) return 0;
    if (path[0] == '/') { snprintf(out, PATH_MAX, "%s", path); return 1; }
    if (at == AT_FDCWD) {
        if (syscall(SYS_getcwd, base, sizeof base) < 0) return 0;
    } else if (!of_fd(at, base)) return 0;
    if (!path[0] || !strcmp(path, ".")) snprintf(out, PATH_MAX, "%s", base);
    else snprintf(out, PATH_MAX, "%s/%s", base, path);
    return 1;
}

static void put(int fd, const void *data, size_t size) {
    const char *at = data;
    while (size) {
        ssize_t got = syscall(SYS_write, fd, at, size);
        if (got <= 0) return;
        at += got, size -= got;
    }
}

/* One thing that happened: a line of JSON's kind of fields, apart by tabs, then so many bytes. */
static void tell(const char *op, const char *a, const char *b, uint64_t inode, int64_t at, const void *data, size_t size) {
    char line[3 * PATH_MAX];
    if (trace < 0) return;
    int n = snprintf(line, sizeof line, "%s\t%s\t%s\t%lu\t%ld\t%zu\n", op, a ? a : "", b ? b : "", (unsigned long)inode,
                     (long)at, size);
    put(trace, line, n);
    if (size && data) put(trace, data, size);
}

static uint64_t inode_of(int fd) {
    struct statx found;
    return syscall(SYS_statx, fd, "", AT_EMPTY_PATH, STATX_INO, &found) ? 0 : found.stx_ino;
}

static int exists(const char *path) {
    struct statx found;
    return syscall(SYS_statx, AT_FDCWD, path, AT_SYMLINK_NOFOLLOW, STATX_INO, &found) == 0;
}

/* What becomes of the call that is about to be made: 0: it is made; SHORT; else it fails with this errno. */
static int fate(const char *name, const char *path) {
    count++;
    if (names >= 0) {
        char line[2 * PATH_MAX];
        put(names, line, snprintf(line, sizeof line, "%s\t%s\n", name, path));
    }
    if (!target || count != target) return 0;
    if (action == KILL) {
        syscall(SYS_kill, syscall(SYS_getpid), SIGKILL);
        for (;;) pause();
    }
    return action;
}

#define REAL(type, name, ...) \
    static type (*real_##name)(__VA_ARGS__); \
    if (!real_##name) real_##name = dlsym(RTLD_NEXT, #name)

/* Around a call: `seen` says whether it is one of the folder's, `P` names it. The lock is held meanwhile. */
#define WATCHED(seen) \
    char P[PATH_MAX] = "", Q[PATH_MAX] = ""; \
    (void)Q; \
    int mine = watching && !inside; \
    if (mine) { inside = 1; pthread_mutex_lock(&lock); if (!((seen) && under(P))) { pthread_mutex_unlock(&lock); inside = 0; mine = 0; } }
#define DONE do { if (mine) { int e = errno; pthread_mutex_unlock(&lock); inside = 0; errno = e; } } while (0)
#define FAIL(title, nothing) \
    int how = mine ? fate(title, P) : 0; \
    if (how > 0) { errno = how; DONE; return nothing; }
#define PLAIN(type, name, params, args, seen) \
    type name params { \
        REAL(type, name, PARAMS_OF params); \
        WATCHED(seen); FAIL(#name, (type)-1); \
        type got = real_##name args; \
        DONE; return got; }
#define PARAMS_OF(...) __VA_ARGS__

static int opened(const char *title, int (*real)(int, const char *, int, ...), int at, const char *path, int flags, mode_t mode) {
    WATCHED(of_path(at, path, P)); FAIL(title, -1);
    int fresh = mine && (flags & O_CREAT) && !exists(P);
    int empties = mine && (flags & O_TRUNC) && !fresh;
    int got = real(at, path, flags, mode);
    if (mine && got >= 0 && (fresh || empties)) {
        of_fd(got, P);
        tell(fresh ? "create" : "truncate", P, "", inode_of(got), 0, 0, 0);
    }
    DONE; return got;
}
#define OPEN(name, atname) \
    int name(const char *path, int flags, ...) { \
        REAL(int, atname, int, const char *, int, ...); \
        va_list v; va_start(v, flags); mode_t mode = va_arg(v, mode_t); va_end(v); \
        return opened("open", real_##atname, AT_FDCWD, path, flags, mode); }
#define OPENAT(name) \
    int name(int at, const char *path, int flags, ...) { \
        REAL(int, name, int, const char *, int, ...); \
        va_list v; va_start(v, flags); mode_t mode = va_arg(v, mode_t); va_end(v); \
        return opened("open", real_##name, at, path, flags, mode); }
OPEN(open, openat) OPEN(open64, openat64) OPENAT(openat) OPENAT(openat64)

static size_t cut(int how, size_t size) { return how == SHORT && size > 1 ? size / 2 : size; }

ssize_t read(int fd, void *to, size_t size) {
    REAL(ssize_t, read, int, void *, size_t);
    WATCHED(of_fd(fd, P)); FAIL("read", -1);
    ssize_t got = real_read(fd, to, cut(how, size)); DONE; return got; }
#define PREAD(name) \
    ssize_t name(int fd, void *to, size_t size, off_t at) { \
        REAL(ssize_t, name, int, void *, size_t, off_t); \
        WATCHED(of_fd(fd, P)); FAIL("pread", -1); \
        ssize_t got = real_##name(fd, to, cut(how, size), at); DONE; return got; }
PREAD(pread) PREAD(pread64)
#define PREADV(name) \
    ssize_t name(int fd, const struct iovec *v, int n, off_t at) { \
        REAL(ssize_t, name, int, const struct iovec *, int, off_t); \
        WATCHED(of_fd(fd, P)); FAIL("preadv", -1); \
        struct iovec one = v[0]; one.iov_len = cut(how, one.iov_len); \
        ssize_t got = how == SHORT ? real_##name(fd, &one, 1, at) : real_##name(fd, v, n, at); DONE; return got; }
PREADV(preadv) PREADV(preadv64)

ssize_t write(int fd, const void *from, size_t size) {
    REAL(ssize_t, write, int, const void *, size_t);
    if (fd == 2) return real_write(fd, from, size); /* where a thread says that another one hangs */
    WATCHED(of_fd(fd, P)); FAIL("write", -1);
    off_t at = mine ? syscall(SYS_lseek, fd, 0, SEEK_CUR) : 0;
    ssize_t got = real_write(fd, from, cut(how, size));
    if (mine && got > 0) tell("write", P, "", inode_of(fd), at, from, got);
    DONE; return got; }
#define PWRITE(name) \
    ssize_t name(int fd, const void *from, size_t size, off_t at) { \
        REAL(ssize_t, name, int, const void *, size_t, off_t); \
        WATCHED(of_fd(fd, P)); FAIL("pwrite", -1); \
        ssize_t got = real_##name(fd, from, cut(how, size), at); \
        if (mine && got > 0) tell("write", P, "", inode_of(fd), at, from, got); \
        DONE; return got; }
PWRITE(pwrite) PWRITE(pwrite64)
ssize_t writev(int fd, const struct iovec *v, int n) {
    REAL(ssize_t, writev, int, const struct iovec *, int);
    WATCHED(of_fd(fd, P));
    if (!mine) return real_writev(fd, v, n);
    DONE;
    ssize_t all = 0;
    for (int i = 0; i < n; i++) {
        ssize_t got = write(fd, v[i].iov_base, v[i].iov_len);
        if (got < 0) return all ? all : got;
        all += got;
        if ((size_t)got < v[i].iov_len) break;
    }
    return all; }
ssize_t copy_file_range(int in, off64_t *from, int out, off64_t *to, size_t size, unsigned flags) {
    REAL(ssize_t, copy_file_range, int, off64_t *, int, off64_t *, size_t, unsigned);
    WATCHED(of_fd(out, P)); FAIL("copy_file_range", -1);
    off64_t at = mine ? (to ? *to : syscall(SYS_lseek, out, 0, SEEK_CUR)) : 0;
    ssize_t got = real_copy_file_range(in, from, out, to, cut(how, size), flags);
    if (mine && got > 0 && trace >= 0) {
        char *data = malloc(got);
        if (syscall(SYS_pread64, out, data, got, at) == got) tell("write", P, "", inode_of(out), at, data, got);
        free(data);
    }
    DONE; return got; }
#define SENDFILE(name) \
    ssize_t name(int out, int in, off_t *from, size_t size) { \
        REAL(ssize_t, name, int, int, off_t *, size_t); \
        WATCHED(of_fd(out, P)); FAIL("sendfile", -1); \
        off_t at = mine ? syscall(SYS_lseek, out, 0, SEEK_CUR) : 0; \
        ssize_t got = real_##name(out, in, from, cut(how, size)); \
        if (mine && got > 0 && trace >= 0) { \
            char *data = malloc(got); \
            if (syscall(SYS_pread64, out, data, got, at) == got) tell("write", P, "", inode_of(out), at, data, got); \
            free(data); } \
        DONE; return got; }
SENDFILE(sendfile) SENDFILE(sendfile64)

#define FTRUNCATE(name) \
    int name(int fd, off_t size) { \
        REAL(int, name, int, off_t); \
        WATCHED(of_fd(fd, P)); FAIL("ftruncate", -1); \
        int got = real_##name(fd, size); \
        if (mine && !got) tell("truncate", P, "", inode_of(fd), size, 0, 0); \
        DONE; return got; }
FTRUNCATE(ftruncate) FTRUNCATE(ftruncate64)
#define TRUNCATE(name) \
    int name(const char *path, off_t size) { \
        REAL(int, name, const char *, off_t); \
        WATCHED(of_path(AT_FDCWD, path, P)); FAIL("truncate", -1); \
        int got = real_##name(path, size); \
        if (mine && !got) tell("truncate", P, "", 0, size, 0, 0); \
        DONE; return got; }
TRUNCATE(truncate) TRUNCATE(truncate64)
#define SYNC(name) \
    int name(int fd) { \
        REAL(int, name, int); \
        WATCHED(of_fd(fd, P)); FAIL("fsync", -1); \
        int got = real_##name(fd); \
        if (mine && !got) tell("fsync", P, "", inode_of(fd), 0, 0, 0); \
        DONE; return got; }
SYNC(fsync) SYNC(fdatasync)

static int moved(int at, const char *old, int to, const char *new, unsigned flags) {
    WATCHED(of_path(at, old, P) && of_path(to, new, Q) && (under(P) || (strcpy(P, Q), under(Q))));
    FAIL(flags & RENAME_EXCHANGE ? "exchange" : "rename", -1);
    if (mine) of_path(at, old, P);
    int got = syscall(SYS_renameat2, at, old, to, new, flags);
    if (mine && !got) tell(flags & RENAME_EXCHANGE ? "exchange" : "rename", P, Q, 0, 0, 0, 0);
    DONE; return got; }
int rename(const char *old, const char *new) { return moved(AT_FDCWD, old, AT_FDCWD, new, 0); }
int renameat(int at, const char *old, int to, const char *new) { return moved(at, old, to, new, 0); }
int renameat2(int at, const char *old, int to, const char *new, unsigned flags) { return moved(at, old, to, new, flags); }
static int linked(int at, const char *old, int to, const char *new, int flags) {
    WATCHED(of_path(to, new, Q) && strcpy(P, Q)); FAIL("link", -1);
    if (mine) of_path(at, old, P);
    int got = syscall(SYS_linkat, at, old, to, new, flags);
    if (mine && !got) tell("link", P, Q, 0, 0, 0, 0);
    DONE; return got; }
int link(const char *old, const char *new) { return linked(AT_FDCWD, old, AT_FDCWD, new, 0); }
int linkat(int at, const char *old, int to, const char *new, int flags) { return linked(at, old, to, new, flags); }
static int symlinked(const char *old, int to, const char *new) {
    WATCHED(of_path(to, new, P)); FAIL("symlink", -1);
    int got = syscall(SYS_symlinkat, old, to, new);
    if (mine && !got) tell("symlink", old, P, 0, 0, 0, 0);
    DONE; return got; }
int symlink(const char *old, const char *new) { return symlinked(old, AT_FDCWD, new); }
int symlinkat(const char *old, int to, const char *new) { return symlinked(old, to, new); }
static int unlinked(int at, const char *path, int flags) {
    const char *title = flags & AT_REMOVEDIR ? "rmdir" : "unlink";
    WATCHED(of_path(at, path, P)); FAIL(title, -1);
    int got = syscall(SYS_unlinkat, at, path, flags);
    if (mine && !got) tell(title, P, "", 0, 0, 0, 0);
    DONE; return got; }
int unlink(const char *path) { return unlinked(AT_FDCWD, path, 0); }
int rmdir(const char *path) { return unlinked(AT_FDCWD, path, AT_REMOVEDIR); }
int unlinkat(int at, const char *path, int flags) { return unlinked(at, path, flags); }
static int made(int at, const char *path, mode_t mode) {
    WATCHED(of_path(at, path, P)); FAIL("mkdir", -1);
    int got = syscall(SYS_mkdirat, at, path, mode);
    if (mine && !got) tell("mkdir", P, "", 0, 0, 0, 0);
    DONE; return got; }
int mkdir(const char *path, mode_t mode) { return made(AT_FDCWD, path, mode); }
int mkdirat(int at, const char *path, mode_t mode) { return made(at, path, mode); }

PLAIN(int, stat, (const char *path, struct stat *s), (path, s), of_path(AT_FDCWD, path, P))
PLAIN(int, stat64, (const char *path, struct stat64 *s), (path, s), of_path(AT_FDCWD, path, P))
PLAIN(int, lstat, (const char *path, struct stat *s), (path, s), of_path(AT_FDCWD, path, P))
PLAIN(int, lstat64, (const char *path, struct stat64 *s), (path, s), of_path(AT_FDCWD, path, P))
PLAIN(int, fstat, (int fd, struct stat *s), (fd, s), of_fd(fd, P))
PLAIN(int, fstat64, (int fd, struct stat64 *s), (fd, s), of_fd(fd, P))
PLAIN(int, fstatat, (int at, const char *path, struct stat *s, int f), (at, path, s, f), of_path(at, path, P))
PLAIN(int, fstatat64, (int at, const char *path, struct stat64 *s, int f), (at, path, s, f), of_path(at, path, P))
PLAIN(int, statvfs, (const char *path, struct statvfs *s), (path, s), of_path(AT_FDCWD, path, P))
PLAIN(int, statvfs64, (const char *path, struct statvfs64 *s), (path, s), of_path(AT_FDCWD, path, P))
PLAIN(int, fstatvfs, (int fd, struct statvfs *s), (fd, s), of_fd(fd, P))
PLAIN(int, fstatvfs64, (int fd, struct statvfs64 *s), (fd, s), of_fd(fd, P))
PLAIN(int, flock, (int fd, int op), (fd, op), of_fd(fd, P))
PLAIN(int, chmod, (const char *path, mode_t m), (path, m), of_path(AT_FDCWD, path, P))
PLAIN(int, fchmod, (int fd, mode_t m), (fd, m), of_fd(fd, P))
PLAIN(int, utimensat, (int at, const char *path, const struct timespec t[2], int f), (at, path, t, f), of_path(at, path, P))
PLAIN(int, access, (const char *path, int m), (path, m), of_path(AT_FDCWD, path, P))
PLAIN(ssize_t, readlink, (const char *path, char *b, size_t n), (path, b, n), of_path(AT_FDCWD, path, P))
PLAIN(ssize_t, readlinkat, (int at, const char *path, char *b, size_t n), (at, path, b, n), of_path(at, path, P))

int ioctl(int fd, unsigned long what, ...) {
    REAL(int, ioctl, int, unsigned long, ...);
    va_list v; va_start(v, what); void *arg = va_arg(v, void *); va_end(v);
    WATCHED(of_fd(fd, P)); FAIL("ioctl", -1);
    int got = real_ioctl(fd, what, arg); DONE; return got; }
DIR *opendir(const char *path) {
    REAL(DIR *, opendir, const char *);
    WATCHED(of_path(AT_FDCWD, path, P)); FAIL("opendir", NULL);
    DIR *got = real_opendir(path); DONE; return got; }
DIR *fdopendir(int fd) {
    REAL(DIR *, fdopendir, int);
    WATCHED(of_fd(fd, P)); FAIL("opendir", NULL);
    DIR *got = real_fdopendir(fd); DONE; return got; }
struct dirent64 *readdir64(DIR *folder) {
    REAL(struct dirent64 *, readdir64, DIR *);
    WATCHED(of_fd(dirfd(folder), P)); FAIL("readdir", NULL);
    struct dirent64 *got = real_readdir64(folder); DONE; return got; }
struct dirent *readdir(DIR *folder) {
    REAL(struct dirent *, readdir, DIR *);
    WATCHED(of_fd(dirfd(folder), P)); FAIL("readdir", NULL);
    struct dirent *got = real_readdir(folder); DONE; return got; }
#define MMAP(name) \
    void *name(void *at, size_t size, int prot, int flags, int fd, off_t from) { \
        if (fd < 0 || !watching) return (void *)syscall(SYS_mmap, at, size, prot, flags, fd, from); \
        WATCHED(of_fd(fd, P)); FAIL("mmap", MAP_FAILED); \
        void *got = (void *)syscall(SYS_mmap, at, size, prot, flags, fd, from); DONE; return got; }
MMAP(mmap) MMAP(mmap64)
int close(int fd) {
    REAL(int, close, int);
    WATCHED(of_fd(fd, P));
    int how = mine ? fate("close", P) : 0;
    int got = real_close(fd);
    if (how > 0) { errno = how; got = -1; }
    DONE; return got; }
