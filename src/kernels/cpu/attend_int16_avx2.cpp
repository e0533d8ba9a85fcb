// Attention in 16-bit integers for processors with AVX2 and no bf16 products: a multiply-add of integer pairs does
// twice the work of one in float32, and its addition runs on other units.
//
// Every row of Q and K and every row of V has its own scale. The weights of a key tile take V's scales in and are then
// scaled by their largest, lane by lane, so that a tile of small weights loses nothing against one of large ones.
// Softmax and the sums over tiles stay in float32. Two neighbours of the dimension that a product sums over share 32
// bits, the first in the low half, as in attend_bf16.h.
#include "kernels/cpu/attend_rows.h"

namespace winnow::cpu {
namespace {

constexpr int32_t kValueLimit = 4095;   // of V
constexpr int32_t kWeightLimit = 8000;  // with which kTileSlots products of the two still fit 31 bits
static_assert(int64_t{kValueLimit} * kWeightLimit * kTileSlots <= INT32_MAX);

/// Largest integer of Q and K for which a sum of `dim` products fits 31 bits.
inline float key_limit(int32_t dim) {
  constexpr float kMost = 8191;
  const float limit = __builtin_floorf(__builtin_sqrtf(2147483000.0F / static_cast<float>(dim)));
  return limit < kMost ? limit : kMost;
}

inline Ints round_to_ints(Floats v) {
  return reinterpret_cast<Ints>(_mm256_cvtps_epi32(v));
}

inline Ints add_products(Ints sum, Ints pairs, Ints lanes) {
  return sum +
         reinterpret_cast<Ints>(_mm256_madd_epi16(reinterpret_cast<__m256i>(pairs), reinterpret_cast<__m256i>(lanes)));
}

inline Ints pair_up(Ints low, Ints high) {
  return (low & 0xffff) | (high << 16);
}

/// The largest magnitude of values [dim].
inline float largest_of(const float* values, int32_t dim) {
  Floats largest{};
  for (int32_t d = 0; d < dim; d += kLanes) {
    const Floats v = cpu::load(values + d);
    largest = max(largest, max(v, -v));
  }
  return max_lanes(largest);
}

/// Rounds values [dim] to integers up to `limit` and returns what one unit is worth.
inline float quantize(const float* values, int32_t dim, float limit, int32_t* to) {
  const float most = largest_of(values, dim);
  const float inverse = most > 0 ? limit / most : 0;
  for (int32_t d = 0; d < dim; d += kLanes) store(to + d, round_to_ints(cpu::load(values + d) * inverse));
  return most / limit;
}

/// K: rows of [dim] 16-bit integers and the row's scale. V: pairs of slots [slot / 2]: [dim] pairs and the two scales.
/// Head sizes are multiples of 8, the lanes.
struct MathInt16 {
  struct Session {};  // nothing to set up
  static constexpr Type kProduct = Type::f32;
  static constexpr int kValueSlots = 2;  // that share a row of unpacked V
  static constexpr int kStep = 6;        // with two vectors each, two of the lanes, one of pairs and one of products

  static int64_t key_bytes(int32_t dim) { return int64_t{2} * dim + 4; }
  static int64_t pair_bytes(int32_t dim) { return int64_t{4} * dim + 8; }
  static size_t query_bytes(int32_t dim) { return size_t{2} * kPanel * static_cast<size_t>(dim + 2); }
  static size_t result_dim(int32_t dim) { return static_cast<size_t>(dim); }
  static size_t kv_bytes(int32_t n_slots, int32_t dim) {
    return static_cast<size_t>(n_slots) * static_cast<size_t>(key_bytes(dim));
  }

  static void unpack_k(const std::byte* from, Type type, int32_t block, int32_t n_rows, const UnpackedKv& to) {
    const int32_t dim = to.head_dim;
    std::byte* at = to.k + int64_t{block} * kBlockSlots * key_bytes(dim);
    with_codec(type, [&](auto codec) {
      using Codec = decltype(codec);
      alignas(64) float values[kMostDim];
      alignas(64) int32_t ints[kMostDim];
      for (int32_t row = 0; row < n_rows; ++row, at += key_bytes(dim)) {
        unpack_row<Codec>(from + row * Codec::row_bytes(dim), dim, values);
        const float scale = quantize(values, dim, key_limit(dim), ints);
        for (int32_t d = 0; d < dim; d += kLanes) {
          const auto all = _mm256_packs_epi32(reinterpret_cast<__m256i>(cpu::load(ints + d)), __m256i{});
          const __m128i eight = _mm256_castsi256_si128(_mm256_permute4x64_epi64(all, 0x08));
          __builtin_memcpy(at + int64_t{2} * d, &eight, sizeof(eight));
        }
        __builtin_memcpy(at + int64_t{2} * dim, &scale, sizeof(scale));
      }
    });
  }

