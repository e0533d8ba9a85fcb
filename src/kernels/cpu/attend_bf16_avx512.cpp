// Attention with AVX-512's bf16 products: twice the rate of float32. Sums, softmax and results stay in float32.
#include "kernels/cpu/attend_bf16.h"
#include "kernels/cpu/attend_vnni.h"

namespace winnow::cpu {
namespace {

/// One dword [pair of values] broadcast and multiplied with 16 lanes' pairs.
inline Floats add_products(Floats sum, int32_t pair, Ints lanes) {
  return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(_mm512_set1_epi32(pair)), reinterpret_cast<__m512bh>(lanes));
}

/// K: rows of bf16 [dim]. V: pairs of slots [slot / 2][dim][2]. Head sizes are even.
struct MathBf16 {
  struct Session {};  // nothing to set up
  static constexpr Type kProduct = Type::bf16;
  static constexpr int kValueSlots = 2;  // that share a row of unpacked V
  static constexpr int kStep = 12;       // with two vectors each, and three more registers
  static constexpr int kSplitStep = 16;  // with one vector each

  static size_t query_bytes(int32_t dim) { return size_t{2} * kPanel * static_cast<size_t>(round_up(dim, 16)); }
  static size_t result_dim(int32_t dim) { return static_cast<size_t>(dim); }
  static size_t kv_bytes(int32_t n_slots, int32_t dim) {
    return size_t{2} * static_cast<size_t>(n_slots) * static_cast<size_t>(dim);
  }

  static void unpack_k(const std::byte* from, Type type, int32_t block, int32_t n_rows, const UnpackedKv& to) {
    const int32_t dim = to.head_dim;
    auto* rows = reinterpret_cast<uint16_t*>(to.k) + int64_t{block} * kBlockSlots * dim;
    with_codec(type, [&](auto codec) {
      using Codec = decltype(codec);
      for (int32_t row = 0; row < n_rows; ++row) {
        unpack_row_bf16<Codec>(from + row * Codec::row_bytes(dim), dim, dim, rows + int64_t{row} * dim);
      }
    });
  }

  static void unpack_v(const std::byte* from, Type type, int32_t block, int32_t n_rows, const UnpackedKv& to) {
    const int32_t dim = to.head_dim;
    auto* pairs = reinterpret_cast<int32_t*>(to.v) + int64_t{block} * kPairs * dim;
    with_codec(type, [&](auto codec) {
      using Codec = decltype(codec);
      for (int32_t row = 0; row < n_rows; row += 2) {
        const std::byte* first = from + row * Codec::row_bytes(dim);
        const std::byte* second = from + smaller(row + 1, n_rows - 1) * Codec::row_bytes(dim);  // absent: weight 0
        int32_t* out = pairs + int64_t{row} / 2 * dim;
        int32_t d = 0;
        for (; d + kLanes <= dim; d += kLanes) store(out + d, pair_bf16(Codec::load(first, d), Codec::load(second, d)));
        if (d == dim) continue;
        const Ints both = pair_bf16(load_tail<Codec>(first, d, dim), load_tail<Codec>(second, d, dim));
        store_some(out + d, both, dim - d);
      }
    });
  }

  static void gather(const UnpackedKv& from, const int32_t* slot, int32_t n, const UnpackedKv& to) {
    const int32_t dim = from.head_dim;
    const auto bytes = size_t{2} * static_cast<size_t>(dim);
    for (int32_t i = 0; i < n; ++i) {
      __builtin_memcpy(to.k + static_cast<size_t>(i) * bytes, from.k + static_cast<size_t>(slot[i]) * bytes, bytes);
    }
    const auto* pairs = reinterpret_cast<const int32_t*>(from.v);
    auto* out = reinterpret_cast<int32_t*>(to.v);
    for (int32_t i = 0; i < n; i += 2, out += dim) {
      const int32_t a = slot[i];
      const int32_t b = slot[smaller(i + 1, n - 1)];  // an absent one gets weight 0
      const int32_t* first = pairs + int64_t{a / 2} * dim;
      const int32_t* second = pairs + int64_t{b / 2} * dim;
      for (int32_t d = 0; d < dim; d += kLanes) {
        const Ints low = load_some(first + d, dim - d) >> (a % 2 * 16);
        const Ints high = load_some(second + d, dim - d) << (16 - b % 2 * 16);
        store_some(out + d, (low & 0xffff) | (high & ~0xffff), dim - d);
      }
    }
  }

