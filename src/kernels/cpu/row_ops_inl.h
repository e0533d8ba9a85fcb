// Bodies of RowOps, included once for each instruction set with WINNOW_VECTOR_BYTES and WINNOW_ROW_OPS (the table's
// name) defined. Loops run over whole vectors, then once more over a padded copy of the rest.

#include "kernels/cpu/row_ops.h"

namespace winnow {
namespace {

#include "kernels/cpu/vec_inl.h"

// The last n < kLanes values as a vector, zeros behind them.
inline Vec load_part(const float* from, int64_t n) {
  Vec v{};
  __builtin_memcpy(&v, from, static_cast<size_t>(n) * sizeof(float));
  return v;
}

inline void store_part(float* to, Vec v, int64_t n) {
  __builtin_memcpy(to, &v, static_cast<size_t>(n) * sizeof(float));
}

// y[i] = f(a[i], b[i]) for i < n.
template <typename F>
inline void for_lanes(const float* a, const float* b, int64_t n, float* y, F f) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(y + i, f(load(a + i), load(b + i)));
  if (i < n) store_part(y + i, f(load_part(a + i, n - i), load_part(b + i, n - i)), n - i);
}

inline Vec sigmoid(Vec x) {
  return 1.0F / (1.0F + exp_lanes(-x));
}

void rms_norm(const float* x, const float* weight, float eps, int64_t n, float* y) {
  Vec sums[4] = {};
  int64_t i = 0;
  for (; i + 4 * kLanes <= n; i += 4 * kLanes) {
    for (int k = 0; k < 4; ++k) {
      const Vec v = load(x + i + k * kLanes);
      sums[k] += v * v;
    }
  }
  float sum = sum_lanes((sums[0] + sums[1]) + (sums[2] + sums[3]));
  for (; i < n; ++i) sum += x[i] * x[i];
  const float scale = 1.0F / __builtin_sqrtf(sum / static_cast<float>(n) + eps);
  for_lanes(x, weight, n, y, [scale](Vec a, Vec w) { return a * scale * w; });
}

void silu_gated(const float* x, const float* up, int64_t n, float* y) {
  for_lanes(x, up, n, y, [](Vec a, Vec u) { return a * sigmoid(a) * u; });
}

void gelu_gated(const float* x, const float* up, int64_t n, float* y) {
  constexpr float kTwice = 1.5957691216F;  // 2 sqrt(2 / pi), as (1 + tanh(z)) / 2 = sigmoid(2 z)
  for_lanes(x, up, n, y, [](Vec a, Vec u) { return a * sigmoid(kTwice * (a + 0.044715F * a * a * a)) * u; });
}

void add(float* x, const float* y, int64_t n) {
  for_lanes(x, y, n, x, [](Vec a, Vec b) { return a + b; });
}

void scale(float* x, float factor, int64_t n) {
  for_lanes(x, x, n, x, [factor](Vec a, Vec) { return a * factor; });
}

void softcap(float* x, float cap, int64_t n) {
  const float twice = 2.0F / cap;
  for_lanes(x, x, n, x, [twice, cap](Vec a, Vec) { return cap * (2.0F * sigmoid(twice * a) - 1.0F); });
}

void turn(float* a, float* b, const float* cosine, const float* sine, int64_t n) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    const Vec x = load(a + i);
    const Vec y = load(b + i);
    const Vec c = load(cosine + i);
    const Vec s = load(sine + i);
    store(a + i, x * c - y * s);
    store(b + i, x * s + y * c);
  }
  for (; i < n; ++i) {
    const float x = a[i];
    const float y = b[i];
    a[i] = x * cosine[i] - y * sine[i];
    b[i] = x * sine[i] + y * cosine[i];
  }
}

}  // namespace

const RowOps WINNOW_ROW_OPS = {rms_norm, silu_gated, gelu_gated, add, scale, softcap, turn};

}  // namespace winnow
