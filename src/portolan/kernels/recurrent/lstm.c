/* A stack of LSTM layers, for up to ROWS sequences at a time.

   A step of a layer reads all of its recurrent weights, at best from a core's own second cache: with few rows, reading
   them is most of the time. So layers run one after another over the whole sequence, each with its own weights, and as
   many rows as registers hold share what was read. Where threads are to be had, each layer has one of its own, a few steps
   behind the layer below it (a wavefront; Appleyard et al., arXiv:1604.01946).

   Before this file come: LANES and the kernels' prelude, ENTRY (a function), LAYERS, INPUT and HIDDEN (sizes).
   arrays: x [t][b][INPUT]; of each layer w [4 WIDE / 64][INPUT or HIDDEN][64], r [WIDE / 16][HIDDEN][4][16] and the bias
   [4 WIDE], gates in ONNX's order (input, output, forget, cell); y [t][1][b][HIDDEN]. sizes: t, b. */
#include <sched.h>
#include <stdatomic.h>

/* Of the registers, as many hold sums as there are rows times gates times vectors: more rows, narrower steps. */
enum { WIDE = (HIDDEN + 31) / 32 * 32, GATES = 4 * WIDE, AT_ONCE = 6, LINE = 64 };
enum { ROWS = LANES >= 16 ? 6 : 3, TWICE = LANES >= 16 ? 3 : 1 };
#define JOIN_(a, b) a##b
#define JOIN(a, b) JOIN_(a, b)
#define AT(p) (*(const V *)(p))
#define PUT(p, v) (*(V *)(p) = (v))

/* Sequences of floats, such as the inputs of a layer: step s of row r is at `from + s * step + r * row`. */
typedef struct { float *from; int64_t step, row; } Steps;
typedef struct { const float *w, *r, *bias; int64_t width; } Layer;

/* out[m][GATES] = bias + in[m] w, for m rows of `width` numbers. */
IN void weighted(const float *const *in, const Layer *l, float *out, const int m) {
  for (int64_t j = 0; j < GATES; j += 64)
    for (int64_t part = 0; part < 64; part += 4 * LANES) {
      const float *w = l->w + j * l->width + part;
      V sum[AT_ONCE][4];
      for (int i = 0; i < m; i++) for (int q = 0; q < 4; q++) sum[i][q] = AT(l->bias + j + part + q * LANES);
      for (int64_t k = 0; k < l->width; k++, w += 64) {
        V a = AT(w), b = AT(w + LANES), c = AT(w + 2 * LANES), d = AT(w + 3 * LANES);
        for (int i = 0; i < m; i++) {
          float x = in[i][k];
          sum[i][0] += x * a; sum[i][1] += x * b; sum[i][2] += x * c; sum[i][3] += x * d;
        }
      }
      for (int i = 0; i < m; i++) for (int q = 0; q < 4; q++) PUT(out + i * GATES + j + part + q * LANES, sum[i][q]);
    }
}

static void prepared(const float *const *in, const Layer *l, float *out, int m) {
  switch (m) {
    case 1: weighted(in, l, out, 1); break;
    case 2: weighted(in, l, out, 2); break;
    case 3: weighted(in, l, out, 3); break;
    case 4: weighted(in, l, out, 4); break;
    case 5: weighted(in, l, out, 5); break;
    default: weighted(in, l, out, 6);
  }
}

/* Where the weights of some units begin, whose sums are in one vector. */
IN const float *weight(const float *r, int64_t unit) { return r + unit / 16 * 64 * HIDDEN + unit % 16; }

/* One step of `rows` rows: gates [rows][GATES] hold what the inputs give; cell [rows][WIDE] is renewed, and hidden gives
   next. `vectors` of units at a time. */
IN void step(const float *gates, const float *r, float *cell, const float *hidden, float *next, const int rows,
             const int vectors) {
  for (int64_t u = 0; u < WIDE; u += vectors * LANES) {
    const float *w[2] = {weight(r, u), weight(r, u + LANES)};
    V sum[ROWS][4][2];
    for (int i = 0; i < rows; i++)
      for (int g = 0; g < 4; g++)
        for (int q = 0; q < vectors; q++) sum[i][g][q] = AT(gates + i * GATES + g * WIDE + u + q * LANES);
    for (int64_t k = 0; k < HIDDEN; k++)
      for (int g = 0; g < 4; g++)
        for (int q = 0; q < vectors; q++) {
          V a = AT(w[q] + 64 * k + 16 * g);
          for (int i = 0; i < rows; i++) sum[i][g][q] += hidden[i * WIDE + k] * a;
        }
    for (int i = 0; i < rows; i++)
      for (int q = 0; q < vectors; q++) {
        float *c = cell + i * WIDE + u + q * LANES;
        V kept = v_sigmoid(sum[i][2][q]) * AT(c) + v_sigmoid(sum[i][0][q]) * v_tanh(sum[i][3][q]);
        PUT(c, kept);
        PUT(next + i * WIDE + u + q * LANES, v_sigmoid(sum[i][1][q]) * v_tanh(kept));
      }
  }
}

typedef struct { _Alignas(LINE) _Atomic int64_t count; } Counter;

/* Waits by looking, and after some 50 us lets others have the core. */
static void awaited(Counter *done, int64_t count) {
  for (int turns = 0; atomic_load_explicit(&done->count, memory_order_acquire) < count; turns++) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#endif
    if (turns > 4096) sched_yield();
  }
}

