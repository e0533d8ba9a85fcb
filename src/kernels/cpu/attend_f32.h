// The products of attend_tile.h in float32, and the unpacking of cache blocks to float32 rows.
#pragma once

#include "kernels/cpu/attend_tile.h"

namespace winnow::cpu {
namespace {

/// Calls f with the codec of `type`.
template <typename F>
inline void with_codec(Type type, const F& f) {
  switch (type) {
    case Type::f32:
      return f(CodecF32{});
    case Type::bf16:
      return f(CodecBf16{});
    case Type::q8_0:
      return f(CodecQ8{});
    case Type::fp8:
      return f(CodecFp8{});
    default:
      return f(CodecF16{});
  }
}

/// The values of a row [head_dim] from d on, a multiple of kLanes, that are less than a whole vector; zeros behind
/// them. They are copied, so that the codec reads nothing behind the row.
template <typename Codec>
inline Floats load_tail(const std::byte* row, int32_t d, int32_t head_dim) {
  alignas(64) std::byte copy[4 * kLanes] = {};
  const int64_t offset = Codec::row_bytes(d);
  const int64_t n_bytes = Codec::row_bytes(head_dim) - offset;
  if (n_bytes > 0) __builtin_memcpy(copy, row + offset, static_cast<size_t>(n_bytes));
  return Codec::load(copy, 0);
}

/// One row [head_dim] as float32.
template <typename Codec>
inline void unpack_row(const std::byte* row, int32_t head_dim, float* to) {
  int32_t d = 0;
  for (; d + kLanes <= head_dim; d += kLanes) store(to + d, Codec::load(row, d));
  if (d < head_dim) store_some(to + d, load_tail<Codec>(row, d, head_dim), head_dim - d);
}

template <>
inline void unpack_row<CodecQ8>(const std::byte* row, int32_t head_dim, float* to) {
  for (const float* end = to + head_dim; to < end; to += 32, row += CodecQ8::row_bytes(32)) {
    const float scale = scalar_f16(row);
    WINNOW_UNROLL
    for (int32_t d = 0; d < 32; d += kLanes) {
      store(to + d, load_i8(reinterpret_cast<const int8_t*>(row) + 2 + d) * scale);
    }
  }
}

/// The sums of kSize values of a head from `begin` on, as far as earlier tiles brought them.
template <int kSize>
inline void load_sums(const Results& results, int32_t begin, Floats (&sum)[kSize][2]) {
  const float* from = results.o + begin * kPanel;
  WINNOW_UNROLL
  for (int i = 0; i < kSize; ++i) {
    sum[i][0] = results.fresh ? Floats{} : load(from + i * kPanel);
    sum[i][1] = results.fresh ? Floats{} : load(from + i * kPanel + kLanes);
  }
  if (results.shrink == nullptr) return;
  WINNOW_UNROLL
  for (int i = 0; i < kSize; ++i) {
    sum[i][0] *= load(results.shrink);
    sum[i][1] *= load(results.shrink + kLanes);
  }
}

struct MathF32 {
  struct Session {};  // nothing to set up
  static constexpr Type kProduct = Type::f32;
  static constexpr int kValueSlots = 1;                    // that share a row of unpacked V
  static constexpr int kStep = kRegisters == 32 ? 12 : 6;  // with two vectors each, and three more registers

  static size_t query_bytes(int32_t dim) { return size_t{4} * kPanel * static_cast<size_t>(dim); }
  static size_t result_dim(int32_t dim) { return static_cast<size_t>(dim); }
  static size_t kv_bytes(int32_t n_slots, int32_t dim) {
    return size_t{4} * static_cast<size_t>(n_slots) * static_cast<size_t>(dim);
  }

