/* Numbers alone, for every language that grew out of C: it has named `place_t`, `IN`, `F_OF_BITS` and `BITS_OF_F`. */
IN place_t p_min(place_t a, place_t b) { return a < b ? a : b; }
IN place_t p_max(place_t a, place_t b) { return a > b ? a : b; }
IN place_t p_floordiv(place_t a, place_t b) { if (!b) return 0; place_t q = a / b; return q - (a % b != 0 && (a < 0) != (b < 0)); }
IN place_t p_mod(place_t a, place_t b) { if (!b) return 0; place_t r = a % b; return r && (r < 0) != (b < 0) ? r + b : r; }
IN place_t p_abs(place_t a) { return a < 0 ? -a : a; }
IN place_t p_int(float x) { return x != x ? 0 : x <= -2147483648.f ? INT32_MIN : x >= 2147483648.f ? INT32_MAX : (place_t)x; }
IN float f_larger(float a, float b) { return a > b ? a : b; }
IN float f_smaller(float a, float b) { return a < b ? a : b; }
IN float f_min(float a, float b) { return a < b || a != a ? a : b; }
IN float f_max(float a, float b) { return a > b || a != a ? a : b; }
/* exp as the vectors of C have it. Inline: a call would put every vector register on the stack. */
IN float f_exp(float x) {
  x = x > -104.5f ? x : x != x ? x : -104.5f; x = x < 89.f ? x : x != x ? x : 89.f;
  float t = x * 1.44269504f + 12582912.f, n = t - 12582912.f;
  float f = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = f * 1.9875691e-4f + 1.3981999e-3f; p = p * f + 8.3334519e-3f; p = p * f + 4.1665796e-2f;
  p = p * f + 1.66666655e-1f; p = p * f + 0.5f; p = p * (f * f) + (f + 1.f);
  int32_t m = x != x ? 0 : (int32_t)n, half_m = m / 2;
  uint32_t a = (uint32_t)(half_m + 127) << 23, b = (uint32_t)(m - half_m + 127) << 23;
  return p * F_OF_BITS(a) * F_OF_BITS(b);
}
IN float f_sigmoid(float x) { return 1.f / (1.f + f_exp(-x)); }
IN float f_of_bf16(uint16_t x) { uint32_t u = (uint32_t)x << 16; return F_OF_BITS(u); }
IN uint16_t bf16_of_f(float x) {
  uint32_t u = BITS_OF_F(x);
  return x != x ? (uint16_t)(u >> 16 | 64) : (uint16_t)((u + 0x7fff + (u >> 16 & 1)) >> 16);
}
/* IEEE half by hand: no target needs a type for it. Denormals and rounding to even are exact. */
IN float f_of_f16(uint16_t h) {
  uint32_t u = (uint32_t)(h & 0x7fff) << 13, s = (uint32_t)(h & 0x8000) << 16;
  float x = F_OF_BITS(u) * 0x1p112f;
  uint32_t r = BITS_OF_F(x) | s;
  if ((h & 0x7c00) == 0x7c00) r = s | 0x7f800000 | (uint32_t)(h & 0x3ff) << 13;
  return F_OF_BITS(r);
}
IN uint16_t f16_of_f(float x) {
  uint32_t u = BITS_OF_F(x), s = u >> 16 & 0x8000, a = u & 0x7fffffff;
  if (a > 0x7f800000) return (uint16_t)(s | 0x7e00);
  if (a >= 0x477ff000) return (uint16_t)(s | 0x7c00);
  if (a < 0x38800000) { float t = F_OF_BITS(a) + 0.5f; return (uint16_t)(s | (BITS_OF_F(t) - 0x3f000000)); }
  return (uint16_t)(s | ((a - 0x38000000 + 0xfff + (a >> 13 & 1)) >> 13));
}
