// low_bit with VNNI: 32 keys turned so that they lie on the lanes, as decode over an eight-bit cache does it, and
// queries of eight bits.
#include "kernels/cpu/attend_vnni.h"
#include "kernels/cpu/low_bit.h"

namespace winnow::cpu {
namespace {

constexpr int kSteps = 6;  // queries whose sums fill the registers

/// Codes s8 in the places that a row of the cache has for its codes, zeros where that has scales; then for each 32
/// values what makes good for keys that are 128 too large; then the scale.
struct PackedQuery {
  static size_t bytes(int32_t dim) {
    return static_cast<size_t>(ByteQuery::row_bytes(dim)) + static_cast<size_t>(dim / 32 + 1) * 4;
  }

  static void pack(const float* q, int32_t dim, std::byte* to) {
    float largest = 0;
    for (int32_t d = 0; d < dim; ++d) largest = std::fmax(largest, std::fabs(q[d]));
    const float inverse = largest > 0 ? 127 / largest : 0;
    __builtin_memset(to, 0, bytes(dim));
    auto* codes = reinterpret_cast<int8_t*>(to);
    auto* starts = reinterpret_cast<int32_t*>(to + ByteQuery::row_bytes(dim));
    for (int32_t block = 0; block < dim / 32; ++block) {
      int32_t sum = 0;
      int8_t* at = codes + block * 34 + 2;
      for (int32_t d = 0; d < 32; ++d) {
        const int32_t code = static_cast<int32_t>(q[block * 32 + d] * inverse + 128.5F) - 128;
        at[d] = static_cast<int8_t>(code);
        sum += code;
      }
      starts[block] = -128 * sum;
    }
    reinterpret_cast<float*>(starts)[dim / 32] = largest / 127;
  }
};

/// Sums of one block of 32 values, dwords [begin, end), added to `total` times the keys' scales.
template <int kSize>
inline void add_block(const TurnedRows& rows, int32_t begin, int32_t end, const std::byte* q, int64_t bytes,
                      const int32_t* start, const Floats (&scale)[2], Floats (&total)[kSize][2]) {
  Ints sum[kSize][2];
  WINNOW_UNROLL
  for (int i = 0; i < kSize; ++i) sum[i][0] = sum[i][1] = broadcast(start[i * bytes / 4]);
  for (int32_t four = begin; four < end; ++four) {
    const Ints k[2] = {rows.fours[four][0], rows.fours[four][1]};
    WINNOW_UNROLL
    for (int i = 0; i < kSize; ++i) {
      const Ints codes = load_four(q + i * bytes + 4 * four);
      for (int v = 0; v < 2; ++v) sum[i][v] = add_bytes(sum[i][v], k[v], codes);
    }
  }
  WINNOW_UNROLL
  for (int i = 0; i < kSize; ++i) {
    for (int v = 0; v < 2; ++v) total[i][v] += __builtin_convertvector(sum[i][v], Floats) * scale[v];
  }
}

template <int kSize>
inline void dot_half(const TurnedRows& rows, const LowBitTile& tile, int32_t first, int half, Floats (&best)[kSize]) {
  const auto bytes = static_cast<int64_t>(PackedQuery::bytes(tile.dim));
  const std::byte* q = tile.q + first * bytes;
  const auto* start = reinterpret_cast<const int32_t*>(q + ByteQuery::row_bytes(tile.dim));
  Floats total[kSize][2] = {};
  for (int32_t pair = 0; pair < tile.dim / kPair; ++pair) {
    const int32_t begin = pair * kPairFours;
    const Floats scale[2] = {rows.first_scale(pair, 0), rows.first_scale(pair, 1)};
    add_block<kSize>(rows, begin, begin + kFirstFours, q, bytes, start + 2 * pair, scale, total);
    const Floats second[2] = {rows.second_scale(pair, 0), rows.second_scale(pair, 1)};
    add_block<kSize>(rows, begin + kFirstFours, begin + kPairFours, q, bytes, start + 2 * pair + 1, second, total);
  }
  for (int i = 0; i < kSize; ++i) {
    float scale = 0;
    __builtin_memcpy(&scale, start + tile.dim / 32 + i * bytes / 4, sizeof(scale));
    for (int v = 0; v < 2; ++v) {
      const int32_t at = half * kDotSlots + v * kLanes;
      const Floats logits = total[i][v] * scale + load(tile.bias + at);
      best[i] = max(best[i], logits);
      if (tile.logits != nullptr) store(tile.logits + int64_t{first + i} * kBlockSlots + at, logits);
    }
  }
}

void dot_tile(const LowBitTile& tile) {
  static_assert(kBlockSlots == 2 * kDotSlots);
  TurnedRows turned[2];
  const int32_t row_bytes = ByteQuery::row_bytes(tile.dim);
  RowFetch none({tile.row, nullptr, kBlockSlots}, row_bytes, 1);
  for (int half = 0; half < 2; ++half) turned[half].fill(tile.row + half * kDotSlots, row_bytes, none);
  each_piece<kSteps>(tile.n_q, [&](int32_t first, auto size) {
    constexpr int kSize = decltype(size)::value;
    Floats best[kSize];
    for (Floats& of_query : best) of_query = broadcast(-__builtin_inff());
    for (int half = 0; half < 2; ++half) dot_half<kSize>(turned[half], tile, first, half, best);
    if (tile.largest == nullptr) return;
    for (int i = 0; i < kSize; ++i) tile.largest[first + i] = max_lanes(best[i]);
  });
}

}  // namespace

const LowBitKernel kLowBitAvx512 = {kPair, PackedQuery::bytes, PackedQuery::pack, dot_tile};

}  // namespace winnow::cpu