  static void unpack_v(const std::byte* from, Type type, int32_t block, int32_t n_rows, const UnpackedKv& to) {
    const int32_t dim = to.head_dim;
    std::byte* at = to.v + int64_t{block} * kBlockSlots / 2 * pair_bytes(dim);
    with_codec(type, [&](auto codec) {
      using Codec = decltype(codec);
      alignas(64) float values[kMostDim];
      alignas(64) int32_t ints[2][kMostDim];
      for (int32_t row = 0; row < n_rows; row += 2, at += pair_bytes(dim)) {
        float scale[2] = {};
        for (int32_t i = 0; i < 2; ++i) {
          // An absent second row has weight 0; any numbers will do.
          unpack_row<Codec>(from + smaller(row + i, n_rows - 1) * Codec::row_bytes(dim), dim, values);
          scale[i] = quantize(values, dim, kValueLimit, ints[i]);
        }
        for (int32_t d = 0; d < dim; d += kLanes) {
          const Ints pairs = pair_up(cpu::load(ints[0] + d), cpu::load(ints[1] + d));
          __builtin_memcpy(at + int64_t{4} * d, &pairs, sizeof(pairs));
        }
        __builtin_memcpy(at + int64_t{4} * dim, scale, sizeof(scale));
      }
    });
  }

  static void gather(const UnpackedKv& from, const int32_t* slot, int32_t n, const UnpackedKv& to) {
    const int32_t dim = from.head_dim;
    const auto bytes = static_cast<size_t>(key_bytes(dim));
    const auto value = [dim](std::byte* v, int32_t i, int32_t d) {
      return v + i / 2 * pair_bytes(dim) + d * 4 + i % 2 * 2;
    };
    const auto scale = [dim](std::byte* v, int32_t i) { return v + i / 2 * pair_bytes(dim) + dim * 4 + i % 2 * 4; };
    for (int32_t i = 0; i < n + n % 2; ++i) {
      const int32_t at = slot[smaller(i, n - 1)];
      __builtin_memcpy(to.k + static_cast<size_t>(i) * bytes, from.k + static_cast<size_t>(at) * bytes, bytes);
      for (int32_t d = 0; d < dim; ++d) __builtin_memcpy(value(to.v, i, d), value(from.v, at, d), 2);
      __builtin_memcpy(scale(to.v, i), scale(from.v, at), 4);
    }
  }

  /// -> [dim / 2][kPanel] pairs, then [kPanel] what a unit of each lane is worth.
  static void pack_query(const float* q, int64_t stride, int32_t n_rows, int32_t dim, float factor, std::byte* to) {
    auto* pairs = reinterpret_cast<int32_t*>(to);
    auto* scale = reinterpret_cast<float*>(pairs + dim / 2 * kPanel);
    alignas(64) float inverse[kPanel] = {};
    for (int32_t lane = 0; lane < kPanel; ++lane) {
      const float most = lane < n_rows ? largest_of(q + lane * stride, dim) : 0;
      inverse[lane] = most > 0 ? key_limit(dim) / most : 0;
      scale[lane] = most / key_limit(dim) * factor;
    }
    alignas(64) float values[kLanes * kPanel];
    for (int32_t begin = 0; begin < dim; begin += kLanes) {
      transpose_panel(q + begin, stride, n_rows, kLanes, 1, values);
      for (int32_t at = 0; at < kLanes * kPanel; at += 2 * kPanel) {
        for (int32_t lane = 0; lane < kPanel; lane += kLanes) {
          const auto ints = [&](int32_t i) {
            return round_to_ints(cpu::load(values + i + lane) * cpu::load(inverse + lane));
          };
          store(pairs + begin / 2 * kPanel + at / 2 + lane, pair_up(ints(at), ints(at + kPanel)));
        }
      }
    }
  }

