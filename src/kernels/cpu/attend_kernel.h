// What one instruction set offers to attention: functions over plain pointers, chosen once by the processor's features.
//
// Logits are kept in base 2 inside the kernels: log2(e) is folded into the queries.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "attention/types.h"
#include "kernels/cpu/antidiagonal_kernel.h"
#include "kernels/cpu/cpu_features.h"

namespace winnow::cpu {

inline constexpr int32_t kTileRows = kVoteRows;    // rows of a query tile
inline constexpr int32_t kMostDim = 1024;          // largest head size
inline constexpr int32_t kTileSlots = kVoteSlots;  // slots of a key tile
inline constexpr int32_t kMostTiles = 8;           // query tiles that take turns over the same keys

/// K and V of one kv head in the kernel's own form, rows of all slots.
struct UnpackedKv {
  std::byte* k = nullptr;  // kernel->kv_bytes(n_slots, head_dim) each
  std::byte* v = nullptr;
  int32_t n_slots = 0;  // rounded up to whole cache blocks
  int32_t head_dim = 0;
};

/// What the same thread computes next, to be fetched meanwhile.
struct Upcoming {
  const float* q = nullptr;  // [n_rows, head_dim], q_stride of the present tile apart; or null
  int32_t n_rows = 0;
  std::span<const int32_t> column;
  std::span<const int32_t> block;
  const UnpackedKv* kv = nullptr;
};

/// One query tile: up to kTileRows rows of one head, with the keys that its lists leave.
struct QueryTile {
  const float* q = nullptr;  // [n_rows, head_dim], rows q_stride floats apart
  int64_t q_stride = 0;
  float* o = nullptr;  // the same; may be q
  int64_t o_stride = 0;
  float* lse = nullptr;  // [n_rows], lse_stride floats apart, or null
  int64_t lse_stride = 0;
  int32_t n_rows = 0;
  const int32_t* begin = nullptr;  // [n_rows] row r sees slots [begin[r], end[r]), both ascending
  const int32_t* end = nullptr;
  const float* bias = nullptr;  // [n_slots] or null
  float scale = 1;
  float softcap = 0;
  float skip = 0;  // ln(lambda); -infinity: off
  std::span<const int32_t> column;
  std::span<const int32_t> block;  // begins of intervals of block_k slots
  int32_t block_k = 0;
  Upcoming next;
};

/// Up to kTileSlots slots that a group of query rows reads straight from the cache.
struct RowTile {
  const std::byte* const* row = nullptr;   // [n] rows of K or V in the cache's type
  const std::byte* const* next = nullptr;  // [n] rows that will be read soon, to be fetched meanwhile; or null
  int32_t n = 0;
};

/// Some slots of a kv head, to be compared with rows of a query head.
struct KeyChoice {
  const UnpackedKv* kv = nullptr;  // its k; v is not read
  std::span<const int32_t> slot;
};

struct AttendKernel {
  const char* name;
  bool (*runs_on)(const CpuFeatures& features);
  Type product;  // number format of the prefill products: f32 or bf16
  /// Bytes of K or of V of one kv head, unpacked.
  size_t (*kv_bytes)(int32_t n_slots, int32_t head_dim);
  /// Unpacks the first n_rows rows of cache block `block` into their place in `to`; the others may hold anything.
  void (*unpack_k)(const std::byte* from, Type type, int32_t block, int32_t n_rows, const UnpackedKv& to);
  void (*unpack_v)(const std::byte* from, Type type, int32_t block, int32_t n_rows, const UnpackedKv& to);
  /// Scratch of one `attend_tiles`.
  size_t (*scratch_bytes)(int32_t head_dim, int32_t n_tiles);
  /// Computes up to kMostTiles tiles that read the same kv head; returns how many (row, slot) pairs it computed.
  int64_t (*attend_tiles)(std::span<const QueryTile> tiles, const UnpackedKv& kv, std::byte* scratch);

  /// best[i] = the largest product of any of n_rows rows, at most kTileRows and packed, with the key of slot[i].
  size_t (*packed_bytes)(int32_t head_dim);
  void (*pack_rows)(const float* q, int64_t stride, int32_t n_rows, int32_t head_dim, std::byte* to);
  size_t (*best_bytes)(int32_t head_dim);  // scratch
  void (*best_products)(const std::byte* packed, int32_t n_rows, const KeyChoice& keys, float* best,
                        std::byte* scratch);

  // Decode. head_dim is rounded up to `lanes` in o.
  int32_t lanes;
  /// Bytes of a query in the form that suits keys of `type`.
  size_t (*query_bytes)(Type type, int32_t head_dim);
  void (*pack_query)(const float* q, Type type, int32_t head_dim, std::byte* to);
  /// logits[i * stride + j] = q_i . row_j, of n_q packed queries one behind the other.
  void (*dot_rows)(const RowTile& rows, Type type, int32_t head_dim, const std::byte* q, int32_t n_q, float* logits,
                   int64_t stride, std::byte* scratch);
  /// o_i += sum_j p[i * stride + j] row_j. p has kTileSlots values a query, whatever rows.n is.
  void (*mix_rows)(const RowTile& rows, Type type, int32_t head_dim, const float* p, int64_t stride, int32_t n_q,
                   float* o, std::byte* scratch);
  size_t (*row_bytes)(int32_t head_dim);  // scratch of dot_rows and mix_rows
  /// softcap, then bias (already in base 2), over n logits; `bias` may be null.
  void (*shape_logits)(float* logits, int32_t n, float softcap, const float* bias);
  float (*max_of)(const float* x, int32_t n);  // n a multiple of 16
  /// x = 2^(x - max); returns the sum. n a multiple of 16.
  float (*exp2_of)(float* x, int32_t n, float max);

  AntidiagonalKernel antidiagonals;
};

// In the order of preference; each is defined in its attend_NAME.cpp.
#if defined(__x86_64__)
extern const AttendKernel kAttendAmx;
extern const AttendKernel kAttendBf16;
extern const AttendKernel kAttendAvx512;
extern const AttendKernel kAttendInt16;
extern const AttendKernel kAttendAvx2;
#elif defined(__aarch64__)
extern const AttendKernel kAttendNeon;
#endif
extern const AttendKernel kAttendPortable;

/// All kernels in this program, the best first.
std::span<const AttendKernel* const> all_attend_kernels();
/// The best one that a processor with `features` can run, and those after it, which it can run too.
std::span<const AttendKernel* const> attend_kernels(const CpuFeatures& features);

}  // namespace winnow::cpu
