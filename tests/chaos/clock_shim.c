/* A library that is preloaded into a process to make its clocks jump: two numbers of nanoseconds in the file
 * that CHAOS_CLOCKS names are added to the wall clock and to the monotonic clock. Absolute times of waits are
 * in the process's own clocks, and are converted on their way to the kernel, which does not know the offsets.
 * A wait under way ends when it would have, as on a machine whose clock jumps. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#define BILLION 1000000000LL

struct offsets {
    volatile int64_t wall_ns, monotonic_ns;
};

static struct offsets none;
static struct offsets* offsets = &none;
static int (*real_gettime)(clockid_t, struct timespec*);

__attribute__((constructor)) static void begin(void) {
    real_gettime = (int (*)(clockid_t, struct timespec*))dlsym(RTLD_NEXT, "clock_gettime");
    const char* path = getenv("CHAOS_CLOCKS");
    int fd = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (fd < 0)
        return;
    void* found = mmap(NULL, sizeof(struct offsets), PROT_READ, MAP_SHARED, fd, 0);
    close(fd);
    if (found != MAP_FAILED)
        offsets = found;
}

static int64_t offset_of(clockid_t clock) {
    switch (clock) {
        case CLOCK_REALTIME:
        case CLOCK_REALTIME_COARSE:
        case CLOCK_TAI: return offsets->wall_ns;
        case CLOCK_MONOTONIC:
        case CLOCK_MONOTONIC_COARSE:
        case CLOCK_MONOTONIC_RAW:
        case CLOCK_BOOTTIME: return offsets->monotonic_ns;
        default: return 0;
    }
}

static struct timespec moved(const struct timespec* from, int64_t by) {
    int64_t ns = (int64_t)from->tv_sec * BILLION + from->tv_nsec + by;
    struct timespec to = {ns / BILLION, ns % BILLION};
    if (to.tv_nsec < 0)
        to.tv_sec--, to.tv_nsec += BILLION;
    return to;
}

#define REAL(name, type) \
    static type real;    \
    if (!real)           \
    real = (type)dlsym(RTLD_NEXT, name)

int clock_gettime(clockid_t clock, struct timespec* now) {
    if (!real_gettime)
        begin();
    int status = real_gettime(clock, now);
    if (status == 0)
        *now = moved(now, offset_of(clock));
    return status;
}

int gettimeofday(struct timeval* restrict now, void* restrict zone) {
    (void)zone;
    struct timespec exact;
    int status = clock_gettime(CLOCK_REALTIME, &exact);
    now->tv_sec = exact.tv_sec;
    now->tv_usec = exact.tv_nsec / 1000;
    return status;
}

time_t time(time_t* where) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (where)
        *where = now.tv_sec;
    return now.tv_sec;
}

typedef int (*clockwait)(pthread_cond_t*, pthread_mutex_t*, clockid_t, const struct timespec*);

int pthread_cond_clockwait(pthread_cond_t* condition, pthread_mutex_t* mutex, clockid_t clock,
                           const struct timespec* until) {
    REAL("pthread_cond_clockwait", clockwait);
    struct timespec true_end = moved(until, -offset_of(clock));
    return real(condition, mutex, clock, &true_end);
}

typedef int (*timedwait)(pthread_cond_t*, pthread_mutex_t*, const struct timespec*);

int pthread_cond_timedwait(pthread_cond_t* condition, pthread_mutex_t* mutex, const struct timespec* until) {
    REAL("pthread_cond_timedwait", timedwait);
    /* Only the condition variable knows its clock; a monotonic time is far below any wall clock's. */
    clockid_t clock = until->tv_sec < 1000000000 ? CLOCK_MONOTONIC : CLOCK_REALTIME;
    struct timespec true_end = moved(until, -offset_of(clock));
    return real(condition, mutex, &true_end);
}

typedef int (*semwait)(sem_t*, clockid_t, const struct timespec*);

int sem_clockwait(sem_t* semaphore, clockid_t clock, const struct timespec* until) {
    REAL("sem_clockwait", semwait);
    struct timespec true_end = moved(until, -offset_of(clock));
    return real(semaphore, clock, &true_end);
}

typedef int (*semtimed)(sem_t*, const struct timespec*);

int sem_timedwait(sem_t* semaphore, const struct timespec* until) {
    REAL("sem_timedwait", semtimed);
    struct timespec true_end = moved(until, -offset_of(CLOCK_REALTIME));
    return real(semaphore, &true_end);
}

typedef int (*nanosleep_until)(clockid_t, int, const struct timespec*, struct timespec*);

int clock_nanosleep(clockid_t clock, int flags, const struct timespec* time, struct timespec* left) {
    REAL("clock_nanosleep", nanosleep_until);
    if (!(flags & TIMER_ABSTIME))
        return real(clock, flags, time, left);
    struct timespec true_end = moved(time, -offset_of(clock));
    return real(clock, flags, &true_end, left);
}