  static void scores(const std::byte* q, const Keys& keys, float* s, Fetches& fetch) {
    const auto* panel = reinterpret_cast<const int32_t*>(q);
    const int32_t n_pairs = keys.dim / 2;
    const auto* q_scale = reinterpret_cast<const float*>(panel + n_pairs * kPanel);
    const int64_t stride = key_bytes(keys.dim) / 4;
    const int32_t* rows = reinterpret_cast<const int32_t*>(keys.rows) + (keys.row + keys.from) * stride;
    each_piece<kStep>(keys.to - keys.from, [&](int32_t begin, auto size) {
      constexpr int kSize = decltype(size)::value;
      fetch.lines();
      const int32_t* first = rows + begin * stride;
      Ints sum[kSize][2] = {};
      for (int32_t d = 0; d < n_pairs; ++d) {
        const Ints q0 = cpu::load(panel + d * kPanel);
        const Ints q1 = cpu::load(panel + d * kPanel + kLanes);
        WINNOW_UNROLL
        for (int i = 0; i < kSize; ++i) {
          const Ints pair = broadcast(first[i * stride + d]);
          sum[i][0] = add_products(sum[i][0], pair, q0);
          sum[i][1] = add_products(sum[i][1], pair, q1);
        }
      }
      float* out = s + (keys.from + begin) * kPanel;
      WINNOW_UNROLL
      for (int i = 0; i < kSize; ++i) {
        float scale = 0;
        __builtin_memcpy(&scale, first + i * stride + n_pairs, sizeof(scale));
        for (int v = 0; v < 2; ++v) {
          const Floats unit = cpu::load(q_scale + v * kLanes) * scale;
          cpu::store(out + i * kPanel + v * kLanes, __builtin_convertvector(sum[i][v], Floats) * unit);
        }
      }
    });
  }

  static void values(const Keys& keys, const float* p, const Results& results, Fetches& fetch) {
    // Tiles may begin at an odd slot; the slots that complete the first and the last pair get weight 0.
    alignas(64) int32_t weights[(kTileSlots / 2 + 1) * kPanel];
    alignas(64) float unit[kPanel];
    const int32_t dim = keys.dim;
    const int32_t first = (keys.row + keys.from) / 2;
    const int32_t n_pairs = (keys.row + keys.to + 1) / 2 - first;
    const int64_t stride = pair_bytes(dim) / 4;
    const int32_t* pairs = reinterpret_cast<const int32_t*>(keys.rows) + first * stride;
    pack_weights(p, 2 * first - keys.row, keys.from, keys.to, pairs + dim, stride, n_pairs, weights, unit);
    each_piece<kStep>(dim, [&](int32_t begin, auto size) {
      constexpr int kSize = decltype(size)::value;
      fetch.lines();
      Ints sum[kSize][2] = {};
      for (int32_t pair = 0; pair < n_pairs; ++pair) {
        const Ints p0 = cpu::load(weights + pair * kPanel);
        const Ints p1 = cpu::load(weights + pair * kPanel + kLanes);
        const int32_t* value = pairs + pair * stride + begin;
        WINNOW_UNROLL
        for (int i = 0; i < kSize; ++i) {
          const Ints both = broadcast(value[i]);
          sum[i][0] = add_products(sum[i][0], both, p0);
          sum[i][1] = add_products(sum[i][1], both, p1);
        }
      }
      float* out = results.o + begin * kPanel;
      WINNOW_UNROLL
      for (int i = 0; i < kSize; ++i) {
        for (int half = 0; half < 2; ++half) {
          float* at = out + i * kPanel + half * kLanes;
          Floats before = results.fresh ? Floats{} : cpu::load(at);
          if (results.shrink != nullptr) before *= cpu::load(results.shrink + half * kLanes);
          cpu::store(at, before + __builtin_convertvector(sum[i][half], Floats) * cpu::load(unit + half * kLanes));
        }
      }
    });
  }

  /// Weights times V's scales as integers, in pairs of which the first slot is `start` in the tile's counting; `unit`
  /// is what one of each lane is worth.
  static void pack_weights(const float* p, int32_t start, int32_t from, int32_t to, const int32_t* scales,
                           int64_t stride, int32_t n_pairs, int32_t* weights, float* unit) {
    float scale[kTileSlots];
    for (int32_t i = from; i < to; ++i) {
      __builtin_memcpy(&scale[i], scales + (i - start) / 2 * stride + (i - start) % 2, sizeof(float));
    }
    for (int32_t lane = 0; lane < kPanel; lane += kLanes) {
      Floats largest = broadcast(1e-30F);  // keeps lanes without weight from dividing by 0
      for (int32_t i = from; i < to; ++i) largest = max(largest, cpu::load(p + i * kPanel + lane) * scale[i]);
      cpu::store(unit + lane, largest / kWeightLimit);
      const Floats inverse = kWeightLimit / largest;
      const auto weight = [&](int32_t i) {
        return i >= from && i < to ? round_to_ints(cpu::load(p + i * kPanel + lane) * (inverse * scale[i])) : Ints{};
      };
      for (int32_t pair = 0; pair < n_pairs; ++pair) {
        store(weights + pair * kPanel + lane, pair_up(weight(start + 2 * pair), weight(start + 2 * pair + 1)));
      }
    }
  }
};

}  // namespace

constinit const AttendKernel kAttendInt16 =
    make_kernel<MathInt16, FloatRows, MathF32>("avx2_int16", [](const CpuFeatures& features) { return features.avx2; });

}  // namespace winnow::cpu
