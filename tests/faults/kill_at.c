/* Kills its process at the n-th operation that changes one folder of the file system.  For LD_PRELOAD (test_kills.py).

   Python, Rust and C++ code all come here for such operations.  Nothing is counted before kill_at_arm was called. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static char folder[PATH_MAX];
static size_t folder_length;
static long done, last;
static int halve, log_file = -1;

/* From now on, count what happens in the folder (absolute, without symbolic links); die at operation `at`, from 1 on
   (0: never), and if `in_half` after half the bytes where it writes; a line per operation goes to the descriptor `log`. */
void kill_at_arm(const char *path, long at, int in_half, int log) {
  snprintf(folder, sizeof folder, "%s", path);
  folder_length = strlen(folder);
  done = 0, last = at, halve = in_half, log_file = log;
}

static void die(void) {
  kill(getpid(), SIGKILL);
  for (;;) pause();
}

static int is_inside(const char *path) {
  return folder_length && !strncmp(path, folder, folder_length) &&
         (path[folder_length] == '/' || path[folder_length] == '\0');
}

/* Counts an operation on an absolute path; 1 if it shall die half-way. */
static int count(const char *name, const char *path) {
  if (!is_inside(path)) return 0;
  ++done;
  if (log_file >= 0) dprintf(log_file, "%s %s\n", name, path + folder_length);
  if (done != last) return 0;
  if (!halve) die();
  return 1;
}

static int count_at(const char *name, int dir, const char *path) {
  char full[2 * PATH_MAX], link[64];
  if (!folder_length || !path) return 0;
  if (path[0] == '/') return count(name, path);
  snprintf(link, sizeof link, dir == AT_FDCWD ? "/proc/self/cwd" : "/proc/self/fd/%d", dir);
  ssize_t length = readlink(link, full, PATH_MAX);
  if (length < 0) return 0;
  snprintf(full + length, sizeof full - length, "/%s", path);
  return count(name, full);
}

static int count_file(const char *name, int file) {
  char full[PATH_MAX], link[64];
  if (!folder_length || file == log_file) return 0;
  snprintf(link, sizeof link, "/proc/self/fd/%d", file);
  ssize_t length = readlink(link, full, sizeof full - 1);
  if (length < 0) return 0;
  full[length] = '\0';
  return count(name, full);
}

#define CHANGES(flags) ((flags) & (O_WRONLY | O_RDWR | O_CREAT | O_TRUNC))
#define REAL(name, type, ...) ((type(*)(__VA_ARGS__))dlsym(RTLD_NEXT, name))
#define MODE(flags)                                      \
  mode_t mode = 0;                                       \
  if ((flags) & (O_CREAT | O_TMPFILE)) {                 \
    va_list more;                                        \
    va_start(more, flags);                               \
    mode = va_arg(more, mode_t);                         \
    va_end(more);                                        \
  }

