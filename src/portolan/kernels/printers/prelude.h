/* What every printed kernel builds on: vectors of the compiler's own, element functions, reads of narrow types.
 * LANES is the number of 32-bit numbers in a vector; 1 for no vectors. The floating-point mode is never touched. */
#include <math.h>
#include <stdint.h>
#include <string.h>
#define IN static inline __attribute__((always_inline, unused))
#define BITS(T, x) ({ __typeof__(x) b_ = (x); T r_; memcpy(&r_, &b_, sizeof r_); r_; })

#define F_OF_BITS(u) BITS(float, u)
#define BITS_OF_F(x) BITS(uint32_t, x)
typedef int64_t place_t;
#include "scalar.h"

#if LANES > 1
/* Vectors. aligned(4): loads of any place are legal. ---------------------------------------------------------------- */
typedef float V __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t VI __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef uint32_t VU __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
#define EACH for (int l = 0; l < LANES; l++)
#define VF(x) ((V)((x) - (V){}))
#define VN(x) ((VI)((int32_t)(x) + (VI){}))
/* A macro, and on the mask's bits: as a function gcc 12 selects by xor. */
#define SEL(T, m, a, b) ({ VI m_ = (VI)(m); T a_ = (a), b_ = (b); (T)((m_ & (VI)a_) | (~m_ & (VI)b_)); })
IN VI vi_iota(VI x) { VI i; EACH i[l] = l; return x + i; }
#define LANEWISE(name, call) IN V name(V a) { V r; EACH r[l] = call(a[l]); return r; }
LANEWISE(v_sin, sinf) LANEWISE(v_cos, cosf)
IN V v_pow(V a, V b) { V r; EACH r[l] = powf(a[l], b[l]); return r; }
/* Instructions that gcc does not find by itself. By its builtins: reading immintrin.h takes longer than all the rest. */
#if defined(__AVX512F__) && LANES == 16 && !defined(__clang__)
#define HAVE_LARGER
typedef float V64 __attribute__((vector_size(64)));
IN V v_larger(V a, V b) { return (V)__builtin_ia32_maxps512_mask((V64)a, (V64)b, (V64){}, -1, 4); }
IN V v_smaller(V a, V b) { return (V)__builtin_ia32_minps512_mask((V64)a, (V64)b, (V64){}, -1, 4); }
IN uint32_t v_below(V a, V b) { return (uint16_t)__builtin_ia32_cmpps512_mask((V64)a, (V64)b, 17, -1, 4); }
#define HAVE_INTEGERS
typedef int32_t I64 __attribute__((vector_size(64)));
IN VI vi_min(VI a, VI b) { return (VI)__builtin_ia32_pminsd512_mask((I64)a, (I64)b, (I64){}, -1); }
IN VI vi_max(VI a, VI b) { return (VI)__builtin_ia32_pmaxsd512_mask((I64)a, (I64)b, (I64){}, -1); }
/* What is no number gives 0, what is too small INT32_MIN by the instruction itself, what is too large INT32_MAX. */
IN VI vi_of_v(V x) {
  I64 r = __builtin_ia32_cvttps2dq512_mask((V64)x, (I64){}, __builtin_ia32_cmpps512_mask((V64)x, (V64)x, 7, -1, 4), 4);
  uint16_t large = __builtin_ia32_cmpps512_mask((V64)VF(2147483520.f), (V64)x, 17, -1, 4);
  return (VI)__builtin_ia32_blendmd_512_mask(r, (I64)VN(INT32_MAX), large);
}
IN V v_sqrt(V a) { return (V)__builtin_ia32_sqrtps512_mask((V64)a, (V64){}, -1, 4); }
/* Vectors that count as a whole or not at all. What does not count is not read, wherever it lies. */
#define HAVE_MASKS
typedef uint16_t mask_t;
#define MASK(condition) ((mask_t)-(int)!!(condition))
IN V masked_f32(const float *p, mask_t k) { return (V)__builtin_ia32_loadups512_mask(p, (V64){}, k); }
#define MERGED(k, old, new) ((V)__builtin_ia32_blendmps_512_mask((V64)(old), (V64)(new), k))
#define HAVE_SCALE
IN V v_scale(V a, V n) { return (V)__builtin_ia32_scalefps512_mask((V64)a, (V64)n, (V64){}, -1, 4); }
IN V v_floor(V a) { return (V)__builtin_ia32_rndscaleps_mask((V64)a, 9, (V64){}, -1, 4); }
IN V v_ceil(V a) { return (V)__builtin_ia32_rndscaleps_mask((V64)a, 10, (V64){}, -1, 4); }
#elif defined(__AVX__) && LANES == 8 && !defined(__clang__)
#define HAVE_LARGER
typedef float V32 __attribute__((vector_size(32)));
IN V v_larger(V a, V b) { return (V)__builtin_ia32_maxps256((V32)a, (V32)b); }
IN V v_smaller(V a, V b) { return (V)__builtin_ia32_minps256((V32)a, (V32)b); }
IN uint32_t v_below(V a, V b) { return __builtin_ia32_movmskps256(__builtin_ia32_cmpps256((V32)a, (V32)b, 17)); }
IN V v_sqrt(V a) { return (V)__builtin_ia32_sqrtps256((V32)a); }
IN V v_floor(V a) { return (V)__builtin_ia32_roundps256((V32)a, 9); }
IN V v_ceil(V a) { return (V)__builtin_ia32_roundps256((V32)a, 10); }
#else
LANEWISE(v_sqrt, sqrtf) LANEWISE(v_floor, floorf) LANEWISE(v_ceil, ceilf)
#endif
IN V v_abs(V a) { return (V)((VI)a & 0x7fffffff); }
IN VI vi_abs(VI a) { return SEL(VI, a < 0, -a, a); }
IN V v_min(V a, V b) { return SEL(V, (a < b) | (a != a), a, b); }
IN V v_max(V a, V b) { return SEL(V, (a > b) | (a != a), a, b); }
IN VI vi_floordiv(VI a, VI b) { VI r; EACH r[l] = (int32_t)p_floordiv(a[l], b[l]); return r; }
IN VI vi_mod(VI a, VI b) { VI r; EACH r[l] = (int32_t)p_mod(a[l], b[l]); return r; }
#ifndef HAVE_INTEGERS
IN VI vi_min(VI a, VI b) { return SEL(VI, a < b, a, b); }
IN VI vi_max(VI a, VI b) { return SEL(VI, a > b, a, b); }
IN VI vi_of_v(V x) {
  V c = SEL(V, x == x, x, (V){});
  VI r = __builtin_convertvector(SEL(V, c < VF(-2147483648.f), VF(-2147483648.f), SEL(V, c > VF(2147483520.f), (V){}, c)), VI);
  return SEL(VI, c > VF(2147483520.f), VN(INT32_MAX), r);
}
#endif
/* The larger (smaller) of two, the second where the first is NaN: what x86 has an instruction for. */
#ifndef HAVE_LARGER
IN V v_larger(V a, V b) { return SEL(V, a > b, a, b); }
IN V v_smaller(V a, V b) { return SEL(V, a < b, a, b); }
IN uint32_t v_below(V a, V b) {
  VI m = (VI)(a < b);
  int64_t any = 0, half[LANES / 2];
  memcpy(half, &m, sizeof m);
  for (int l = 0; l < LANES / 2; l++) any |= half[l];
  uint32_t bits = 0;
  if (any) EACH bits |= (uint32_t)(m[l] & 1) << l;
  return bits;
}
#endif
IN VI vi_larger(VI a, VI b) { return SEL(VI, a > b, a, b); }
IN VI vi_smaller(VI a, VI b) { return SEL(VI, a < b, a, b); }

