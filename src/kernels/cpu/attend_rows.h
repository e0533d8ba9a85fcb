// Decode: few query rows against rows of the cache, read as they are stored. Head values lie on the lanes.
//
// Each row of K or V is unpacked in registers and used by all queries of its group.
#pragma once

#include "kernels/cpu/antidiagonal_tile.h"
#include "kernels/cpu/attend_f32.h"
#include "kernels/cpu/attend_stack.h"
#include "kernels/cpu/best_products.h"

namespace winnow::cpu {
namespace {

// Queries whose sums fill the registers: with four rows of K, and with two vectors of a row of V.
constexpr int kDotQueries = kRegisters == 32 ? 6 : 3;
constexpr int kMixQueries = kRegisters == 32 ? 12 : 6;

inline int32_t padded_dim(int32_t head_dim) {
  return (head_dim + kLanes - 1) / kLanes * kLanes;
}

/// Bytes to unpack a tile's rows into, where head_dim is no multiple of the lanes.
inline size_t row_scratch_bytes(int32_t head_dim) {
  return head_dim % kLanes == 0 ? 0 : size_t{4} * kTileSlots * static_cast<size_t>(padded_dim(head_dim));
}

/// Asks for the lines of rows that will be read soon, row after row, a few with each step of other work: a burst would
/// stall that work, and any other order costs memory more time.
class RowFetch {
 public:
  /// Of the tile's next rows, if it names them; `n_steps` steps fetch all.
  RowFetch(const RowTile& tile, int64_t row_bytes, int64_t n_steps)
      : row_(tile.next), row_bytes_(row_bytes), n_steps_(n_steps) {
    if (row_ == nullptr) return;
    const bool together = row_[tile.n - 1] == row_[0] + (tile.n - 1) * row_bytes;
    if (together) row_bytes_ *= tile.n;  // as one: rows may be no whole number of lines
    n_lines_ = (together ? 1 : tile.n) * ((row_bytes_ + kLine - 1) / kLine);
  }

  void step() {
    for (due_ += n_lines_; due_ >= n_steps_; due_ -= n_steps_) {
      __builtin_prefetch(*row_ + at_);
      at_ += kLine;
      if (at_ < row_bytes_) continue;
      at_ = 0;
      ++row_;
    }
  }

