/* Ensembles of decision trees, for many rows or one.

   What a tree asks of a row can hardly be foretold, so no step is a branch: a node's successor is found by arithmetic,
   and leaves succeed themselves. A few trees of about the same depth are walked together, each as many steps as the
   deepest, and while one waits for memory the others go on; with many rows they are read once for a block of them.
   (After Asadi, Lin and de Vries, "Runtime optimizations for tree-based machine learning models", IEEE TKDE 26(9), 2014:
   predication and vectorization.)

   arrays: what is fixed (`Forest`), x [rows][features] f32, scores [rows][outputs] f32, labels [rows] i64, which nobody
   writes where there are none. sizes: rows, features, sums. A task is a block of rows. */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>

enum { BLOCK = 16, TOGETHER = 8, SMALL = 1 << 15 };
#define MISSING (1u << 31)
/* Which numbers become scores: sums as they are, a logistic function of each, or their softmax. */
enum { AS_IS, LOGISTIC, SOFTMAX };
/* Where the label comes from: nowhere, the largest score, the one sum's side of 0, or of a half. */
enum { NO_LABEL, LARGEST, SIDE_OF_ZERO, SIDE_OF_HALF };

/* A node's successor is its child, or the one behind it where the feature is at most `at`; with the bit MISSING in
   `feature`, also where it is NaN. A leaf is its own child and has NaN for `at`: nothing is at most that. Its `vote` is
   added to a sum, or is the bits of the number of its row in a table of votes. */
typedef struct { float at; uint32_t feature, child; float vote; } Node;
/* Votes are added to sums from `target` on. */
typedef struct { uint32_t root, depth, target, none; } Tree;

typedef struct {
  const Node *nodes;
  const Tree *trees;
  const float *votes;          /* [leaves][sums]; nothing where leaves hold theirs */
  const float *offset, *scale; /* of each feature; nothing where x is taken as it is */
  const double *base;          /* [sums] */
  const int64_t *names;        /* of the classes */
  int64_t features, count, sums, transform, label, missing;
} Forest;

#define IN static inline __attribute__((always_inline))

IN uint32_t step(const Node *nodes, uint32_t at, const float *x, const int missing) {
  const Node *n = nodes + at;
  float value = x[missing ? n->feature & ~MISSING : n->feature];
  uint32_t over = value <= n->at;
  if (missing) over |= (value != value) & (n->feature >> 31);
  return n->child + over;
}

/* Adds the votes of so many trees, the last of which is the deepest, to the sums of a row. */
IN void vote(const Forest *f, const Tree *tree, const float *x, double *sums, const int trees, const int missing) {
  uint32_t at[TOGETHER];
  for (int t = 0; t < trees; t++) at[t] = tree[t].root;
  for (uint32_t d = tree[trees - 1].depth; d > 0; d--)
    for (int t = 0; t < trees; t++) at[t] = step(f->nodes, at[t], x, missing);
  if (f->votes) {
    for (int t = 0; t < trees; t++) {
      uint32_t row;
      __builtin_memcpy(&row, &f->nodes[at[t]].vote, sizeof row);
      for (int64_t k = 0; k < f->sums; k++) sums[k] += f->votes[row * f->sums + k];
    }
  } else if (f->sums == 1) { /* a sum in memory would make each tree wait for the one before it */
    double sum = 0;
    for (int t = 0; t < trees; t++) sum += f->nodes[at[t]].vote;
    *sums += sum;
  } else
    for (int t = 0; t < trees; t++) sums[tree[t].target] += f->nodes[at[t]].vote;
}

/* Adds the votes of all trees to sums [rows][sums]. */
IN void voted(const Forest *f, const float *x, double *sums, int64_t rows, const int missing) {
  int64_t t = 0, n = f->features;
  for (; t + TOGETHER <= f->count; t += TOGETHER)
    for (int64_t r = 0; r < rows; r++) vote(f, f->trees + t, x + r * n, sums + r * f->sums, TOGETHER, missing);
  for (; t < f->count; t++)
    for (int64_t r = 0; r < rows; r++) vote(f, f->trees + t, x + r * n, sums + r * f->sums, 1, missing);
}

/* Scores of a row: one sum of two classes becomes two. */
static int64_t outputs(const Forest *f) { return f->label == SIDE_OF_ZERO || f->label == SIDE_OF_HALF ? 2 : f->sums; }