/* exp to 1 ulp: x = n ln 2 + f, a polynomial in f (its own error is 3e-9 at most), times 2^n. */
#ifdef HAVE_SCALE
IN V v_exp(V x) {
  x = v_smaller(VF(89.f), v_larger(VF(-104.5f), x)); /* keeps infinities out; NaN stays */
  V t = x * 1.44269504f + 12582912.f, n = t - 12582912.f;
  V f = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  V p = f * 1.3814599e-3f + 8.368717e-3f; p = p * f + 4.166839e-2f; p = p * f + 1.6666521e-1f;
  p = p * f + 0.49999994f; p = p * (f * f) + (f + 1.f);
  return v_scale(p, n);
}
#else
/* n stands in the low bits of the rounded product, ready to be shifted into the exponent. Below -87.34 it gives 0 (no
 * denormals), above 88.72 infinity; NaN stays NaN through the polynomial. */
IN V v_exp(V x) {
  V t = x * 1.44269504f + 12582912.f, n = t - 12582912.f;
  V f = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  V p = f * 1.3814599e-3f + 8.368717e-3f; p = p * f + 4.166839e-2f; p = p * f + 1.6666521e-1f;
  p = p * f + 0.49999994f; p = p * (f * f) + (f + 1.f);
  V y = (V)((VI)p + ((VI)t << 23));
  y = SEL(V, x < VF(-87.33654f), (V){}, y);
  return SEL(V, x > VF(88.72283f), VF(INFINITY), y);
}
#endif
/* 2^x to 1 ulp: a polynomial in what x leaves beside the nearest whole number, which is 0 for infinities and NaN for NaN. */
#if defined(HAVE_SCALE) && defined(__AVX512DQ__)
#define WHOLE(x) ((V)__builtin_ia32_rndscaleps_mask((V64)(x), 8, (V64){}, -1, 4))
#define LEFT(x) ((V)__builtin_ia32_reduceps512_mask((V64)(x), 8, (V64){}, -1))
#define TIMES(p, x) v_scale(p, WHOLE(x))
#else
/* Below -126 it gives 0 (no denormals), from 128 on infinity. */
#define LEFT(x) ((x) - (((x) + 12582912.f) - 12582912.f))
#define TIMES(p, x) ({ V y_ = (V)((VI)(p) + ((VI)((x) + 12582912.f) << 23)); \
  y_ = SEL(V, (x) < VF(-126.f), (V){}, y_); SEL(V, (x) >= VF(128.f), VF(INFINITY), y_); })
