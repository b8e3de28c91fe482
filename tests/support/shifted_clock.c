/* The time of day, off by as many seconds as a file says: LD_PRELOAD this, CMOE_TEST_CLOCK=FILE.

   The file holds one double, which may change while programs run, as when somebody sets the clock.
   Clocks that nobody can set stay as they are. Deadlines by the time of day are given to the system
   by its own clock. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static const volatile double *file;

__attribute__((constructor)) static void begin(void) {
    const char *name = getenv("CMOE_TEST_CLOCK");
    int number = name ? open(name, O_RDONLY | O_CLOEXEC) : -1;
    if (number < 0) return;
    void *found = mmap(0, sizeof(double), PROT_READ, MAP_SHARED, number, 0);
    if (found != MAP_FAILED) file = found;
    close(number);
}

static time_t shift(void) { return file ? (time_t)*file : 0; }

int clock_gettime(clockid_t clock, struct timespec *now) {
    int status = syscall(SYS_clock_gettime, clock, now);
    if (!status && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) now->tv_sec += shift();
    return status;
}

int gettimeofday(struct timeval *now, void *zone) {
    struct timespec found;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &found);
    now->tv_sec = found.tv_sec;
    now->tv_usec = found.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *now) {
    struct timespec found;
    clock_gettime(CLOCK_REALTIME, &found);
    if (now) *now = found.tv_sec;
    return found.tv_sec;
}

/* A deadline of a clock that starts with the machine is small; one by the time of day isn't. */
static const struct timespec *by_the_system(const struct timespec *deadline, struct timespec *own) {
    if (!deadline || deadline->tv_sec < 1000000000) return deadline;
    *own = *deadline;
    own->tv_sec -= shift();
    return own;
}

#define WAITING(name, kinds, pass, deadline)                              \
    int name kinds {                                                      \
        static int(*original) kinds;                                      \
        struct timespec own;                                              \
        if (!original) *(void **)&original = dlsym(RTLD_NEXT, #name);     \
        deadline = by_the_system(deadline, &own);                         \
        return original pass;                                             \
    }

WAITING(pthread_cond_timedwait,
        (pthread_cond_t *condition, pthread_mutex_t *mutex, const struct timespec *deadline),
        (condition, mutex, deadline), deadline)
WAITING(sem_timedwait, (sem_t *semaphore, const struct timespec *deadline), (semaphore, deadline),
        deadline)
WAITING(pthread_mutex_timedlock, (pthread_mutex_t *mutex, const struct timespec *deadline),
        (mutex, deadline), deadline)