/* The scores and the label of a row, of its sums, which are used up. */
static void finish(const Forest *f, double *sum, float *score, int64_t *label) {
  int64_t n = f->sums, best = 0;
  for (int64_t k = 0; k < n; k++) sum[k] += f->base[k];
  if (f->label == LARGEST) for (int64_t k = 1; k < n; k++) if ((float)sum[k] > (float)sum[best]) best = k;
  if (f->label == SIDE_OF_ZERO) best = (float)sum[0] > 0;
  if (f->label == SIDE_OF_HALF) best = (float)sum[0] > 0.5f;
  if (f->label != NO_LABEL) *label = f->names[best];
  if (f->label == SIDE_OF_ZERO || f->label == SIDE_OF_HALF) {
    double at = sum[0];
    int sides = f->label == SIDE_OF_ZERO;
    if (sides && f->transform == LOGISTIC) { score[0] = 1 / (1 + exp(at)); score[1] = 1 / (1 + exp(-at)); }
    else { score[0] = sides ? -at : 1 - at; score[1] = at; }
  } else if (f->transform == LOGISTIC) {
    for (int64_t k = 0; k < n; k++) score[k] = 1 / (1 + exp(-sum[k]));
  } else if (f->transform == SOFTMAX) {
    double most = sum[0], whole = 0;
    for (int64_t k = 1; k < n; k++) if (sum[k] > most) most = sum[k];
    for (int64_t k = 0; k < n; k++) whole += sum[k] = exp(sum[k] - most);
    for (int64_t k = 0; k < n; k++) score[k] = sum[k] / whole;
  } else for (int64_t k = 0; k < n; k++) score[k] = sum[k];
}

/* A block of rows; behind sums [BLOCK][sums] is room for x [BLOCK][features] as the scaler gives it. */
static void block(const Forest *f, const float *x, float *scores, int64_t *labels, int64_t rows, double *sums) {
  int64_t n = rows * f->features;
  float *scaled = (float *)(sums + BLOCK * f->sums);
  if (f->scale) {
    for (int64_t r = 0; r < n; r += f->features)
      for (int64_t k = 0; k < f->features; k++) scaled[r + k] = (x[r + k] - f->offset[k]) * f->scale[k];
    x = scaled;
  }
  for (int64_t k = 0; k < rows * f->sums; k++) sums[k] = 0;
  if (f->missing) voted(f, x, sums, rows, 1);
  else voted(f, x, sums, rows, 0);
  for (int64_t r = 0; r < rows; r++) finish(f, sums + r * f->sums, scores + r * outputs(f), labels + r);
}

int64_t kernel_forest_tasks(const int64_t *sizes) { return (sizes[0] + BLOCK - 1) / BLOCK; }
int64_t kernel_forest_workspace(const int64_t *sizes) { return BLOCK * (8 * sizes[2] + 4 * sizes[1]); }

void kernel_forest(void *const *arrays, const int64_t *sizes, void *workspace, int64_t first, int64_t last) {
  const Forest *f = arrays[0];
  for (int64_t at = first * BLOCK; at < sizes[0] && at < last * BLOCK; at += BLOCK) {
    int64_t rows = sizes[0] - at < BLOCK ? sizes[0] - at : BLOCK;
    const float *x = (const float *)arrays[1] + at * f->features;
    block(f, x, (float *)arrays[2] + at * outputs(f), (int64_t *)arrays[3] + at, rows, workspace);
  }
}

/* For few rows, where looking arrays up takes Python longer than the trees take: NumPy's objects themselves, whose first
   field behind the head of `head` bytes is where the numbers are. `labels` may be any of them where there are none. */
int forest_now(const Forest *f, const char *x, const char *scores, const char *labels, int64_t head, int64_t rows) {
  void *arrays[4] = {(void *)f, *(void **)(x + head), *(void **)(scores + head), *(void **)(labels + head)};
  int64_t sizes[3] = {rows, f->features, f->sums}, space = kernel_forest_workspace(sizes);
  double here[SMALL / 8], *workspace = space <= SMALL ? here : malloc(space);
  if (!workspace) return 0;
  kernel_forest(arrays, sizes, workspace, 0, kernel_forest_tasks(sizes));
  if (workspace != here) free(workspace);
  return 1;
}
