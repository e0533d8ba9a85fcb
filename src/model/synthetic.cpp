#include "model/synthetic.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <complex>
#include <cstring>
#include <random>
#include <string>

#include "base/error.h"
#include "base/types.h"
#include "model/gguf_writer.h"

namespace winnow {
namespace {

constexpr SyntheticShape kShapes[] = {
    {"llama-3-8b", 32, 4096, 32, 8, 128, 14336, 500'000},
    {"qwen2.5-1.5b", 28, 1536, 12, 2, 128, 8960, 1'000'000},
    {"qwen2.5-0.5b", 24, 896, 14, 2, 64, 4864, 1'000'000},
    {"tiny", 2, 128, 4, 2, 64, 256, 1'000'000},  // tests
};

constexpr int32_t kVocabulary = 4096;
constexpr int32_t kContext = 1 << 22;
constexpr int32_t kColumns = 15;          // tokens 1 to 15
constexpr int32_t kSinkTokens = 4;        // at the beginning of a prompt
constexpr double kKeyBias = 2;            // of every pair but the last two
constexpr double kKeyPlanted = 4;         // size of a planted token's key in its pair
constexpr double kPlanted = 3;            // size of a planted direction; an embedding's random part has size 1
constexpr double kNoise = 0.5;            // deviation of queries and keys
constexpr double kSlowdown = 100;         // of the last two pairs
constexpr double kDistinctBytes = 256e6;  // of layers; far above most processors' caches
constexpr int64_t kBlockValues = 32, kBlockBytes = 34;  // q8_0: a scale in f16, 32 integers of 8 bits
constexpr double kByteDeviation = 73.6;                 // of whole numbers from -127 to 127, all equally likely

/// Weights of a peak over pairs: equal where lowest <= theta <= highest.
struct Range {
  double lowest, highest;
};
constexpr Range kBand = {1.0 / 1024, 1}, kDiagonal = {1.0 / 2048, 1.0 / 8};

class Random {
 public:
  explicit Random(uint64_t seed) : bits_(seed) {}
  uint64_t bits() { return bits_(); }
  double uniform(double low, double high) { return low + (high - low) * static_cast<double>(bits() >> 11) * 0x1p-53; }
  bool chance(double share) { return uniform(0, 1) < share; }
  double sign() { return (bits() & 1U) != 0 ? 1 : -1; }

 private:
  std::mt19937_64 bits_;  // its numbers are the same everywhere, which those of std's distributions are not
};

std::vector<double> weights_of(std::span<const double> frequency, const Range& range) {
  std::vector<double> weights(frequency.size());
  const auto inside = [&](double theta) { return theta >= range.lowest && theta <= range.highest; };
  const auto n = std::count_if(frequency.begin(), frequency.end(), inside);
  for (size_t i = 0; i < weights.size(); ++i) weights[i] = inside(frequency[i]) ? 1.0 / static_cast<double>(n) : 0;
  return weights;
}

/// Heights, weights and distances as one complex number for each pair: kKeyBias * Q_i / sqrt(D).
std::vector<std::complex<double>> peaks(std::span<const double> frequency, const SyntheticHead& head) {
  std::vector<std::complex<double>> sum(frequency.size());
  const auto add = [&](const SyntheticHead::Peak& peak, const std::vector<double>& weights) {
    for (size_t i = 0; i < sum.size(); ++i) {
      sum[i] += std::polar(peak.height * weights[i], -frequency[i] * peak.distance);
    }
  };
  add(head.band, weights_of(frequency, kBand));
  for (const SyntheticHead::Peak& peak : head.diagonals) add(peak, weights_of(frequency, kDiagonal));
  return sum;
}

void put_scale(std::byte* block, double scale) {
  const uint16_t bits = f32_to_f16(static_cast<float>(scale));
  std::memcpy(block, &bits, sizeof(bits));
}

std::vector<std::byte> as_bytes(const std::vector<float>& values) {
  std::vector<std::byte> bytes(values.size() * sizeof(float));
  std::memcpy(bytes.data(), values.data(), bytes.size());
  return bytes;
}

/// A matrix in q8_0. Random at first; single rows can be given.
class Matrix {
 public:
  Matrix(Random& random, int64_t n_out, int64_t n_in, double deviation) : n_in_(n_in) {
    WINNOW_ASSERT(n_in % kBlockValues == 0);
    bytes_.resize(static_cast<size_t>(n_out * n_in / kBlockValues * kBlockBytes));
    for (size_t at = 0; at < bytes_.size(); at += kBlockBytes) {
      put_scale(&bytes_[at], deviation / kByteDeviation);
      for (size_t i = 2; i < kBlockBytes; i += sizeof(uint64_t)) {
        const uint64_t bits = random.bits();
        std::memcpy(&bytes_[at + i], &bits, sizeof(bits));
      }
      // What a quantiser writes is symmetric.
      std::replace(&bytes_[at + 2], &bytes_[at] + kBlockBytes, std::byte{0x80}, std::byte{0});
    }
  }

  void set_row(int64_t row, std::span<const double> values) {
    for (size_t begin = 0; begin < values.size(); begin += kBlockValues) {
      const std::span<const double> part = values.subspan(begin, kBlockValues);
      double largest = 0;
      for (const double value : part) largest = std::max(largest, std::abs(value));
      std::byte* block = block_at(row, static_cast<int64_t>(begin));
      put_scale(block, largest / 127);
      for (size_t i = 0; i < part.size(); ++i) {
        const double step = largest > 0 ? part[i] / largest * 127 : 0;
        block[2 + i] = static_cast<std::byte>(static_cast<int8_t>(std::lround(step)));
      }
    }
  }

  std::vector<double> row(int64_t row) {
    std::vector<double> values;
    for (int64_t begin = 0; begin < n_in_; begin += kBlockValues) {
      const std::byte* block = block_at(row, begin);
      uint16_t bits = 0;
      std::memcpy(&bits, block, sizeof(bits));
      for (int64_t i = 0; i < kBlockValues; ++i) {
        values.push_back(double{f16_to_f32(bits)} * static_cast<int8_t>(block[2 + i]));
      }
    }
    return values;
  }

  std::vector<std::byte> take() { return std::move(bytes_); }

 private:
  std::byte* block_at(int64_t row, int64_t col) {
    return &bytes_[static_cast<size_t>((row * n_in_ + col) / kBlockValues * kBlockBytes)];
  }
  int64_t n_in_;
  std::vector<std::byte> bytes_;
};

class SyntheticModel {
 public:
  explicit SyntheticModel(const SyntheticShape& shape) : s_(shape), frequency_(synthetic_frequencies(shape)) {
    for (std::vector<double>& direction : directions_) {
      for (int32_t i = 0; i < s_.n_embd; ++i) direction.push_back(random_.sign());
    }
  }

  std::vector<std::byte> write() {
    facts();
    add("token_embd.weight", kVocabulary, s_.n_embd, embedding());
    add("output.weight", kVocabulary, s_.n_embd, random_matrix(kVocabulary, s_.n_embd));
    add("output_norm.weight", std::vector<float>(static_cast<size_t>(s_.n_embd), 1));
    std::vector<float> slowdown(frequency_.size(), 1);
    std::fill(slowdown.end() - 2, slowdown.end(), static_cast<float>(kSlowdown));
    add("rope_freqs.weight", slowdown);
    const double layer_bytes =
        static_cast<double>(kBlockBytes) / kBlockValues * s_.n_embd * (2.0 * n_q() + 2.0 * n_kv() + 3.0 * s_.n_ff);
    const int32_t n_distinct = std::max(1, static_cast<int32_t>(kDistinctBytes / layer_bytes));
    for (int32_t layer = 0; layer < s_.n_layer; ++layer) {
      if (layer < n_distinct) {
        matrices(layer);
      } else {
        same_matrices(layer, layer % n_distinct);
      }
      vectors(layer);
    }
    return file_.finish();
  }

 private:
  int32_t n_q() const { return s_.n_head * s_.head_dim; }
  int32_t n_kv() const { return s_.n_head_kv * s_.head_dim; }
  double root() const { return std::sqrt(s_.head_dim); }

  void facts() {
    const auto integer = [this](std::string_view key, int32_t value) {
      file_.integer(fmt::format("qwen2.{}", key), static_cast<uint32_t>(value));
    };
    file_.text("general.architecture", "qwen2");
    file_.text("general.name", fmt::format("{} (random weights)", s_.name));
    integer("block_count", s_.n_layer);
    integer("context_length", kContext);
    integer("embedding_length", s_.n_embd);
    integer("feed_forward_length", s_.n_ff);
    integer("attention.head_count", s_.n_head);
    integer("attention.head_count_kv", s_.n_head_kv);
    integer("attention.key_length", s_.head_dim);
    integer("attention.value_length", s_.head_dim);
    file_.real("qwen2.attention.layer_norm_rms_epsilon", 1e-6F);
    file_.real("qwen2.rope.freq_base", s_.rope_base);
  }

  void add(const std::string& name, int64_t n_out, int64_t n_in, Matrix matrix) {
    file_.tensor(name, {n_out, n_in}, static_cast<int32_t>(Type::q8_0), matrix.take());
  }
  void add(const std::string& name, const std::vector<float>& values) {
    file_.tensor(name, {static_cast<int64_t>(values.size())}, static_cast<int32_t>(Type::f32), as_bytes(values));
  }

  /// Outputs have the deviation `size` where inputs have 1.
  Matrix random_matrix(int64_t n_out, int64_t n_in, double size = 1) {
    return {random_, n_out, n_in, size / std::sqrt(static_cast<double>(n_in))};
  }

  Matrix embedding() {
    const double unit = 8.0 * s_.n_layer;
    Matrix table(random_, kVocabulary, s_.n_embd, unit);
    for (int32_t token = 0; token <= kColumns; ++token) {
      const double angle = 2 * M_PI * token / kColumns;
      std::vector<double> row = table.row(token);
      for (size_t i = 0; i < row.size(); ++i) {
        const double column = directions_[1][i] * std::cos(angle) + directions_[2][i] * std::sin(angle);
        row[i] += unit * kPlanted * (token == 0 ? directions_[0][i] : column);
      }
      table.set_row(token, row);
    }
    return table;
  }

  Matrix key_matrix() {
    Matrix matrix = random_matrix(n_kv(), s_.n_embd, kNoise);
    // norm(x) of a planted token holds kPlanted / sqrt(1 + kPlanted^2) times its vector of signs.
    const double gain = kKeyPlanted * std::sqrt(1 + kPlanted * kPlanted) / (kPlanted * s_.n_embd);
    const int32_t half = s_.head_dim / 2;
    for (int32_t begin = 0; begin < n_kv(); begin += s_.head_dim) {
      const auto map = [&](int32_t value, const std::vector<double>& direction, double factor) {
        std::vector<double> row = direction;
        for (double& entry : row) entry *= factor;
        matrix.set_row(begin + value, row);
      };
      map(half - 2, directions_[1], gain);
      map(half - 1, directions_[0], gain);
      map(2 * half - 2, directions_[2], gain);
      map(2 * half - 1, directions_[0], 0);
    }
    return matrix;
  }

  void matrices(int32_t layer) {
    const std::string at = fmt::format("blk.{}.", layer);
    add(at + "attn_q.weight", n_q(), s_.n_embd, random_matrix(n_q(), s_.n_embd, kNoise));
    add(at + "attn_k.weight", n_kv(), s_.n_embd, key_matrix());
    add(at + "attn_v.weight", n_kv(), s_.n_embd, random_matrix(n_kv(), s_.n_embd));
    add(at + "attn_output.weight", s_.n_embd, n_q(), random_matrix(s_.n_embd, n_q()));
    add(at + "ffn_gate.weight", s_.n_ff, s_.n_embd, random_matrix(s_.n_ff, s_.n_embd));
    add(at + "ffn_up.weight", s_.n_ff, s_.n_embd, random_matrix(s_.n_ff, s_.n_embd));
    add(at + "ffn_down.weight", s_.n_embd, s_.n_ff, random_matrix(s_.n_embd, s_.n_ff));
  }

  void same_matrices(int32_t layer, int32_t other) {
    const auto like = [&](std::string_view name, int64_t n_out, int64_t n_in) {
      file_.tensor_like(fmt::format("blk.{}.{}", layer, name), {n_out, n_in}, static_cast<int32_t>(Type::q8_0),
                        fmt::format("blk.{}.{}", other, name));
    };
    like("attn_q.weight", n_q(), s_.n_embd);
    like("attn_k.weight", n_kv(), s_.n_embd);
    like("attn_v.weight", n_kv(), s_.n_embd);
    like("attn_output.weight", s_.n_embd, n_q());
    like("ffn_gate.weight", s_.n_ff, s_.n_embd);
    like("ffn_up.weight", s_.n_ff, s_.n_embd);
    like("ffn_down.weight", s_.n_embd, s_.n_ff);
  }

  void vectors(int32_t layer) {
    const std::string at = fmt::format("blk.{}.", layer);
    const std::vector<float> ones(static_cast<size_t>(s_.n_embd), 1);
    add(at + "attn_norm.weight", ones);
    add(at + "ffn_norm.weight", ones);
    std::vector<float> q, k;
    for (int32_t head = 0; head < s_.n_head; ++head) append(q, query_bias(synthetic_head(layer, head)));
    std::vector<std::complex<double>> key(frequency_.size(), kKeyBias);
    std::fill(key.end() - 2, key.end(), 0);
    for (int32_t head = 0; head < s_.n_head_kv; ++head) append(k, key);
    add(at + "attn_q.bias", q);
    add(at + "attn_k.bias", k);
    add(at + "attn_v.bias", std::vector<float>(static_cast<size_t>(n_kv())));
  }

  std::vector<std::complex<double>> query_bias(const SyntheticHead& head) const {
    std::vector<std::complex<double>> bias = peaks(frequency_, head);
    for (std::complex<double>& pair : bias) pair *= root() / kKeyBias;
    bias[bias.size() - 2] = std::polar(head.column * root() / kKeyPlanted, double{head.angle});
    bias[bias.size() - 1] = head.sink * root() / kKeyPlanted;
    return bias;
  }

  /// Pairs are (i, i + head_dim / 2).
  static void append(std::vector<float>& to, const std::vector<std::complex<double>>& pairs) {
    for (const std::complex<double>& pair : pairs) to.push_back(static_cast<float>(pair.real()));
    for (const std::complex<double>& pair : pairs) to.push_back(static_cast<float>(pair.imag()));
  }

  SyntheticShape s_;
  std::vector<double> frequency_;  // [head_dim / 2]
  Random random_{1};
  std::array<std::vector<double>, 3> directions_;  // u_0, u_1, u_2 [n_embd]
  GgufWriter file_;
};

}  // namespace

std::span<const SyntheticShape> synthetic_shapes() {
  return kShapes;
}

std::vector<std::byte> synthetic_gguf(const SyntheticShape& shape) {
  return SyntheticModel(shape).write();
}

std::vector<int32_t> synthetic_tokens(int64_t n) {
  constexpr double kClusterShare = 1.0 / 2048, kPlantedShare = 1.0 / 4;
  constexpr int32_t kClusterLength = 32;
  Random random(1);
  std::vector<int32_t> tokens(static_cast<size_t>(std::min<int64_t>(n, kSinkTokens)), 0);
  int32_t left = 0;  // of a cluster
  while (std::ssize(tokens) < n) {
    left = random.chance(kClusterShare) ? kClusterLength : left - 1;
    const bool planted = left > 0 && random.chance(kPlantedShare);
    const double id = planted ? random.uniform(1, kColumns + 1) : random.uniform(kColumns + 1, kVocabulary);
    tokens.push_back(static_cast<int32_t>(id));
  }
  return tokens;
}

SyntheticHead synthetic_head(int32_t layer, int32_t head) {
  constexpr double kFlat = 1.0 / 6, kNearest = 100, kFarthest = 8000;
  Random random(static_cast<uint64_t>(layer) * 1009 + static_cast<uint64_t>(head));
  const auto between = [&](double low, double high) { return static_cast<float>(random.uniform(low, high)); };
  SyntheticHead drawn;
  drawn.flat = random.chance(kFlat);
  if (drawn.flat) {
    drawn.band.height = between(2, 5);
    drawn.sink = between(2, 6);
    return drawn;
  }
  drawn.band.height = between(8, 13);
  drawn.sink = between(7, 14);
  if (random.chance(1.0 / 2)) {
    drawn.column = between(7, 11);
    drawn.angle = between(0, 2 * M_PI);
  }
  if (random.chance(1.0 / 3)) {
    const int n = random.chance(1.0 / 2) ? 2 : 3;
    for (int i = 0; i < n; ++i) {
      const double distance = std::exp(random.uniform(std::log(kNearest), std::log(kFarthest)));
      drawn.diagonals.push_back({static_cast<int32_t>(distance), between(9, 12)});
    }
  }
  return drawn;
}

std::vector<double> synthetic_frequencies(const SyntheticShape& shape) {
  std::vector<double> frequency(static_cast<size_t>(shape.head_dim / 2));
  for (size_t i = 0; i < frequency.size(); ++i) {
    frequency[i] = std::pow(double{shape.rope_base}, -2.0 * static_cast<double>(i) / shape.head_dim);
  }
  for (auto last = frequency.end() - 2; last != frequency.end(); ++last) *last /= kSlowdown;
  return frequency;
}

double synthetic_logit(const SyntheticShape& shape, const SyntheticHead& head, int64_t distance) {
  const std::vector<double> frequency = synthetic_frequencies(shape);
  const std::vector<std::complex<double>> pairs = peaks(frequency, head);
  double logit = 0;
  for (size_t i = 0; i < pairs.size(); ++i) {
    logit += (pairs[i] * std::polar(1.0, frequency[i] * static_cast<double>(distance))).real();
  }
  return logit;
}

}  // namespace winnow
