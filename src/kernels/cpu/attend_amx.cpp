// Attention with AMX's tile registers: bf16 products of 16 x 32 by 32 x 16, summed in float32.
#include "kernels/cpu/attend_bf16.h"
#include "kernels/cpu/attend_vnni.h"

namespace winnow::cpu {
namespace {

constexpr int32_t kTile = 16;                             // rows of a tile register, and its columns of 32 bits
constexpr int32_t kTileDepth = 32;                        // bf16 values of a row of a tile register
constexpr int32_t kGroups = kTileSlots / kTileDepth + 1;  // groups of 32 slots that an unaligned tile may touch

/// What ldtilecfg reads: all eight registers as 16 rows of 64 bytes.
struct alignas(64) TileConfig {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
// Not on the stack: GCC 12 believes that _tile_loadconfig reads eight bytes, and writes the others after it.
constexpr TileConfig kTileConfig;

/// The tile registers of this thread, for as long as it lives.
class TileRegisters {
 public:
  TileRegisters() { _tile_loadconfig(&kTileConfig); }
  ~TileRegisters() { _tile_release(); }
  TileRegisters(const TileRegisters&) = delete;
  TileRegisters& operator=(const TileRegisters&) = delete;
};

/// Registers 0 to 3 (2 x 2 blocks of sums) += A (32 rows, as registers 4 and 5) * B (32 columns, as 6 and 7).
inline void multiply(const void* a, int64_t a_stride, int64_t a_next, const int32_t* b) {
  constexpr int64_t kPanelBytes = int64_t{4} * kPanel;
  _tile_loadd(4, a, a_stride);
  _tile_loadd(6, b, kPanelBytes);
  _tile_dpbf16ps(0, 4, 6);
  _tile_loadd(7, b + kTile, kPanelBytes);
  _tile_dpbf16ps(1, 4, 7);
  _tile_loadd(5, static_cast<const std::byte*>(a) + a_next, a_stride);
  _tile_dpbf16ps(2, 5, 6);
  _tile_dpbf16ps(3, 5, 7);
}

inline void load_sums(const float* from) {
  constexpr int64_t kPanelBytes = int64_t{4} * kPanel;
  _tile_loadd(0, from, kPanelBytes);
  _tile_loadd(1, from + kTile, kPanelBytes);
  _tile_loadd(2, from + kTile * kPanel, kPanelBytes);
  _tile_loadd(3, from + kTile * kPanel + kTile, kPanelBytes);
}

inline void clear_sums() {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
}

inline void store_sums(float* to) {
  constexpr int64_t kPanelBytes = int64_t{4} * kPanel;
  _tile_stored(0, to, kPanelBytes);
  _tile_stored(1, to + kTile, kPanelBytes);
  _tile_stored(2, to + kTile * kPanel, kPanelBytes);
  _tile_stored(3, to + kTile * kPanel + kTile, kPanelBytes);
}

/// K: rows of bf16, head size padded to 32 with zeros. V: [slot / 32][padded dim][32 slots], so that 16 values of 32
/// slots are one register. Slots that complete a group of 32 get weight 0, and so must hold numbers.
struct MathAmx {
  using Session = TileRegisters;
  static constexpr Type kProduct = Type::bf16;
  static constexpr int kValueSlots = 0;  // a slot of V touches too many lines to fetch them ahead
  static constexpr int kStep = 2 * kTile;

  static int32_t padded(int32_t dim) { return round_up(dim, kTileDepth); }
  static size_t query_bytes(int32_t dim) { return size_t{2} * kPanel * static_cast<size_t>(padded(dim)); }
  static size_t kv_bytes(int32_t n_slots, int32_t dim) {
    // Scores are computed for 32 rows at once, from any slot on: up to 31 rows behind the last are read, not used.
    return size_t{2} * static_cast<size_t>(round_up(n_slots, kTileDepth) + kTileDepth) *
           static_cast<size_t>(padded(dim));
  }
  static size_t result_dim(int32_t dim) { return static_cast<size_t>(padded(dim)); }

  static void unpack_k(const std::byte* from, Type type, int32_t block, int32_t n_rows, const UnpackedKv& to) {
    const int32_t width = padded(to.head_dim);
    auto* rows = reinterpret_cast<uint16_t*>(to.k) + int64_t{block} * kBlockSlots * width;
    with_codec(type, [&](auto codec) {
      using Codec = decltype(codec);
      for (int32_t row = 0; row < n_rows; ++row) {
        unpack_row_bf16<Codec>(from + row * Codec::row_bytes(to.head_dim), to.head_dim, width,
                               rows + int64_t{row} * width);
      }
    });
  }