 private:
  static constexpr int64_t kLine = 64;
  const std::byte* const* row_;
  int64_t row_bytes_;
  int64_t n_lines_ = 0;
  int64_t n_steps_;
  int64_t due_ = 0;  // lines that are due now, times n_steps
  int64_t at_ = 0;
};

/// Logits of four rows and kQueries queries, to out[i * stride + 0 ... 3].
template <typename Codec, int kQueries>
inline void dot_four(const std::byte* const (&row)[4], int32_t dim, const float* q, float* out, int64_t stride,
                     RowFetch& fetch) {
  Floats sum[kQueries][4] = {};
  for (int32_t d = 0; d < dim; d += kLanes) {
    fetch.step();
    Floats query[kQueries];
    WINNOW_UNROLL
    for (int i = 0; i < kQueries; ++i) query[i] = load(q + int64_t{i} * dim + d);
    WINNOW_UNROLL
    for (int r = 0; r < 4; ++r) {
      const Floats k = Codec::load(row[r], d);
      WINNOW_UNROLL
      for (int i = 0; i < kQueries; ++i) sum[i][r] += k * query[i];
    }
  }
  Floats groups[kQueries];
  WINNOW_UNROLL
  for (int i = 0; i < kQueries; ++i) groups[i] = sum_in_groups(sum[i][0], sum[i][1], sum[i][2], sum[i][3]);
  Float4 four[kQueries];
  fold_groups(groups, four);
  WINNOW_UNROLL
  for (int i = 0; i < kQueries; ++i) __builtin_memcpy(out + i * stride, &four[i], sizeof(four[i]));
}

template <typename Codec>
inline void dot_rows_of(const RowTile& rows, int32_t dim, const float* q, int32_t n_q, float* logits, int64_t stride) {
  each_piece<kDotQueries>(n_q, [&](int32_t begin, auto size) {
    constexpr int kSize = decltype(size)::value;
    RowFetch fetch({rows.row, begin == 0 ? rows.next : nullptr, rows.n}, Codec::row_bytes(dim),
                   int64_t{(rows.n + 3) / 4} * (dim / kLanes));
    const float* queries = q + int64_t{begin} * dim;
    float* out = logits + begin * stride;
    int32_t j = 0;
    for (; j + 4 <= rows.n; j += 4) {
      const std::byte* const four[4] = {rows.row[j], rows.row[j + 1], rows.row[j + 2], rows.row[j + 3]};
      dot_four<Codec, kSize>(four, dim, queries, out + j, stride, fetch);
    }
    if (j == rows.n) return;
    const auto at = [&](int32_t i) { return rows.row[smaller(j + i, rows.n - 1)]; };  // repeats the last row
    const std::byte* const four[4] = {at(0), at(1), at(2), at(3)};
    float rest[kSize][4];
    dot_four<Codec, kSize>(four, dim, queries, rest[0], 4, fetch);
    for (int i = 0; i < kSize; ++i) {
      for (int32_t r = 0; j + r < rows.n; ++r) out[i * stride + j + r] = rest[i][r];
    }
  });
}

/// Eight-bit rows take more work to unpack than one product of them; they are unpacked once for all queries.
template <typename Codec>
inline void dot_unpacked(const RowTile& rows, int32_t dim, const float* q, int32_t n_q, float* logits, int64_t stride) {
  constexpr int32_t kRows = 16;  // few enough to stay in the first cache
  alignas(64) float values[kRows * kMostDim];
  const std::byte* row[kRows];
  RowFetch fetch(rows, Codec::row_bytes(dim), rows.n);
  for (int32_t begin = 0; begin < rows.n; begin += kRows) {
    const int32_t n = smaller(kRows, rows.n - begin);
    for (int32_t j = 0; j < n; ++j) {
      fetch.step();
      float* to = values + int64_t{j} * dim;
      unpack_row<Codec>(rows.row[begin + j], dim, to);
      row[j] = reinterpret_cast<const std::byte*>(to);
    }
    dot_rows_of<CodecF32>({row, nullptr, n}, dim, q, n_q, logits + begin, stride);
  }
}

template <>
inline void dot_rows_of<CodecQ8>(const RowTile& rows, int32_t dim, const float* q, int32_t n_q, float* logits,
                                 int64_t stride) {
  dot_unpacked<CodecQ8>(rows, dim, q, n_q, logits, stride);
}

template <>
inline void dot_rows_of<CodecFp8>(const RowTile& rows, int32_t dim, const float* q, int32_t n_q, float* logits,
                                  int64_t stride) {
  dot_unpacked<CodecFp8>(rows, dim, q, n_q, logits, stride);
}

/// o_i += sum_j p_ij row_j, for kSize queries and kVectors vectors of the rows from value d on.
template <typename Codec, int kSize, int kVectors>
inline void mix_columns(const RowTile& rows, int32_t d, const float* p, int64_t stride, float* o, int32_t dim,
                        RowFetch& fetch) {
  Floats sum[kSize][kVectors];
  WINNOW_UNROLL
  for (int i = 0; i < kSize; ++i) {
    for (int v = 0; v < kVectors; ++v) sum[i][v] = load(o + int64_t{i} * dim + v * kLanes);
  }
  for (int32_t j = 0; j < rows.n; ++j) {
    fetch.step();
    Floats value[kVectors];
    for (int v = 0; v < kVectors; ++v) value[v] = Codec::load(rows.row[j], d + v * kLanes);
    WINNOW_UNROLL
    for (int i = 0; i < kSize; ++i) {
      const Floats weight = broadcast(p[i * stride + j]);
      for (int v = 0; v < kVectors; ++v) sum[i][v] += weight * value[v];
    }
  }
  WINNOW_UNROLL
  for (int i = 0; i < kSize; ++i) {
    for (int v = 0; v < kVectors; ++v) store(o + int64_t{i} * dim + v * kLanes, sum[i][v]);
  }
}

/// The same for the values [begin, end) of the rows.
template <typename Codec, int kSize>
inline void mix_range(const RowTile& rows, int32_t begin, int32_t end, const float* p, int64_t stride, float* o,
                      int32_t dim, RowFetch& fetch) {
  int32_t d = begin;
  for (; d + 2 * kLanes <= end; d += 2 * kLanes) mix_columns<Codec, kSize, 2>(rows, d, p, stride, o + d, dim, fetch);
  if (d < end) mix_columns<Codec, kSize, 1>(rows, d, p, stride, o + d, dim, fetch);
}

/// For passes over all columns of a tile, of which `first` does the fetching.
template <typename Codec>
inline RowFetch fetch_beside(const RowTile& rows, int32_t dim, bool first) {
  const int64_t n_passes = (dim + 2 * kLanes - 1) / (2 * kLanes);
  return {{rows.row, first ? rows.next : nullptr, rows.n}, Codec::row_bytes(dim), rows.n * n_passes};
}

template <typename Codec>
inline void mix_rows_of(const RowTile& rows, int32_t dim, const float* p, int64_t stride, int32_t n_q, float* o) {
  each_piece<kMixQueries>(n_q, [&](int32_t begin, auto size) {
    RowFetch fetch = fetch_beside<Codec>(rows, dim, begin == 0);
    mix_range<Codec, decltype(size)::value>(rows, 0, dim, p + begin * stride, stride, o + int64_t{begin} * dim, dim,
                                            fetch);
  });
}

/// The scales of eight-bit rows go into the weights, which are fewer than the values.
template <>
inline void mix_rows_of<CodecQ8>(const RowTile& rows, int32_t dim, const float* p, int64_t stride, int32_t n_q,
                                 float* o) {
  alignas(64) float scale[kTileSlots] = {};
  alignas(64) float weight[kMixQueries * kTileSlots];
  RowFetch fetch = fetch_beside<CodecQ8>(rows, dim, true);
  RowFetch none = fetch_beside<CodecQ8>(rows, dim, false);
  for (int32_t block = 0; block < dim; block += 32) {
    for (int32_t j = 0; j < rows.n; ++j) scale[j] = scalar_f16(rows.row[j] + CodecQ8::row_bytes(block));
    each_piece<kMixQueries>(n_q, [&](int32_t begin, auto size) {
      constexpr int kSize = decltype(size)::value;
      for (int i = 0; i < kSize; ++i) {
        for (int32_t j = 0; j < rows.n; j += kLanes) {
          store(weight + i * kTileSlots + j, load(p + (begin + i) * stride + j) * load(scale + j));
        }
      }
      mix_range<CodecQ8Raw, kSize>(rows, block, block + 32, weight, kTileSlots, o + int64_t{begin} * dim, dim,
                                   begin == 0 ? fetch : none);
    });
  }
}

/// Calls f(codec, rows, dim) with rows whose head size is a multiple of the lanes: the cache's own, or float32 copies.
template <typename F>
inline void with_rows(const RowTile& rows, Type type, int32_t head_dim, std::byte* scratch, const F& f) {
  if (head_dim % kLanes == 0) {
    with_codec(type, [&](auto codec) { f(codec, rows, head_dim); });
    return;
  }
  const int32_t dim = padded_dim(head_dim);
  auto* copies = reinterpret_cast<float*>(scratch);
  const std::byte* row[kTileSlots];
  for (int64_t i = 0; i < int64_t{rows.n} * dim; i += kLanes) store(copies + i, Floats{});
  with_codec(type, [&](auto codec) {
    for (int32_t j = 0; j < rows.n; ++j) {
      unpack_row<decltype(codec)>(rows.row[j], head_dim, copies + int64_t{j} * dim);
      row[j] = reinterpret_cast<const std::byte*>(copies + int64_t{j} * dim);
    }
  });
  f(CodecF32{}, RowTile{row, nullptr, rows.n}, dim);
}

/// Queries and products in float32.
struct FloatRows {
  static size_t query_bytes(Type /*type*/, int32_t head_dim) {
    return size_t{4} * static_cast<size_t>(padded_dim(head_dim));
  }

