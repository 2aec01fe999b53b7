/* A convolution of 3 by 3 with steps of one and a frame of one zero, by minimal filtering (Winograd; Lavin and Gray,
   arXiv:1509.09308): a tile of OUT by OUT results takes SIDE * SIDE products for each pair of channels in place of
   9 * OUT * OUT. The points are 0, +-A, +-B and infinity; those of 4 by 4 are so chosen that all numbers stay small
   (Barabasz et al., arXiv:1803.10986).

   Channels lie in blocks of LANES, as ONNX Runtime keeps them between convolutions. A task goes through some tiles: their
   inputs are transformed, and then for COLUMNS of the results at a time multiplied and transformed back, all in a core's
   own cache. The weights are read once by each task, mostly from memory, so they are asked for AHEAD of their use.

   Before this file come: LANES and the kernels' prelude, ENTRY (a function), OUT (2 or 4), ADDED (whether results are added
   to z), SPACE (bytes that a task may fill) and THREADS.
   arrays: x [n][c / LANES][h][w][LANES]; u [q][SIDE * SIDE][c][COLUMNS], the weights transformed; bias [k]; least [1],
   below which no result is; with ADDED z, as y; y [n][k / LANES][h][w][LANES]. sizes: n, c, h, w, k, q. */
enum { SIDE = OUT + 2, POINTS = SIDE * SIDE, COLUMNS = 2 * LANES, ROWS = LANES >= 16 ? 14 : 6, AHEAD = 4096 };
enum { N, C, H, W, K, Q };
#define JOIN_(a, b) a##b
#define JOIN(a, b) JOIN_(a, b)
#define AT(p) (*(const V *)(p))
#define PUT(p, v) (*(V *)(p) = (v))

typedef struct { int64_t across, tiles, many, parts; } Tiles; /* `many` of the `tiles` in each of `parts` */

IN int64_t wholes(int64_t a, int64_t b) { return (a + b - 1) / b; }

static Tiles tiled(const int64_t *s) {
  Tiles t = {wholes(s[W], OUT)};
  t.tiles = t.across * wholes(s[H], OUT);
  const int64_t most = p_max(ROWS, SPACE / 4 / (POINTS * (s[C] + COLUMNS)));
  t.parts = wholes(t.tiles, most);
  /* As many as keep all threads busy to the end, unless there are too few rows in each then. */
  if (s[N] < THREADS) t.parts = p_min(wholes(t.parts, THREADS) * THREADS, p_max(t.parts, t.tiles / (ROWS / 2)));
  t.many = wholes(t.tiles, t.parts);
  t.parts = wholes(t.tiles, t.many);
  return t;
}

/* The transform of inputs along one axis: SIDE numbers to SIDE. */
IN void entered(const V *d, V *r) {
#if OUT == 4
  const float a = 0x1.6a09e6p-1f, b = 0x1.6a09e6p0f; /* a * a = 1/2, b * b = 2 */
  V e = d[4] - 2.f * d[2], f = d[3] - 2.f * d[1], g = d[4] - .5f * d[2], h = d[3] - .5f * d[1];
  r[0] = d[0] - 2.5f * d[2] + d[4];
  r[1] = e + a * f; r[2] = e - a * f;
  r[3] = g + b * h; r[4] = g - b * h;
  r[5] = d[1] - 2.5f * d[3] + d[5];
#else
  r[0] = d[2] - d[0]; r[1] = d[2] + d[1]; r[2] = d[2] - d[1]; r[3] = d[3] - d[1];
#endif
}

/* That of products: SIDE numbers to OUT. */
IN void left(const V *m, V *r) {
#if OUT == 4
  const float a = 0x1.6a09e6p-1f, b = 0x1.6a09e6p0f;
  V e = m[1] + m[2], f = m[1] - m[2], g = m[3] + m[4], h = m[3] - m[4];
  r[0] = m[0] + e + g;
  r[1] = a * f + b * h;
  r[2] = .5f * e + 2.f * g;
  r[3] = .5f * a * f + 2.f * b * h + m[5];
#else
  r[0] = m[0] + m[1] + m[2]; r[1] = m[1] - m[2] + m[3];
#endif
}

/* One tile of one block of channels, whose corner is at row y0 and column x0; `step` is between the points of v. */
IN void input(const float *x, int64_t y0, int64_t x0, int64_t h, int64_t w, float *v, int64_t step) {
  V t[SIDE][SIDE];
  const int inside = y0 >= 0 && x0 >= 0 && y0 + SIDE <= h && x0 + SIDE <= w;
  for (int j = 0; j < SIDE; j++) {
    V d[SIDE], r[SIDE];
    if (inside) for (int i = 0; i < SIDE; i++) d[i] = AT(x + ((y0 + i) * w + x0 + j) * LANES);
    else for (int i = 0; i < SIDE; i++) {
      const int there = y0 + i >= 0 && y0 + i < h && x0 + j >= 0 && x0 + j < w;
      d[i] = there ? AT(x + ((y0 + i) * w + x0 + j) * LANES) : (V){0};
    }
    entered(d, r);
    for (int i = 0; i < SIDE; i++) t[i][j] = r[i];
  }
  for (int i = 0; i < SIDE; i++) {
    V r[SIDE];
    entered(t[i], r);
    for (int j = 0; j < SIDE; j++) PUT(v + (i * SIDE + j) * step, r[j]);
  }
}