  static void unpack_v(const std::byte* from, Type type, int32_t block, int32_t n_rows, const UnpackedKv& to) {
    const int32_t width = padded(to.head_dim);
    auto* groups = reinterpret_cast<uint16_t*>(to.v) + int64_t{block} * kBlockSlots * width;
    with_codec(type, [&](auto codec) {
      using Codec = decltype(codec);
      alignas(64) uint16_t values[kMostDim];
      for (int32_t row = 0; row < kBlockSlots; ++row) {
        unpack_row_bf16<Codec>(row < n_rows ? from + row * Codec::row_bytes(to.head_dim) : nullptr, to.head_dim, width,
                               values);
        uint16_t* out = groups + int64_t{row / kTileDepth} * kTileDepth * width + row % kTileDepth;
        for (int32_t d = 0; d < width; ++d) out[d * kTileDepth] = values[d];
      }
    });
  }

  static void gather(const UnpackedKv& from, const int32_t* slot, int32_t n, const UnpackedKv& to) {
    const int32_t width = padded(from.head_dim);
    const auto bytes = size_t{2} * static_cast<size_t>(width);
    const auto* groups = reinterpret_cast<const uint16_t*>(from.v);
    auto* out = reinterpret_cast<uint16_t*>(to.v);
    for (int32_t i = 0; i < round_up(n, kTileDepth); ++i) {
      uint16_t* at = out + i / kTileDepth * kTileDepth * width + i % kTileDepth;
      if (i >= n) {
        for (int32_t d = 0; d < width; ++d) at[d * kTileDepth] = 0;
        continue;
      }
      __builtin_memcpy(to.k + static_cast<size_t>(i) * bytes, from.k + static_cast<size_t>(slot[i]) * bytes, bytes);
      const uint16_t* value = groups + int64_t{slot[i] / kTileDepth} * kTileDepth * width + slot[i] % kTileDepth;
      for (int32_t d = 0; d < width; ++d) at[d * kTileDepth] = value[d * kTileDepth];
    }
  }

  static void pack_query(const float* q, int64_t stride, int32_t n_rows, int32_t dim, float factor, std::byte* to) {
    pack_query_pairs(q, stride, n_rows, dim, padded(dim), factor, reinterpret_cast<int32_t*>(to));
  }

  static void scores(const std::byte* q, const Keys& keys, float* s, Fetches& fetch) {
    const int32_t width = padded(keys.dim);
    const auto* pairs = reinterpret_cast<const int32_t*>(q);
    const int64_t stride = int64_t{2} * width;
    for (int32_t i = keys.from / kTileDepth * kTileDepth; i < keys.to; i += 2 * kTile) {
      const std::byte* rows = keys.rows + (keys.row + i) * stride;
      clear_sums();
      fetch.lines();
      for (int32_t d = 0; d < width; d += kTileDepth) {
        multiply(rows + int64_t{2} * d, stride, kTile * stride, pairs + d / 2 * kPanel);
      }
      store_sums(s + i * kPanel);
    }
  }

  static void values(const Keys& keys, const float* p, const Results& results, Fetches& fetch) {
    const int32_t width = padded(keys.dim);
    alignas(64) int32_t weights[kGroups * kTileDepth / 2 * kPanel];
    const int32_t first = (keys.row + keys.from) / kTileDepth;
    const int32_t n_groups = (keys.row + keys.to + kTileDepth - 1) / kTileDepth - first;
    pack_weight_pairs(p, keys, first * kTileDepth, n_groups * kTileDepth / 2, weights);
    float* o = results.o;
    if (results.shrink != nullptr) {
      for (int32_t d = 0; d < keys.dim; ++d) {
        for (int32_t lane = 0; lane < kPanel; lane += kLanes) {
          cpu::store(o + d * kPanel + lane, cpu::load(o + d * kPanel + lane) * cpu::load(results.shrink + lane));
        }
      }
    }
    const auto* groups = reinterpret_cast<const uint16_t*>(keys.rows) + int64_t{first} * kTileDepth * width;
    for (int32_t d = 0; d < width; d += 2 * kTile) {
      if (results.fresh) {
        clear_sums();
      } else {
        load_sums(o + d * kPanel);
      }
      fetch.lines();
      for (int32_t g = 0; g < n_groups; ++g) {
        multiply(groups + (int64_t{g} * width + d) * kTileDepth, 2 * kTileDepth, int64_t{2} * kTile * kTileDepth,
                 weights + g * kTileDepth / 2 * kPanel);
      }
      store_sums(o + d * kPanel);
    }
  }
};

}  // namespace

constinit const AttendKernel kAttendAmx = make_kernel<MathAmx, VnniRows>(
    "amx", [](const CpuFeatures& features) { return features.amx_bf16 && features.avx512_vnni; });

}  // namespace winnow::cpu
