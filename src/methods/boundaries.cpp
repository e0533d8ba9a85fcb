#include "methods/boundaries.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace winnow {
namespace {

constexpr int32_t kWindow = kBoundaryWindow;
constexpr int32_t kHidden = 256;
constexpr int64_t kPiece = 256;  // gaps that are looked at together
constexpr float kEpsilon = 1e-5F;

struct Linear {
  std::vector<float> weight, bias;  // [n_out, n_in], [n_out]
};

struct Predictor {
  Linear q, k, v, out, hidden, output;
  std::vector<float> norm_weight, norm_bias;

  explicit Predictor(const WeightsFile& file)
      : q(linear(file, "boundary.attn_q")),
        k(linear(file, "boundary.attn_k")),
        v(linear(file, "boundary.attn_v")),
        out(linear(file, "boundary.attn_out")),
        hidden(linear(file, "boundary.hidden")),
        output(linear(file, "boundary.output")),
        norm_weight(file.values("boundary.norm.weight")),
        norm_bias(file.values("boundary.norm.bias")) {}

  static Linear linear(const WeightsFile& file, const std::string& name) {
    return {file.values(name + ".weight"), file.values(name + ".bias")};
  }
};

std::vector<float> apply(Ops& ops, const Linear& linear, const std::vector<float>& x) {
  const size_t n_out = linear.bias.size();
  std::vector<float> y;
  ops.score_blocks(x, linear.weight, static_cast<int32_t>(linear.weight.size() / n_out), 1, y);
  for (size_t i = 0; i < y.size(); ++i) y[i] += linear.bias[i % n_out];
  return y;
}

// Keys of slots [begin, end), all kv heads beside one another. -> [end - begin, C]
std::vector<float> features(const Site& site, int32_t begin, int32_t end) {
  const auto dim = static_cast<size_t>(site.kv.head_dim), n_kv = site.kv.heads.size();
  std::vector<int32_t> slots(static_cast<size_t>(end - begin));
  std::iota(slots.begin(), slots.end(), begin);
  std::vector<float> all(slots.size() * n_kv * dim), keys;
  for (size_t head = 0; head < n_kv; ++head) {
    site.ops.gather_keys(site.kv, static_cast<int32_t>(head), slots, keys);
    for (size_t i = 0; i < slots.size(); ++i) {
      std::copy_n(keys.begin() + static_cast<std::ptrdiff_t>(i * dim), dim,
                  all.begin() + static_cast<std::ptrdiff_t>((i * n_kv + head) * dim));
    }
  }
  return all;
}

// One window's attention of one head among 2 * kWindow rows, `stride` values apart. -> into o, as far apart
void attend(const float* q, const float* k, const float* v, size_t stride, size_t dim, float* o) {
  const float scale = 1 / std::sqrt(static_cast<float>(dim));
  for (size_t i = 0; i < 2 * kWindow; ++i) {
    float p[2 * kWindow], most = -INFINITY, sum = 0;
    for (size_t j = 0; j < 2 * kWindow; ++j) {
      float dot = 0;
      for (size_t d = 0; d < dim; ++d) dot += q[i * stride + d] * k[j * stride + d];
      p[j] = dot * scale;
      most = std::max(most, p[j]);
    }
    for (float& x : p) sum += x = std::exp(x - most);
    float* to = o + i * stride;
    std::fill_n(to, dim, 0.0F);
    for (size_t j = 0; j < 2 * kWindow; ++j) {
      for (size_t d = 0; d < dim; ++d) to[d] += p[j] / sum * v[j * stride + d];
    }
  }
}

void layer_norm(const Predictor& p, float* x) {
  const size_t n = p.norm_weight.size();
  const auto share = 1 / static_cast<float>(n);
  const float mean = std::accumulate(x, x + n, 0.0F) * share;
  float squares = 0;
  for (size_t i = 0; i < n; ++i) squares += (x[i] - mean) * (x[i] - mean);
  const float factor = 1 / std::sqrt(squares * share + kEpsilon);
  for (size_t i = 0; i < n; ++i) x[i] = (x[i] - mean) * factor * p.norm_weight[i] + p.norm_bias[i];
}

// [l, r, |l - r|, l * r, cos(l, r)] of one window's normalised rows [2 * kWindow, n]. -> to [4 * n + 1]
void compare_sides(const float* rows, size_t n, float* to) {
  float* l = to;
  float* r = to + n;
  std::fill_n(to, 2 * n, 0.0F);
  for (size_t i = 0; i < 2 * kWindow; ++i) {
    float* side = i < kWindow ? l : r;
    for (size_t d = 0; d < n; ++d) side[d] += rows[i * n + d] / kWindow;
  }
  float dot = 0, l2 = 0, r2 = 0;
  for (size_t d = 0; d < n; ++d) {
    to[2 * n + d] = std::abs(l[d] - r[d]);
    to[3 * n + d] = l[d] * r[d];
    dot += l[d] * r[d];
    l2 += l[d] * l[d];
    r2 += r[d] * r[d];
  }
  to[4 * n] = dot / std::max(1e-8F, std::sqrt(l2) * std::sqrt(r2));
}

// Logits of the gaps after slots [begin, end), each of which has its whole window.
void predict(const Site& site, const Predictor& p, int32_t n_heads, int32_t begin, int32_t end, float* logits) {
  const std::vector<float> x = features(site, begin - kWindow + 1, end + kWindow);
  const std::vector<float> q = apply(site.ops, p.q, x), k = apply(site.ops, p.k, x), v = apply(site.ops, p.v, x);
  const size_t n = p.norm_weight.size(), dim = n / static_cast<size_t>(n_heads);
  const auto n_gap = static_cast<size_t>(end - begin);
  std::vector<float> o(n_gap * 2 * kWindow * n);
  for (size_t gap = 0; gap < n_gap; ++gap) {
    for (size_t at = 0; at < n; at += dim) {
      const size_t from = gap * n + at;
      attend(q.data() + from, k.data() + from, v.data() + from, n, dim, o.data() + gap * 2 * kWindow * n + at);
    }
  }
  std::vector<float> rows = apply(site.ops, p.out, o), sides(n_gap * (4 * n + 1));
  for (size_t gap = 0; gap < n_gap; ++gap) {
    float* window = rows.data() + gap * 2 * kWindow * n;
    for (size_t i = 0; i < 2 * kWindow; ++i) layer_norm(p, window + i * n);
    compare_sides(window, n, sides.data() + gap * (4 * n + 1));
  }
  std::vector<float> hidden = apply(site.ops, p.hidden, sides);
  for (float& value : hidden) value = std::max(value, 0.0F);
  const std::vector<float> result = apply(site.ops, p.output, hidden);
  std::copy(result.begin(), result.end(), logits);
}

}  // namespace