  static void pack_query(const float* q, Type /*type*/, int32_t head_dim, std::byte* to) {
    const size_t bytes = size_t{4} * static_cast<size_t>(head_dim);
    __builtin_memcpy(to, q, bytes);
    __builtin_memset(to + bytes, 0, query_bytes(Type::f32, head_dim) - bytes);
  }

  static void dot(const RowTile& rows, Type type, int32_t head_dim, const std::byte* q, int32_t n_q, float* logits,
                  int64_t stride, std::byte* scratch) {
    with_rows(rows, type, head_dim, scratch, [&](auto codec, const RowTile& tile, int32_t dim) {
      dot_rows_of<decltype(codec)>(tile, dim, reinterpret_cast<const float*>(q), n_q, logits, stride);
    });
  }

  static void mix(const RowTile& rows, Type type, int32_t head_dim, const float* p, int64_t stride, int32_t n_q,
                  float* o, std::byte* scratch) {
    with_rows(rows, type, head_dim, scratch, [&](auto codec, const RowTile& tile, int32_t dim) {
      mix_rows_of<decltype(codec)>(tile, dim, p, stride, n_q, o);
    });
  }
};

inline void shape_logits(float* logits, int32_t n, float softcap, const float* bias) {
  for (int32_t i = 0; i < n; i += kLanes) {
    Floats x = load(logits + i);
    if (softcap > 0) x = tanh(x) * (softcap * kLog2E);
    if (bias != nullptr) x += load(bias + i);
    store(logits + i, x);
  }
}

inline float max_of(const float* x, int32_t n) {
  Floats largest = load(x);
  for (int32_t i = kLanes; i < n; i += kLanes) largest = max(largest, load(x + i));
  return max_lanes(largest);
}

inline float exp2_of(float* x, int32_t n, float max) {
  Floats sum{};
  for (int32_t i = 0; i < n; i += kLanes) {
    const Floats e = exp2_below(load(x + i) - max);
    store(x + i, e);
    sum += e;
  }
  return sum_lanes(sum);
}

/// The table of a kernel whose prefill computes with `Math`, whose decode does with `Rows`, and whose estimates by
/// antidiagonals do with `Estimate`, in which pieces of a vector join to a longer one.
template <typename Math, typename Rows = FloatRows, typename Estimate = Math>
constexpr AttendKernel make_kernel(const char* name, bool (*runs_on)(const CpuFeatures&)) {
  return {.name = name,
          .runs_on = runs_on,
          .product = Math::kProduct,
          .kv_bytes = &Math::kv_bytes,
          .unpack_k = &Math::unpack_k,
          .unpack_v = &Math::unpack_v,
          .scratch_bytes = &attend_bytes<Math>,
          .attend_tiles = &attend_tiles<Math>,
          .packed_bytes = &BestProducts<Math>::packed_bytes,
          .pack_rows = &BestProducts<Math>::pack_rows,
          .best_bytes = &BestProducts<Math>::scratch_bytes,
          .best_products = &BestProducts<Math>::find,
          .lanes = kLanes,
          .query_bytes = &Rows::query_bytes,
          .pack_query = &Rows::pack_query,
          .dot_rows = &Rows::dot,
          .mix_rows = &Rows::mix,
          .row_bytes = &row_scratch_bytes,
          .shape_logits = &shape_logits,
          .max_of = &max_of,
          .exp2_of = &exp2_of,
          .antidiagonals = make_antidiagonals<Estimate>()};
}

}  // namespace
}  // namespace winnow::cpu