/* A layer over all steps. `space`: floats of this thread's own. `before` and `done`: the steps that the layer below and
   this one have made, where they run at the same time. */
IN void layer(const Layer *l, Steps in, Steps out, int64_t t, const int rows, float *space, Counter *before, Counter *done) {
  float *cell = space, *hidden = cell + rows * WIDE, *next = hidden + rows * WIDE, *gates = next + rows * WIDE;
  const int most = AT_ONCE / rows;
  memset(space, 0, 2 * rows * WIDE * sizeof *space);
  for (int64_t s = 0; s < t;) {
    const int steps = t - s < most ? (int)(t - s) : most;
    const float *given[AT_ONCE];
    if (before) awaited(before, s + steps);
    for (int i = 0; i < steps * rows; i++) given[i] = in.from + (s + i / rows) * in.step + i % rows * in.row;
    prepared(given, l, gates, steps * rows);
    for (int n = 0; n < steps; n++, s++) {
      step(gates + n * rows * GATES, l->r, cell, hidden, next, rows, rows <= TWICE ? 2 : 1);
      for (int i = 0; i < rows; i++)
        memcpy(out.from + s * out.step + i * out.row, next + i * WIDE, HIDDEN * sizeof *next);
      float *swap = hidden; hidden = next; next = swap;
      if (done) atomic_store_explicit(&done->count, s + 1, memory_order_release);
    }
  }
}

static void run(const Layer *l, Steps in, Steps out, int64_t t, int rows, float *space, Counter *before, Counter *done) {
#define CASE(n) case n: layer(l, in, out, t, n, space, before, done); break
  switch (rows) {
    CASE(1); CASE(2); CASE(3);
#if LANES >= 16
    CASE(4); CASE(5); CASE(6);
#endif
  }
}

static Layer weights(void *const *arrays, int number) {
  void *const *a = arrays + 1 + 3 * number;
  return (Layer){a[0], a[1], a[2], number ? HIDDEN : INPUT};
}

static int64_t own(void) { return ROWS * (3 * WIDE + (int64_t)AT_ONCE * GATES); }
static int64_t between(int64_t t) { return t * ROWS * HIDDEN; }
static Steps first_of(void *const *arrays, int64_t b, int64_t row) {
  return (Steps){(float *)arrays[0] + row * INPUT, b * INPUT, INPUT};
}
static Steps last_of(void *const *arrays, int64_t b, int64_t row) {
  return (Steps){(float *)arrays[1 + 3 * LAYERS] + row * HIDDEN, b * HIDDEN, HIDDEN};
}

/* Each task has all layers of its rows, which are divided evenly. */
int64_t JOIN(ENTRY, _tasks)(const int64_t *sizes) { return (sizes[1] + ROWS - 1) / ROWS; }
int64_t JOIN(ENTRY, _workspace)(const int64_t *sizes) { return 4 * (own() + 2 * between(sizes[0])) + LINE; }

void ENTRY(void *const *arrays, const int64_t *sizes, void *workspace, int64_t first, int64_t last) {
  const int64_t t = sizes[0], b = sizes[1], tasks = JOIN(ENTRY, _tasks)(sizes);
  float *space = workspace, *results[2] = {space + own(), space + own() + between(t)};
  for (int64_t task = first; task < last; task++) {
    const int64_t row = b * task / tasks;
    const int rows = (int)(b * (task + 1) / tasks - row);
    Steps in = first_of(arrays, b, row);
    for (int n = 0; n < LAYERS; n++) {
      Steps out = {results[n % 2], (int64_t)rows * HIDDEN, HIDDEN};
      if (n == LAYERS - 1) out = last_of(arrays, b, row);
      Layer l = weights(arrays, n);
      run(&l, in, out, t, rows, space, 0, 0);
      in = out;
    }
  }
}

/* Or each stage has one layer of all rows, where these are few. Stages count themselves as they begin, so that one waits
   only for those that somebody runs already. */
#define STAGED
typedef struct { Counter begun, done[LAYERS]; } Progress;

int64_t JOIN(ENTRY, _stages)(const int64_t *sizes) { return sizes[1] <= ROWS && LAYERS > 1 ? LAYERS : 0; }
int64_t JOIN(ENTRY, _shared)(const int64_t *sizes) { return sizeof(Progress) + 4 * (LAYERS - 1) * between(sizes[0]); }
void JOIN(ENTRY, _begin)(void *shared) { memset(shared, 0, sizeof(Progress)); }

void JOIN(ENTRY, _stage)(void *const *arrays, const int64_t *sizes, void *shared, void *workspace) {
  const int64_t t = sizes[0], b = sizes[1];
  Progress *p = shared;
  float *results = (float *)(p + 1);
  const int n = (int)atomic_fetch_add(&p->begun.count, 1);
  Steps in = first_of(arrays, b, 0), out = last_of(arrays, b, 0);
  if (n) in = (Steps){results + (n - 1) * between(t), b * HIDDEN, HIDDEN};
  if (n < LAYERS - 1) out = (Steps){results + n * between(t), b * HIDDEN, HIDDEN};
  Layer l = weights(arrays, n);
  run(&l, in, out, t, (int)b, workspace, n ? &p->done[n - 1] : 0, &p->done[n]);
  /* Who is ready waits here for those at work: a runtime would spin, on what may be the only core that they can have. */
  for (int other = 0; other < (int)atomic_load(&p->begun.count); other++) awaited(&p->done[other], t);
}