  static void pack_query(const float* q, int64_t stride, int32_t n_rows, int32_t dim, float factor, std::byte* to) {
    pack_query_pairs(q, stride, n_rows, dim, round_up(dim, 16), factor, reinterpret_cast<int32_t*>(to));
  }

  static void scores(const std::byte* q, const Keys& keys, float* s, Fetches& fetch) {
    scores_of<0, kStep>(q, keys, keys.from, keys.split, s, fetch);
    scores_of<1, kSplitStep>(q, keys, keys.split, keys.to, s, fetch);
  }

  /// Scores of the keys [from, to) with a panel's vectors from kFirst on.
  template <int kFirst, int kMost>
  static void scores_of(const std::byte* q, const Keys& keys, int32_t from, int32_t to, float* s, Fetches& fetch) {
    const auto* panel = reinterpret_cast<const int32_t*>(q);
    const int32_t n_pairs = keys.dim / 2;
    const int32_t* rows = reinterpret_cast<const int32_t*>(keys.rows) + int64_t{keys.row + from} * n_pairs;
    each_piece<kMost>(to - from, [&](int32_t begin, auto size) {
      constexpr int kSize = decltype(size)::value;
      fetch.lines();
      const int32_t* first = rows + int64_t{begin} * n_pairs;
      Floats sum[kSize][2] = {};
      for (int32_t d = 0; d < n_pairs; ++d) {
        const Ints q0 = cpu::load(panel + d * kPanel);
        const Ints q1 = cpu::load(panel + d * kPanel + kLanes);
        WINNOW_UNROLL
        for (int i = 0; i < kSize; ++i) {
          const int32_t pair = first[int64_t{i} * n_pairs + d];
          if constexpr (kFirst == 0) sum[i][0] = add_products(sum[i][0], pair, q0);
          sum[i][1] = add_products(sum[i][1], pair, q1);
        }
      }
      float* out = s + (from + begin) * kPanel;
      WINNOW_UNROLL
      for (int i = 0; i < kSize; ++i) {
        if constexpr (kFirst == 0) cpu::store(out + i * kPanel, sum[i][0]);
        cpu::store(out + i * kPanel + kLanes, sum[i][1]);
      }
    });
  }

  static void values(const Keys& keys, const float* p, const Results& results, Fetches& fetch) {
    // Tiles may begin at an odd slot; the slots that complete the first and the last pair get weight 0.
    alignas(64) int32_t weights[(kPairs + 1) * kPanel];
    const int32_t dim = keys.dim;
    const int32_t first = (keys.row + keys.from) / 2;
    const int32_t n_pairs = (keys.row + keys.to + 1) / 2 - first;
    const int32_t n_both = (keys.row + keys.split + 1) / 2 - first;  // those that a panel's first vector sees
    pack_weight_pairs(p, keys, 2 * first, n_pairs, weights);
    const int32_t* pairs = reinterpret_cast<const int32_t*>(keys.rows) + int64_t{first} * dim;
    each_piece<kStep>(dim, [&](int32_t begin, auto size) {
      constexpr int kSize = decltype(size)::value;
      fetch.lines();
      Floats sum[kSize][2];
      load_sums(results, begin, sum);
      const int32_t* value = pairs + begin;
      const int32_t* weight = weights;
      for (int32_t pair = 0; pair < n_both; ++pair, value += dim, weight += kPanel) {
        const Ints p0 = cpu::load(weight);
        const Ints p1 = cpu::load(weight + kLanes);
        WINNOW_UNROLL
        for (int i = 0; i < kSize; ++i) {
          sum[i][0] = add_products(sum[i][0], value[i], p0);
          sum[i][1] = add_products(sum[i][1], value[i], p1);
        }
      }
      for (int32_t pair = n_both; pair < n_pairs; ++pair, value += dim, weight += kPanel) {
        const Ints p1 = cpu::load(weight + kLanes);
        WINNOW_UNROLL
        for (int i = 0; i < kSize; ++i) sum[i][1] = add_products(sum[i][1], value[i], p1);
      }
      float* out = results.o + begin * kPanel;
      WINNOW_UNROLL
      for (int i = 0; i < kSize; ++i) {
        cpu::store(out + i * kPanel, sum[i][0]);
        cpu::store(out + i * kPanel + kLanes, sum[i][1]);
      }
    });
  }
};

}  // namespace

constinit const AttendKernel kAttendBf16 = make_kernel<MathBf16, VnniRows>(
    "avx512_bf16", [](const CpuFeatures& features) { return features.avx512_bf16 && features.avx512_vnni; });

}  // namespace winnow::cpu