  static void unpack(const std::byte* from, Type type, int32_t block, int32_t n_rows, int32_t dim, std::byte* to) {
    float* rows = reinterpret_cast<float*>(to) + int64_t{block} * kBlockSlots * dim;
    with_codec(type, [&](auto codec) {
      using Codec = decltype(codec);
      for (int32_t row = 0; row < n_rows; ++row) {
        unpack_row<Codec>(from + row * Codec::row_bytes(dim), dim, rows + int64_t{row} * dim);
      }
    });
  }
  static void unpack_k(const std::byte* from, Type type, int32_t block, int32_t n_rows, const UnpackedKv& to) {
    unpack(from, type, block, n_rows, to.head_dim, to.k);
  }
  static void unpack_v(const std::byte* from, Type type, int32_t block, int32_t n_rows, const UnpackedKv& to) {
    unpack(from, type, block, n_rows, to.head_dim, to.v);
  }

  /// The rows of single slots, one after the other.
  static void gather(const UnpackedKv& from, const int32_t* slot, int32_t n, const UnpackedKv& to) {
    const auto bytes = kv_bytes(1, from.head_dim);
    for (int32_t i = 0; i < n; ++i) {
      const auto at = static_cast<size_t>(slot[i]);
      __builtin_memcpy(to.k + static_cast<size_t>(i) * bytes, from.k + at * bytes, bytes);
      __builtin_memcpy(to.v + static_cast<size_t>(i) * bytes, from.v + at * bytes, bytes);
    }
  }

  /// -> [dim][kPanel], times `factor`; lanes without a row are 0.
  static void pack_query(const float* q, int64_t stride, int32_t n_rows, int32_t dim, float factor, std::byte* to) {
    transpose_panel(q, stride, n_rows, dim, factor, reinterpret_cast<float*>(to));
  }

  /// s[i][lane] = k_i . q_lane
  static void scores(const std::byte* q, const Keys& keys, float* s, Fetches& fetch) {
    const auto* panel = reinterpret_cast<const float*>(q);
    const int32_t dim = keys.dim;
    const float* rows = reinterpret_cast<const float*>(keys.rows) + int64_t{keys.row + keys.from} * dim;
    each_piece<kStep>(keys.to - keys.from, [&](int32_t begin, auto size) {
      constexpr int kSize = decltype(size)::value;
      fetch.lines();
      const float* first = rows + int64_t{begin} * dim;
      Floats sum[kSize][2] = {};
      for (int32_t d = 0; d < dim; ++d) {
        const Floats q0 = load(panel + d * kPanel);
        const Floats q1 = load(panel + d * kPanel + kLanes);
        WINNOW_UNROLL
        for (int i = 0; i < kSize; ++i) {
          const Floats value = broadcast(first[int64_t{i} * dim + d]);
          sum[i][0] += value * q0;
          sum[i][1] += value * q1;
        }
      }
      float* out = s + (keys.from + begin) * kPanel;
      WINNOW_UNROLL
      for (int i = 0; i < kSize; ++i) {
        store(out + i * kPanel, sum[i][0]);
        store(out + i * kPanel + kLanes, sum[i][1]);
      }
    });
  }

  /// o[d][lane] = o[d][lane] * shrink[lane] + sum_i v_i[d] p[i][lane]
  static void values(const Keys& keys, const float* p, const Results& results, Fetches& fetch) {
    const int32_t dim = keys.dim;
    const float* rows = reinterpret_cast<const float*>(keys.rows) + int64_t{keys.row} * dim;
    each_piece<kStep>(dim, [&](int32_t begin, auto size) {
      constexpr int kSize = decltype(size)::value;
      fetch.lines();
      Floats sum[kSize][2];
      load_sums(results, begin, sum);
      for (int32_t slot = keys.from; slot < keys.to; ++slot) {
        const Floats p0 = load(p + slot * kPanel);
        const Floats p1 = load(p + slot * kPanel + kLanes);
        const float* value_row = rows + int64_t{slot} * dim + begin;
        WINNOW_UNROLL
        for (int i = 0; i < kSize; ++i) {
          const Floats value = broadcast(value_row[i]);
          sum[i][0] += value * p0;
          sum[i][1] += value * p1;
        }
      }
      float* out = results.o + begin * kPanel;
      WINNOW_UNROLL
      for (int i = 0; i < kSize; ++i) {
        store(out + i * kPanel, sum[i][0]);
        store(out + i * kPanel + kLanes, sum[i][1]);
      }
    });
  }
};

}  // namespace
}  // namespace winnow::cpu