std::vector<WeightTensor> boundary_weights(const MethodShape& shape) {
  const int64_t n = int64_t{shape.n_head_kv} * shape.head_dim;
  std::vector<WeightTensor> all;
  const auto linear = [&](const std::string& name, int64_t n_out, int64_t n_in, std::string_view meaning) {
    all.push_back({"boundary." + name + ".weight", {n_out, n_in}, meaning, false});
    all.push_back({"boundary." + name + ".bias", {n_out}, "", false});
  };
  linear("attn_q", n, n,
         "attention of the tokens around a gap; a token is its keys of all kv heads, one after another");
  linear("attn_k", n, n, "");
  linear("attn_v", n, n, "");
  linear("attn_out", n, n, "");
  all.push_back({"boundary.norm.weight", {n}, "layer norm of what attention gives", false});
  all.push_back({"boundary.norm.bias", {n}, "", false});
  linear("hidden", kHidden, 4 * n + 1, "from the sides' means l and r: l, r, |l - r|, l * r, cos(l, r); ReLU follows");
  linear("output", 1, kHidden, "the boundary's logit");
  return all;
}

std::vector<float> boundary_logits(const Site& site, const WeightsFile& file, int32_t n_heads) {
  const int32_t n_slots = site.kv.heads.front().n_slots;
  std::vector<float> logits(static_cast<size_t>(n_slots), kNoBoundary);
  const int32_t first = kWindow - 1, n_gap = n_slots - 2 * kWindow + 1;
  if (n_gap <= 0) return logits;
  const Predictor predictor(file);
  site.ops.for_each((n_gap + kPiece - 1) / kPiece, [&](int64_t piece, int) {
    const auto begin = static_cast<int32_t>(first + piece * kPiece);
    const int32_t end = std::min<int32_t>(begin + kPiece, first + n_gap);
    predict(site, predictor, n_heads, begin, end, logits.data() + begin);
  });
  return logits;
}

std::vector<int32_t> pick_boundaries(std::span<const float> logits, const BoundaryRules& rules) {
  const auto n = static_cast<int32_t>(logits.size());
  const int32_t last = n - rules.last_rows;  // no boundary after a slot behind this one
  std::vector<int32_t> candidates;
  for (int32_t j = 0; j < n; ++j) {
    if (double{logits[static_cast<size_t>(j)]} > rules.least && j <= last) candidates.push_back(j);
  }
  if (candidates.empty() && rules.last_rows > 0 && last > 0) return {0, last, n};
  std::stable_sort(candidates.begin(), candidates.end(), [&](int32_t a, int32_t b) {
    return logits[static_cast<size_t>(a)] > logits[static_cast<size_t>(b)];
  });
  if (rules.last_rows > 0) candidates.insert(candidates.begin(), last);
  std::vector<uint8_t> near(logits.size());
  std::vector<int32_t> begins = {0};
  for (const int32_t j : candidates) {
    if (std::ssize(begins) > rules.most) break;
    if (j < 0 || j + 1 >= n || near[static_cast<size_t>(j)] != 0) continue;
    begins.push_back(j + 1);
    const int32_t from = std::max(0, j - rules.apart), to = std::min(n - 1, j + rules.apart);
    std::fill(near.begin() + from, near.begin() + to + 1, uint8_t{1});
  }
  begins.push_back(n);
  std::sort(begins.begin(), begins.end());
  return begins;
}

}  // namespace winnow
