/* System calls that fail, for a program that is started with this library in LD_PRELOAD.
 *
 * Calls on files whose paths contain CLOCKWORK_FAILING are counted once failing_disk_begin() was called. The
 * call of a chosen number fails with an errno, alone or with all that follow, or ends the process.
 */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

#define ENDS (-1) /* in place of an errno: the process is killed */

static int counting, failing_at, failing_with, failing_on, count;

/* Begins to count calls from 0. Call ``at`` fails with ``error``, and with ``on`` all calls after it. */
void failing_disk_begin(int at, int error, int on) {
    failing_at = at;
    failing_with = error;
    failing_on = on;
    count = 0;
    counting = 1;
}

/* Ends counting, and returns the number of calls. */
int failing_disk_end(void) {
    counting = 0;
    return count;
}

static int is_ours(const char* path) {
    const char* part = getenv("CLOCKWORK_FAILING");
    return counting && part && path && strstr(path, part);
}

static int is_our_file(int descriptor) {
    char link[64], path[4096];
    if (!counting)
        return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t size = readlink(link, path, sizeof path - 1);
    if (size < 0)
        return 0;
    path[size] = 0;
    return is_ours(path);
}

/* Counts a call. Returns 1, with errno set, if it fails. */
static int fails(void) {
    int number = count++;
    if (number != failing_at && !(failing_on && number > failing_at))
        return 0;
    if (failing_with == ENDS)
        raise(SIGKILL);
    errno = failing_with;
    return failing_with != 0;
}

#define REAL(name) __typeof__(name)* real = (__typeof__(name)*)dlsym(RTLD_NEXT, #name)

ssize_t pwrite64(int descriptor, const void* data, size_t size, off64_t offset) {
    REAL(pwrite64);
    return is_our_file(descriptor) && fails() ? -1 : real(descriptor, data, size, offset);
}

ssize_t pwrite(int descriptor, const void* data, size_t size, off_t offset) {
    return pwrite64(descriptor, data, size, offset);
}

ssize_t pread64(int descriptor, void* data, size_t size, off64_t offset) {
    REAL(pread64);
    return is_our_file(descriptor) && fails() ? -1 : real(descriptor, data, size, offset);
}

ssize_t pread(int descriptor, void* data, size_t size, off_t offset) { return pread64(descriptor, data, size, offset); }

int fsync(int descriptor) {
    REAL(fsync);
    return is_our_file(descriptor) && fails() ? -1 : real(descriptor);
}

int fdatasync(int descriptor) {
    REAL(fdatasync);
    return is_our_file(descriptor) && fails() ? -1 : real(descriptor);
}

int ftruncate64(int descriptor, off64_t size) {
    REAL(ftruncate64);
    return is_our_file(descriptor) && fails() ? -1 : real(descriptor, size);
}

int ftruncate(int descriptor, off_t size) { return ftruncate64(descriptor, size); }

int fcntl64(int descriptor, int command, ...) {
    va_list rest;
    va_start(rest, command);
    void* argument = va_arg(rest, void*);
    va_end(rest);
    REAL(fcntl64);
    /* SQLite tries a lock again for ten seconds, so that none fails for ever. */
    int locks = !failing_on && (command == F_SETLK || command == F_GETLK);
    return locks && is_our_file(descriptor) && fails() ? -1 : real(descriptor, command, argument);
}

int unlink(const char* path) {
    REAL(unlink);
    return is_ours(path) && fails() ? -1 : real(path);
}

int open64(const char* path, int flags, ...) {
    va_list rest;
    va_start(rest, flags);
    mode_t mode = (flags & (O_CREAT | O_TMPFILE)) ? va_arg(rest, mode_t) : 0;
    va_end(rest);
    REAL(open64);
    return is_ours(path) && fails() ? -1 : real(path, flags, mode);
}
