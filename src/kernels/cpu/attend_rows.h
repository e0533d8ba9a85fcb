// Decode: few query rows against rows of the cache, read as they are stored. Head values lie on the lanes.
//
// Each row of K or V is unpacked in registers and used by all queries of its group.
#pragma once

#include "kernels/cpu/attend_f32.h"

namespace winnow::cpu {
namespace {

constexpr int kQueriesAtOnce = kRegisters == 32 ? 8 : 6;  // two vectors of sums each

inline int32_t padded_dim(int32_t head_dim) {
  return (head_dim + kLanes - 1) / kLanes * kLanes;
}

/// Bytes to unpack a tile's rows into, where head_dim is no multiple of the lanes.
inline size_t row_scratch_bytes(int32_t head_dim) {
  return head_dim % kLanes == 0 ? 0 : size_t{4} * kTileSlots * static_cast<size_t>(padded_dim(head_dim));
}

/// Asks for all lines of a row that will be read soon.
inline void prefetch(const std::byte* row, int64_t bytes) {
  for (int64_t at = 0; at < bytes; at += 64) __builtin_prefetch(row + at);
}

/// Two rows (the second may equal the first) against kQueries queries.
template <typename Codec, int kQueries>
inline void dot_pair(const std::byte* row0, const std::byte* row1, int32_t dim, const float* q, float* out0,
                     float* out1, int64_t stride) {
  Floats sum[kQueries][2] = {};
  for (int32_t d = 0; d < dim; d += kLanes) {
    const Floats k0 = Codec::load(row0, d);
    const Floats k1 = Codec::load(row1, d);
    WINNOW_UNROLL
    for (int i = 0; i < kQueries; ++i) {
      const Floats query = load(q + int64_t{i} * dim + d);
      sum[i][0] += k0 * query;
      sum[i][1] += k1 * query;
    }
  }
  WINNOW_UNROLL
  for (int i = 0; i + 1 < kQueries; i += 2) {
    const Float4 four = sum_lanes(sum[i][0], sum[i][1], sum[i + 1][0], sum[i + 1][1]);
    out0[i * stride] = four[0];
    out1[i * stride] = four[1];
    out0[(i + 1) * stride] = four[2];
    out1[(i + 1) * stride] = four[3];
  }
  if constexpr (kQueries % 2 == 1) {
    constexpr int kLast = kQueries - 1;
    const Float4 four = sum_lanes(sum[kLast][0], sum[kLast][1], sum[kLast][0], sum[kLast][1]);
    out0[kLast * stride] = four[0];
    out1[kLast * stride] = four[1];
  }
}

template <typename Codec>
inline void dot_rows_of(const RowTile& rows, int32_t dim, const float* q, int32_t n_q, float* logits, int64_t stride) {
  const int64_t bytes = Codec::row_bytes(dim);
  each_piece<kQueriesAtOnce>(n_q, [&](int32_t begin, auto size) {
    constexpr int kSize = decltype(size)::value;
    for (int32_t j = 0; j < rows.n; j += 2) {
      const int32_t second = j + 1 < rows.n ? j + 1 : j;
      if (begin == 0 && j < rows.n_next) prefetch(rows.next[j], bytes);
      if (begin == 0 && j + 1 < rows.n_next) prefetch(rows.next[j + 1], bytes);
      float* out = logits + begin * stride;
      dot_pair<Codec, kSize>(rows.row[j], rows.row[second], dim, q + int64_t{begin} * dim, out + j, out + second,
                             stride);
    }
  });
}

template <typename Codec>
inline void mix_rows_of(const RowTile& rows, int32_t dim, const float* p, int64_t stride, int32_t n_q, float* o) {
  const int64_t bytes = Codec::row_bytes(dim);
  const auto mix = [&]<int kVectors>(int32_t d, int32_t begin, auto size, std::integral_constant<int, kVectors>) {
    constexpr int kSize = decltype(size)::value;
    Floats sum[kSize][kVectors];
    float* out = o + int64_t{begin} * dim + d;
    WINNOW_UNROLL
    for (int i = 0; i < kSize; ++i) {
      for (int v = 0; v < kVectors; ++v) sum[i][v] = load(out + int64_t{i} * dim + v * kLanes);
    }
    for (int32_t j = 0; j < rows.n; ++j) {
      Floats value[kVectors];
      for (int v = 0; v < kVectors; ++v) value[v] = Codec::load(rows.row[j], d + v * kLanes);
      WINNOW_UNROLL
      for (int i = 0; i < kSize; ++i) {
        const Floats weight = broadcast(p[(begin + i) * stride + j]);
        for (int v = 0; v < kVectors; ++v) sum[i][v] += weight * value[v];
      }
    }
    WINNOW_UNROLL
    for (int i = 0; i < kSize; ++i) {
      for (int v = 0; v < kVectors; ++v) store(out + int64_t{i} * dim + v * kLanes, sum[i][v]);
    }
  };
  for (int32_t j = 0; j < rows.n_next; ++j) prefetch(rows.next[j], bytes);
  for (int32_t d = 0; d < dim;) {
    const bool two = d + 2 * kLanes <= dim;
    each_piece<kQueriesAtOnce>(n_q, [&](int32_t begin, auto size) {
      if (two) {
        mix(d, begin, size, std::integral_constant<int, 2>{});
      } else {
        mix(d, begin, size, std::integral_constant<int, 1>{});
      }
    });
    d += two ? 2 * kLanes : kLanes;
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
  f(CodecF32{}, RowTile{row, nullptr, rows.n, 0}, dim);
}

void dot_rows(const RowTile& rows, Type type, int32_t head_dim, const float* q, int32_t n_q, float* logits,
              int64_t stride, std::byte* scratch) {
  with_rows(rows, type, head_dim, scratch, [&](auto codec, const RowTile& tile, int32_t dim) {
    dot_rows_of<decltype(codec)>(tile, dim, q, n_q, logits, stride);
  });
}

void mix_rows(const RowTile& rows, Type type, int32_t head_dim, const float* p, int64_t stride, int32_t n_q, float* o,
              std::byte* scratch) {
  with_rows(rows, type, head_dim, scratch, [&](auto codec, const RowTile& tile, int32_t dim) {
    mix_rows_of<decltype(codec)>(tile, dim, p, stride, n_q, o);
  });
}

void shape_logits(float* logits, int32_t n, float softcap, const float* bias) {
  for (int32_t i = 0; i < n; i += kLanes) {
    Floats x = load(logits + i);
    if (softcap > 0) x = tanh(x) * (softcap * kLog2E);
    if (bias != nullptr) x += load(bias + i);
    store(logits + i, x);
  }
}

float max_of(const float* x, int32_t n) {
  Floats largest = load(x);
  for (int32_t i = kLanes; i < n; i += kLanes) largest = max(largest, load(x + i));
  return max_lanes(largest);
}

float exp2_of(float* x, int32_t n, float max) {
  Floats sum{};
  for (int32_t i = 0; i < n; i += kLanes) {
    const Floats e = exp2_below(load(x + i) - max);
    store(x + i, e);
    sum += e;
  }
  return sum_lanes(sum);
}

/// The table of a kernel whose prefill computes with `Math`.
template <typename Math>
constexpr AttendKernel make_kernel(const char* name, bool (*runs_on)(const CpuFeatures&)) {
  return {.name = name,
          .runs_on = runs_on,
          .product = Math::kProduct,
          .kv_bytes = &Math::kv_bytes,
          .unpack_k = &Math::unpack_k,
          .unpack_v = &Math::unpack_v,
          .tile_bytes = &TileRun<Math>::scratch_bytes,
          .attend_tile = &attend_tile<Math>,
          .lanes = kLanes,
          .dot_rows = &dot_rows,
          .mix_rows = &mix_rows,
          .row_bytes = &row_scratch_bytes,
          .shape_logits = &shape_logits,
          .max_of = &max_of,
          .exp2_of = &exp2_of};
}

}  // namespace
}  // namespace winnow::cpu