#endif
IN V v_exp2(V x) {
  V f = LEFT(x), p = f * 1.5353362e-4f + 1.3398875e-3f; p = p * f + 9.61843692e-3f; p = p * f + 5.55033237e-2f;
  p = p * f + 2.40226477e-1f; p = p * f + 6.93147182e-1f; p = p * f + 1.f;
  return TIMES(p, x);
}
/* log to 1 ulp, after Cephes; 0 gives -inf, below it NaN. Denormals are scaled up first. */
IN V v_log(V x) {
  VI tiny = x < VF(1.17549435e-38f);
  V s = SEL(V, tiny, x * 8388608.f, x);
  VI i = (VI)s, e = (VI)((VU)i >> 23) - 126;
  V m = (V)((i & 0x7fffff) | 0x3f000000), k = __builtin_convertvector(e - (tiny & 23), V);
  VI low = m < VF(0.707106781f);
  k = k - SEL(V, low, VF(1.f), (V){}); m = m - 1.f + SEL(V, low, m, (V){});
  V z = m * m, p = m * 7.0376836292e-2f - 1.1514610310e-1f;
  p = p * m + 1.1676998740e-1f; p = p * m - 1.2420140846e-1f; p = p * m + 1.4249322787e-1f;
  p = p * m - 1.6668057665e-1f; p = p * m + 2.0000714765e-1f; p = p * m - 2.4999993993e-1f;
  p = p * m + 3.3333331174e-1f; p = p * m * z + k * -2.12194440e-4f - z * 0.5f;
  V y = m + p + k * 0.693359375f;
  y = SEL(V, x == (V){}, VF(-INFINITY), y); y = SEL(V, x < (V){}, VF(NAN), y);
  y = SEL(V, x == VF(INFINITY), x, y); return SEL(V, x == x, y, x);
}
/* erf to 2 ulp: an odd rational function up to where it is 1 in float32 (Eigen, XLA). */
IN V v_erf(V x) {
  x = v_smaller(VF(3.8325069f), v_larger(VF(-3.8325069f), x));
  V z = x * x, p = z * 2.2905065861e-4f + 3.4082910107e-3f, q = z * -1.1791602954e-7f + 2.3547966471e-5f;
  p = p * z + 5.0955695062e-2f; p = p * z + 1.8520832240e-1f; p = p * z + 1.1283791435f;
  q = q * z + 1.0179625279e-3f; q = q * z + 1.4070470171e-2f; q = q * z + 1.1098505178e-1f;
  q = q * z + 4.9746925110e-1f; q = q * z + 1.f;
  return x * p / q;
}
IN V v_sigmoid(V x) { return 1.f / (1.f + v_exp(-x)); }
/* Near 0 the quotient loses digits: there a polynomial (Cephes). */
IN V v_tanh(V x) {
  V a = v_abs(x), z = x * x, e = v_exp(a + a), big = 1.f - 2.f / (e + 1.f);
  V p = z * -5.70498872745e-3f + 2.06390887954e-2f; p = p * z - 5.37397155531e-2f;
  p = p * z + 1.33314422036e-1f; p = p * z - 3.33332819422e-1f;
  return SEL(V, a < VF(0.625f), x * z * p + x, SEL(V, x < (V){}, -big, big));
}
/* Lanes joined into one number, halving. */
#define ACROSS(name, T, E, join) IN E name(T a) { \
  for (int w = LANES / 2; w; w /= 2) for (int l = 0; l < w; l++) { E x = a[l], y = a[l + w]; a[l] = join; } return a[0]; }
