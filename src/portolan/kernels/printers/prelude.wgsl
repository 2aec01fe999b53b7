// What all kernels share. WGSL has no word for infinity: its bits come with the sizes, so that no compiler folds them.
var<private> INFINITY: f32;
var<private> NAN: f32;
fn is_nan(x: f32) -> bool { return (bitcast<u32>(x) & 0x7fffffffu) > 0x7f800000u; }
fn p_floordiv(a: i32, b: i32) -> i32 {
  if (b == 0) { return 0; }
  let q = a / b;
  return q - select(0, 1, a % b != 0 && (a < 0) != (b < 0));
}
fn p_mod(a: i32, b: i32) -> i32 {
  if (b == 0) { return 0; }
  let r = a % b;
  return select(r, r + b, r != 0 && (r < 0) != (b < 0));
}
fn p_int(x: f32) -> i32 {
  if (is_nan(x)) { return 0; }
  if (x >= 2147483648.0) { return 2147483647; }
  if (x <= -2147483648.0) { return -2147483648; }
  return i32(x);
}
fn f_larger(a: f32, b: f32) -> f32 { return select(b, a, a > b); }
fn f_smaller(a: f32, b: f32) -> f32 { return select(b, a, a < b); }
fn f_max(a: f32, b: f32) -> f32 { return select(b, a, a > b || is_nan(a)); }
fn f_min(a: f32, b: f32) -> f32 { return select(b, a, a < b || is_nan(a)); }
// The built-in functions promise few digits; these give those of C, but for denormals.
fn f_exp(x: f32) -> f32 {
  if (is_nan(x)) { return x; }
  if (x > 88.72283) { return INFINITY; }
  if (x < -87.33654) { return 0.0; }
  let n = floor(x * 1.44269504 + 0.5);
  let f = (x - n * 0.693359375) + n * 2.12194440e-4;
  var p = f * 1.9875691e-4 + 1.3981999e-3;
  p = p * f + 8.3334519e-3; p = p * f + 4.1665796e-2; p = p * f + 1.66666655e-1; p = p * f + 0.5;
  return bitcast<f32>(bitcast<i32>(p * (f * f) + (f + 1.0)) + (i32(n) << 23u));
}
fn f_log(x: f32) -> f32 {
  if (is_nan(x) || x < 0.0) { return NAN; }
  if (x == 0.0) { return -INFINITY; }
  if (bitcast<u32>(x) == 0x7f800000u) { return x; }
  let tiny = x < 1.17549435e-38;
  let i = bitcast<i32>(select(x, x * 8388608.0, tiny));
  var k = f32((i >> 23u) - 126 - select(0, 23, tiny));
  var m = bitcast<f32>((i & 0x7fffff) | 0x3f000000);
  if (m < 0.707106781) { k = k - 1.0; m = m + m; }
  m = m - 1.0;
  let z = m * m;
  var p = m * 7.0376836292e-2 - 1.1514610310e-1;
  p = p * m + 1.1676998740e-1; p = p * m - 1.2420140846e-1; p = p * m + 1.4249322787e-1;
  p = p * m - 1.6668057665e-1; p = p * m + 2.0000714765e-1; p = p * m - 2.4999993993e-1;
  p = p * m + 3.3333331174e-1; p = p * m * z + k * -2.12194440e-4 - z * 0.5;
  return m + p + k * 0.693359375;
}
fn f_sigmoid(x: f32) -> f32 { return 1.0 / (1.0 + f_exp(-x)); }
fn f_tanh(x: f32) -> f32 {
  let z = x * x;
  if (abs(x) < 0.625) {
    var p = z * -5.70498872745e-3 + 2.06390887954e-2; p = p * z - 5.37397155531e-2;
    p = p * z + 1.33314422036e-1; p = p * z - 3.33332819422e-1;
    return x * z * p + x;
  }
  let t = 1.0 - 2.0 / (f_exp(min(abs(x), 20.0) * 2.0) + 1.0);
  return select(t, -t, x < 0.0);
}
// Abramowitz and Stegun 7.1.26: 1.5e-7 of 1.
fn f_erf(x: f32) -> f32 {
  let t = 1.0 / (1.0 + 0.3275911 * abs(x));
  var p = 1.061405429 * t - 1.453152027; p = p * t + 1.421413741; p = p * t - 0.284496736; p = p * t + 0.254829592;
  let y = 1.0 - p * t * f_exp(-x * x);
  return select(y, -y, x < 0.0);
}
// Cephes: a turn in eighths taken off in three parts, then a polynomial of the sine or of the cosine.
fn f_wave(x: f32, quarter: i32) -> f32 {
  let n = floor(abs(x) * 0.636619772 + 0.5);
  let r = ((abs(x) - n * 1.5703125) - n * 4.83751297e-4) - n * 7.54978995489e-8;
  let z = r * r;
  var s = -1.9515295891e-4 * z + 8.3321608736e-3; s = s * z - 1.6666654611e-1; s = s * z * r + r;
  var c = 2.443315711809948e-5 * z - 1.388731625493765e-3; c = c * z + 4.166664568298827e-2;
  c = c * z * z - 0.5 * z + 1.0;
  let q = (i32(n) + quarter) & 3;
  let y = select(s, c, (q & 1) == 1);
  return select(y, -y, q > 1);
}
fn f_sin(x: f32) -> f32 { let y = f_wave(x, 0); return select(y, -y, x < 0.0); }
fn f_cos(x: f32) -> f32 { return f_wave(x, 1); }
fn f_pow(a: f32, b: f32) -> f32 {
  if (b == 0.0) { return 1.0; }
  if (a == 0.0) { return select(INFINITY, 0.0, b > 0.0); }
  let whole = floor(b) == b;
  if (a < 0.0 && !whole) { return NAN; }
  let y = f_exp(b * f_log(abs(a)));
  return select(y, -y, a < 0.0 && (i32(b) & 1) == 1);
}
fn bf16_in(word: u32, o: i32) -> f32 { return bitcast<f32>(select(word << 16u, word & 0xffff0000u, (o & 1) == 1)); }
fn f16_in(word: u32, o: i32) -> f32 {
  let h = (word >> (u32(o & 1) * 16u)) & 0xffffu;
  let s = (h & 0x8000u) << 16u;
  let e = (h >> 10u) & 31u;
  let f = h & 0x3ffu;
  if (e == 0u) { let tiny = f32(f) * 5.9604644775390625e-8; return bitcast<f32>(bitcast<u32>(tiny) | s); }
  if (e == 31u) { return bitcast<f32>(s | 0x7f800000u | (f << 13u)); }
  return bitcast<f32>(s | ((e + 112u) << 23u) | (f << 13u));
}
fn i8_in(word: u32, o: i32) -> i32 { return extractBits(bitcast<i32>(word), u32(o & 3) * 8u, 8u); }
fn bf16_bits(x: f32, o: i32) -> u32 {
  let u = bitcast<u32>(x);
  let r = select((u + 0x7fffu + ((u >> 16u) & 1u)) >> 16u, (u >> 16u) | 64u, is_nan(x));
  return r << (u32(o & 1) * 16u);
}
fn f16_bits(x: f32, o: i32) -> u32 {
  let u = bitcast<u32>(x);
  let s = (u >> 16u) & 0x8000u;
  let a = u & 0x7fffffffu;
  var r = s | ((a - 0x38000000u + 0xfffu + ((a >> 13u) & 1u)) >> 13u);
  if (a < 0x38800000u) { r = s | (bitcast<u32>(bitcast<f32>(a) + 0.5) - 0x3f000000u); }
  if (a >= 0x477ff000u) { r = s | 0x7c00u; }
  if (a > 0x7f800000u) { r = s | 0x7e00u; }
  return r << (u32(o & 1) * 16u);
}
fn i8_bits(x: i32, o: i32) -> u32 { return (u32(x) & 0xffu) << (u32(o & 3) * 8u); }