#define OPEN(name)                                                             \
  int name(const char *path, int flags, ...) {                                 \
    MODE(flags)                                                                \
    if (CHANGES(flags) && count_at("open", AT_FDCWD, path)) die();             \
    return REAL(#name, int, const char *, int, ...)(path, flags, mode);        \
  }
#define OPENAT(name)                                                                \
  int name(int dir, const char *path, int flags, ...) {                             \
    MODE(flags)                                                                     \
    if (CHANGES(flags) && count_at("open", dir, path)) die();                       \
    return REAL(#name, int, int, const char *, int, ...)(dir, path, flags, mode);   \
  }
OPEN(open)
OPEN(open64)
OPENAT(openat)
OPENAT(openat64)

#define FOPEN(name)                                                                   \
  FILE *name(const char *path, const char *how) {                                     \
    if (strpbrk(how, "wa+") && count_at("open", AT_FDCWD, path)) die();               \
    return REAL(#name, FILE *, const char *, const char *)(path, how);                \
  }
FOPEN(fopen)
FOPEN(fopen64)

ssize_t write(int file, const void *bytes, size_t size) {
  ssize_t (*real)(int, const void *, size_t) = REAL("write", ssize_t, int, const void *, size_t);
  if (count_file("write", file)) {
    real(file, bytes, size / 2);
    die();
  }
  return real(file, bytes, size);
}

ssize_t writev(int file, const struct iovec *parts, int num) {
  if (count_file("write", file)) {
    REAL("write", ssize_t, int, const void *, size_t)(file, parts[0].iov_base, parts[0].iov_len / 2);
    die();
  }
  return REAL("writev", ssize_t, int, const struct iovec *, int)(file, parts, num);
}

#define PWRITE(name, offset_type)                                                                                \
  ssize_t name(int file, const void *bytes, size_t size, offset_type offset) {                                   \
    ssize_t (*real)(int, const void *, size_t, offset_type) =                                                    \
        REAL(#name, ssize_t, int, const void *, size_t, offset_type);                                            \
    if (count_file("write", file)) {                                                                             \
      real(file, bytes, size / 2, offset);                                                                       \
      die();                                                                                                     \
    }                                                                                                            \
    return real(file, bytes, size, offset);                                                                      \
  }
PWRITE(pwrite, off_t)
PWRITE(pwrite64, off64_t)

/* Operations that cannot be halved: dead before them. */
#define ON_FILE(type, name, label, parameters, arguments, ...)   \
  type name parameters {                                         \
    if (count_file(label, file)) die();                          \
    return REAL(#name, type, __VA_ARGS__) arguments;             \
  }
#define ON_PATH(name, label, dir, parameters, arguments, ...)    \
  int name parameters {                                          \
    if (count_at(label, dir, path)) die();                       \
    return REAL(#name, int, __VA_ARGS__) arguments;              \
  }
ON_FILE(int, fsync, "fsync", (int file), (file), int)
ON_FILE(int, fdatasync, "fsync", (int file), (file), int)
ON_FILE(int, ftruncate, "truncate", (int file, off_t size), (file, size), int, off_t)
ON_FILE(int, ftruncate64, "truncate", (int file, off64_t size), (file, size), int, off64_t)
ON_FILE(int, fchmod, "chmod", (int file, mode_t mode), (file, mode), int, mode_t)
ON_FILE(ssize_t, sendfile, "write", (int file, int from, off_t *offset, size_t size), (file, from, offset, size), int,
        int, off_t *, size_t)
ON_FILE(ssize_t, sendfile64, "write", (int file, int from, off64_t *offset, size_t size), (file, from, offset, size),
        int, int, off64_t *, size_t)
ssize_t copy_file_range(int from, off64_t *start, int file, off64_t *offset, size_t size, unsigned flags) {
  if (count_file("write", file)) die();
  return REAL("copy_file_range", ssize_t, int, off64_t *, int, off64_t *, size_t, unsigned)(from, start, file, offset,
                                                                                          size, flags);
}
ON_PATH(mkdir, "mkdir", AT_FDCWD, (const char *path, mode_t mode), (path, mode), const char *, mode_t)
ON_PATH(mkdirat, "mkdir", dir, (int dir, const char *path, mode_t mode), (dir, path, mode), int, const char *, mode_t)
ON_PATH(rmdir, "rmdir", AT_FDCWD, (const char *path), (path), const char *)
ON_PATH(unlink, "unlink", AT_FDCWD, (const char *path), (path), const char *)
ON_PATH(remove, "unlink", AT_FDCWD, (const char *path), (path), const char *)
ON_PATH(unlinkat, "unlink", dir, (int dir, const char *path, int flags), (dir, path, flags), int, const char *, int)
ON_PATH(rename, "rename", AT_FDCWD, (const char *path, const char *to), (path, to), const char *, const char *)
ON_PATH(renameat, "rename", dir, (int dir, const char *path, int to_dir, const char *to), (dir, path, to_dir, to), int,
        const char *, int, const char *)
ON_PATH(renameat2, "rename", dir, (int dir, const char *path, int to_dir, const char *to, unsigned flags),
        (dir, path, to_dir, to, flags), int, const char *, int, const char *, unsigned)
ON_PATH(truncate, "truncate", AT_FDCWD, (const char *path, off_t size), (path, size), const char *, off_t)
ON_PATH(truncate64, "truncate", AT_FDCWD, (const char *path, off64_t size), (path, size), const char *, off64_t)
ON_PATH(chmod, "chmod", AT_FDCWD, (const char *path, mode_t mode), (path, mode), const char *, mode_t)

int symlink(const char *target, const char *path) {
  if (count_at("symlink", AT_FDCWD, path)) die();
  return REAL("symlink", int, const char *, const char *)(target, path);
}

int link(const char *target, const char *path) {
  if (count_at("link", AT_FDCWD, path)) die();
  return REAL("link", int, const char *, const char *)(target, path);
}