/* m [rows][COLUMNS] = v [rows][c] u [c][COLUMNS]. */
IN void product(const float *v, const float *u, float *m, int64_t c, const int rows) {
  V sum[ROWS][2];
  for (int i = 0; i < rows; i++) sum[i][0] = sum[i][1] = (V){0};
  for (int64_t k = 0; k < c; k++, u += COLUMNS) {
    V a = AT(u), b = AT(u + LANES);
    __builtin_prefetch(u + AHEAD);
    __builtin_prefetch(u + AHEAD + LANES);
    for (int i = 0; i < rows; i++) { float x = v[i * c + k]; sum[i][0] += x * a; sum[i][1] += x * b; }
  }
  for (int i = 0; i < rows; i++) { PUT(m + i * COLUMNS, sum[i][0]); PUT(m + i * COLUMNS + LANES, sum[i][1]); }
}

static void products(const float *v, const float *u, float *m, int64_t c, int rows) {
#define CASE(n) case n: product(v, u, m, c, n); break;
  switch (rows) {
    CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6)
#if LANES >= 16
    CASE(7) CASE(8) CASE(9) CASE(10) CASE(11) CASE(12) CASE(13) CASE(14)
#endif
  }
#undef CASE
}

/* One tile's results of one block of channels, from products `step` apart. */
IN void output(const float *m, int64_t step, V bias, V least, float *y, const float *z, int64_t y0, int64_t x0, int64_t h,
               int64_t w) {
  V t[OUT][SIDE];
  for (int j = 0; j < SIDE; j++) {
    V d[SIDE], r[OUT];
    for (int i = 0; i < SIDE; i++) d[i] = AT(m + (i * SIDE + j) * step);
    left(d, r);
    for (int i = 0; i < OUT; i++) t[i][j] = r[i];
  }
  for (int i = 0; i < OUT && y0 + i < h; i++) {
    V r[OUT];
    left(t[i], r);
    for (int j = 0; j < OUT && x0 + j < w; j++) {
      const int64_t at = ((y0 + i) * w + x0 + j) * LANES;
      V s = r[j] + bias;
      if (ADDED) s += AT(z + at);
      VI low = s < least; /* what is no number is not */
      PUT(y + at, (V)(((VI)s & ~low) | ((VI)least & low)));
    }
  }
}

/* The tiles of one image from `from` to `to`. */
IN void filtered(void *const *arrays, const int64_t *s, const Tiles t, float *v, int64_t n, int64_t from, int64_t to) {
  const int64_t c = s[C], k = s[K], h = s[H], w = s[W], many = to - from, blocks = wholes(many, ROWS);
  const float *x = (const float *)arrays[0] + n * c * h * w, *u = arrays[1], *bias = arrays[2];
  const float *z = ADDED ? (const float *)arrays[4] + n * k * h * w : 0;
  float *y = (float *)arrays[4 + ADDED] + n * k * h * w, *m = v + POINTS * many * c;
  const V least = *(const float *)arrays[3] + (V){0};
  for (int64_t b = 0; b < c; b += LANES)
    for (int64_t i = 0; i < many; i++) {
      const int64_t row = (from + i) / t.across, column = (from + i) % t.across;
      input(x + b * h * w, row * OUT - 1, column * OUT - 1, h, w, v + i * c + b, many * c);
    }
  for (int64_t q = 0; q < k; q += COLUMNS, u += POINTS * c * COLUMNS) {
    for (int64_t p = 0; p < POINTS; p++)
      for (int64_t b = 0; b < blocks; b++) {
        const int64_t first = many * b / blocks, last = many * (b + 1) / blocks, at = p * many + first;
        products(v + at * c, u + p * c * COLUMNS, m + at * COLUMNS, c, (int)(last - first));
      }
    for (int64_t e = q; e < q + COLUMNS && e < k; e += LANES)
      for (int64_t i = 0; i < many; i++) {
        const int64_t row = (from + i) / t.across, column = (from + i) % t.across;
        output(m + i * COLUMNS + e - q, many * COLUMNS, AT(bias + e), least, y + e * h * w, ADDED ? z + e * h * w : 0,
               row * OUT, column * OUT, h, w);
      }
  }
}

/* -1 for sizes that it cannot take. */
int64_t JOIN(ENTRY, _tasks)(const int64_t *s) {
  if (s[C] % LANES || s[K] % LANES || s[Q] != wholes(s[K], COLUMNS)) return -1;
  return s[N] * tiled(s).parts;
}

int64_t JOIN(ENTRY, _workspace)(const int64_t *s) { return 4 * POINTS * tiled(s).many * (s[C] + COLUMNS); }

void ENTRY(void *const *arrays, const int64_t *s, void *space, int64_t first, int64_t last) {
  const Tiles t = tiled(s);
  for (int64_t task = first; task < last; task++) {
    const int64_t from = task % t.parts * t.many;
    filtered(arrays, s, t, space, task / t.parts, from, p_min(from + t.many, t.tiles));
  }
}