ACROSS(v_across_sum, V, float, x + y) ACROSS(v_across_prod, V, float, x * y)
ACROSS(v_across_max, V, float, y > x ? y : x) ACROSS(v_across_min, V, float, y < x ? y : x)
ACROSS(vi_across_sum, VI, int32_t, x + y) ACROSS(vi_across_prod, VI, int32_t, x * y)
ACROSS(vi_across_max, VI, int32_t, y > x ? y : x) ACROSS(vi_across_min, VI, int32_t, y < x ? y : x)
ACROSS(vi_across_any, VI, int32_t, x | y) ACROSS(vi_across_all, VI, int32_t, x & y)
/* Reads. f32 and i32 lanes lie ready; narrow types are widened lane by lane. */
#define GET_f32(x) (x)
#define GET_i32(x) (x)
#define GET_i8(x) (x)
#define GET_f16(x) f_of_f16(x)
#define GET_bf16(x) f_of_bf16(x)
/* Pairs, such as coordinates: two vectors that end where the last element that is wanted does, and a shuffle. */
#ifdef __clang__
#define HAVE_PAIRS 0
#define every_other(p) ((V){})
#else
#define HAVE_PAIRS 1
IN V every_other(const float *p) {
  VI at; EACH at[l] = 2 * l < LANES ? 2 * l : 2 * l + 1;
  return __builtin_shuffle(*(const V *)p, *(const V *)(p + LANES - 1), at);
}
#endif
#define READS(d, E, T) \
  IN T plain_##d(const E *p) { T r; if (sizeof(E) == 4) { memcpy(&r, p, sizeof r); } else { EACH r[l] = GET_##d(p[l]); } return r; } \
  IN T strided_##d(const E *p, int64_t s) { \
    if (HAVE_PAIRS && __builtin_constant_p(s) && s == 2 && sizeof(E) == 4) return (T)every_other((const float *)p); \
    T r; EACH r[l] = GET_##d(p[l * s]); return r; } \
  IN T guarded_##d(const E *p, int64_t i, int64_t n) { \
    if (i >= 0 && i + LANES <= n) return plain_##d(p + i); \
    T r; EACH r[l] = GET_##d(p[p_max(p_min(i + l, n - 1), 0)]); return r; } \
  IN T reversed_##d(const E *p, int64_t i, int64_t n) { \
    T r, f; \
    if (i < n && i >= LANES - 1) { f = plain_##d(p + i - LANES + 1); EACH r[l] = f[LANES - 1 - l]; return r; } \
    EACH r[l] = GET_##d(p[p_max(p_min(i - l, n - 1), 0)]); return r; }
READS(f32, float, V) READS(i32, int32_t, VI) READS(i8, int8_t, VI) READS(f16, uint16_t, V) READS(bf16, uint16_t, V)
#endif

/* to[c * to_row + r] = from[r * from_row + c]: whole squares of vectors in registers, the rest one by one. */
#if LANES > 1 && !defined(__clang__)
IN void turn_square(float *to, int64_t to_row, const float *from, int64_t from_row) {
  V v[LANES];
#pragma GCC unroll 16
  for (int r = 0; r < LANES; r++) v[r] = *(const V *)(from + r * from_row);
#pragma GCC unroll 4
  for (int step = LANES / 2; step; step /= 2) {
    VI low, high;
    EACH low[l] = l & step ? LANES + l - step : l;
    EACH high[l] = l & step ? LANES + l : l + step;
#pragma GCC unroll 16
    for (int r = 0; r < LANES; r++) if (!(r & step)) {
      V a = v[r], b = v[r + step];
      v[r] = __builtin_shuffle(a, b, low); v[r + step] = __builtin_shuffle(a, b, high);
    }
  }
#pragma GCC unroll 16
  for (int c = 0; c < LANES; c++) *(V *)(to + c * to_row) = v[c];
}
#endif
static __attribute__((noinline, unused)) void turned_f32(float *restrict to, int64_t to_row, const float *restrict from,
                                                         int64_t from_row, int64_t rows, int64_t columns) {
  int64_t r = 0;
#if LANES > 1 && !defined(__clang__)
  for (; r + LANES <= rows; r += LANES) {
    int64_t c = 0;
    for (; c + LANES <= columns; c += LANES) turn_square(to + c * to_row + r, to_row, from + r * from_row + c, from_row);
    for (; c < columns; c++) EACH to[c * to_row + r + l] = from[(r + l) * from_row + c];
  }
#endif
  for (int64_t b = 0; b < columns; b += 16) for (int64_t q = r; q < rows; q++)
    for (int64_t c = b; c < p_min(b + 16, columns); c++) to[c * to_row + q] = from[q * from_row + c];
}

/* A short sorted list of the smallest `-s`. Only where a lane of a vector is below the last of the list is it looked at. */
IN void rank_one(float *best, int32_t *place, int n, float x, int32_t at) {
  int k = n - 1;
  for (; k > 0 && best[k - 1] > x; k--) { best[k] = best[k - 1]; place[k] = place[k - 1]; }
  best[k] = x; place[k] = at;
}
#if LANES > 1
/* Each lane moved one place up, with the lowest (-1) in front. */
#ifdef __clang__
IN V v_after(V a) { V r; EACH r[l] = l ? a[l - 1] : -INFINITY; return r; }
IN VI vi_after(VI a) { VI r; EACH r[l] = l ? a[l - 1] : -1; return r; }
#else
IN V v_after(V a) { VI m; EACH m[l] = l ? l - 1 : LANES; return __builtin_shuffle(a, VF(-INFINITY), m); }
IN VI vi_after(VI a) { VI m; EACH m[l] = l ? l - 1 : LANES; return __builtin_shuffle(a, VN(-1), m); }
#endif
/* The list in a register: each place takes the smaller of what it holds and the larger of its neighbour and the new one. */
IN int64_t rank_vector(float *best, int32_t *place, int n, const float *s, int64_t count, int64_t first) {
  V b; VI w;
  EACH { b[l] = l < n ? best[l] : INFINITY; w[l] = l < n ? place[l] : -1; }
  float limit = best[n - 1];
  int64_t u = 0;
  if (limit == INFINITY && count >= 8 * LANES) {
    /* Into an empty list nearly all would go. The n-th smallest of the lanes' smallest bounds it: n scores are not above. */
    V low = VF(INFINITY);
    for (; u + LANES <= count; u += LANES) low = v_smaller(-*(const V *)(s + u), low);
    V sorted = VF(INFINITY);
    for (int o = 0; o < LANES; o++) sorted = v_smaller(sorted, v_larger(v_after(sorted), VF(low[o])));
    limit = nextafterf(sorted[n - 1], INFINITY);
  }
  for (u = 0; u + LANES <= count; u += LANES) {
    uint32_t hits = v_below(-*(const V *)(s + u), VF(limit));
    for (; hits; hits &= hits - 1) {
      int at = __builtin_ctz(hits);
      float x = -s[u + at];
      V low = v_after(b); VI before = vi_after(w);
      VI later = b > VF(x), moved = low > VF(x);
      w = SEL(VI, later, SEL(VI, moved, before, VN(first + u + at)), w);
      b = SEL(V, later, SEL(V, moved, low, VF(x)), b);
      limit = limit < b[n - 1] ? limit : b[n - 1];
    }
  }
  for (int l = 0; l < n; l++) { best[l] = b[l]; place[l] = w[l]; }
  return u;
}
#endif
static __attribute__((noinline, unused)) void rank(float *best, int32_t *place, int n, const float *s, int64_t count, int64_t first) {
  int64_t u = 0;
#if LANES > 1
  if (n <= LANES) u = rank_vector(best, place, n, s, count, first);
  else
    for (; u + LANES <= count; u += LANES) {
      uint32_t hits = v_below(-*(const V *)(s + u), VF(best[n - 1]));
      for (; hits; hits &= hits - 1) {
        float x = -s[u + __builtin_ctz(hits)];
        if (x < best[n - 1]) rank_one(best, place, n, x, (int32_t)(first + u + __builtin_ctz(hits)));
      }
    }
#endif
  for (; u < count; u++) if (-s[u] < best[n - 1]) rank_one(best, place, n, -s[u], (int32_t)(first + u));
}
