/* Threads that share a kernel's tasks with their caller. One that is not there in time is not waited for. */

#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

typedef void (*kernel_t)(void *const *arrays, const int64_t *sizes, void *workspace, int64_t first, int64_t last);

/* How long a helper looks for the next call before it sleeps: waking it up takes as long as a small kernel. */
#define PATIENCE 50000
#define LINE 64

struct pool {
  kernel_t run;
  void *const *arrays;
  const int64_t *sizes;
  int64_t space, tasks, step;
  _Alignas(LINE) _Atomic int64_t next; /* the first task that nobody has taken */
  _Alignas(LINE) _Atomic uint64_t open; /* the number of the call that may be joined; 0 for none */
  _Alignas(LINE) _Atomic int inside; /* helpers that look at the call, which must not change then */
  _Alignas(LINE) _Atomic int asleep, busy, ending;
  uint64_t calls;
  pid_t owner;
  pthread_mutex_t lock;
  pthread_cond_t wake;
  int helpers;
  pthread_t threads[];
};

static int64_t now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * INT64_C(1000000000) + t.tv_nsec;
}

static void relax(void) {
  for (int n = 0; n < 16; n++) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("yield");
#endif
  }
}

static void work(struct pool *p, void *workspace) {
  int64_t first;
  while ((first = atomic_fetch_add(&p->next, p->step)) < p->tasks) {
    int64_t last = first + p->step;
    p->run(p->arrays, p->sizes, workspace, first, last < p->tasks ? last : p->tasks);
  }
}

/* The number of a call that is not `seen`; 0 when the pool ends. */
static uint64_t awaited(struct pool *p, uint64_t seen) {
  uint64_t call;
  for (int64_t end = now() + PATIENCE; now() < end; sched_yield()) {
    if (atomic_load(&p->ending)) return 0;
    if ((call = atomic_load(&p->open)) && call != seen) return call;
    relax();
  }
  pthread_mutex_lock(&p->lock);
  atomic_fetch_add(&p->asleep, 1);
  while (!atomic_load(&p->ending) && (!(call = atomic_load(&p->open)) || call == seen)) pthread_cond_wait(&p->wake, &p->lock);
  atomic_fetch_sub(&p->asleep, 1);
  pthread_mutex_unlock(&p->lock);
  return atomic_load(&p->ending) ? 0 : call;
}

static void *helper(void *given) {
  struct pool *p = given;
  void *space = NULL;
  int64_t held = -1;
  uint64_t seen = 0;
  while (awaited(p, seen)) {
    atomic_fetch_add(&p->inside, 1);
    uint64_t call = atomic_load(&p->open); /* closed since, or another one: as good */
    if (call) {
      seen = call;
      if (held < p->space) {
        free(space);
        held = posix_memalign(&space, LINE, p->space + LINE) ? -1 : p->space;
        if (held < 0) space = NULL;
      }
      if (held >= 0) work(p, space); /* without memory the others do it */
    }
    atomic_fetch_sub(&p->inside, 1);
  }
  free(space);
  return NULL;
}

static void woken(struct pool *p) {
  pthread_mutex_lock(&p->lock);
  pthread_cond_broadcast(&p->wake);
  pthread_mutex_unlock(&p->lock);
}

void portolan_pool_free(struct pool *p) {
  if (getpid() != p->owner) return; /* a fork has the memory and not the threads */
  atomic_store(&p->ending, 1);
  woken(p);
  for (int n = 0; n < p->helpers; n++) pthread_join(p->threads[n], NULL);
  pthread_cond_destroy(&p->wake);
  pthread_mutex_destroy(&p->lock);
  free(p);
}

/* A pool with so many threads beside the caller, or fewer where the system has no more; NULL without memory. */
struct pool *portolan_pool_new(int helpers) {
  struct pool *p;
  size_t size = sizeof(*p) + (size_t)helpers * sizeof(pthread_t);
  if (posix_memalign((void **)&p, LINE, (size + LINE - 1) / LINE * LINE)) return NULL;
  __builtin_memset(p, 0, size);
  p->owner = getpid();
  pthread_mutex_init(&p->lock, NULL);
  pthread_cond_init(&p->wake, NULL);
  sigset_t every, before;
  sigfillset(&every);
  pthread_sigmask(SIG_SETMASK, &every, &before); /* signals are for the program's own threads */
  while (p->helpers < helpers && !pthread_create(&p->threads[p->helpers], NULL, helper, p)) p->helpers++;
  pthread_sigmask(SIG_SETMASK, &before, NULL);
  return p;
}

/* Runs all tasks of a kernel, alone where the helpers have another caller's. */
void portolan_share(struct pool *p, kernel_t run, void *const *arrays, const int64_t *sizes, void *workspace,
                    int64_t space, int64_t tasks, int64_t step) {
  if (getpid() != p->owner || atomic_exchange(&p->busy, 1)) {
    run(arrays, sizes, workspace, 0, tasks);
    return;
  }
  p->run = run;
  p->arrays = arrays;
  p->sizes = sizes;
  p->space = space;
  p->tasks = tasks;
  p->step = step;
  atomic_store(&p->next, 0);
  atomic_store(&p->open, ++p->calls);
  if (atomic_load(&p->asleep)) woken(p);
  work(p, workspace);
  atomic_store(&p->open, 0);
  for (int turns = 0; atomic_load(&p->inside); turns++) {
    relax();
    if (turns > 64) sched_yield();
  }
  atomic_store(&p->busy, 0);
}
