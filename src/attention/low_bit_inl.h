// The plain kernel of low_bit.h, compiled for each instruction set that has none of its own. A query is its scale, then
// its codes.
#pragma once

#include <cmath>
#include <cstring>

#include "attention/low_bit.h"

namespace winnow {
namespace {

constexpr int32_t kGroup = 32;       // values of one scale
constexpr int32_t kMostGroups = 32;  // head sizes up to 1024
constexpr size_t kGroupBytes = 34;   // the scale as f16, then the codes

size_t low_bit_query_bytes(int32_t dim) {
  return sizeof(float) + static_cast<size_t>(dim);
}

void low_bit_pack_query(const float* q, int32_t dim, std::byte* to) {
  float largest = 0;
  for (int32_t d = 0; d < dim; ++d) largest = std::fmax(largest, std::fabs(q[d]));
  const float scale = largest / 127, inverse = largest > 0 ? 127 / largest : 0;
  std::memcpy(to, &scale, sizeof(scale));
  auto* codes = reinterpret_cast<int8_t*>(to + sizeof(scale));
  // Rounded by an offset, because that is what compilers turn into vectors.
  for (int32_t d = 0; d < dim; ++d) codes[d] = static_cast<int8_t>(static_cast<int32_t>(q[d] * inverse + 128.5F) - 128);
}

int32_t low_bit_dot_group(const int8_t* a, const int8_t* b) {
  int32_t sum = 0;
  for (int32_t d = 0; d < kGroup; ++d) sum += int32_t{a[d]} * int32_t{b[d]};
  return sum;
}

void low_bit_dot(const LowBitTile& tile) {
  for (int32_t i = 0; tile.largest != nullptr && i < tile.n_q; ++i) tile.largest[i] = -__builtin_inff();
  for (int32_t j = 0; j < kBlockSlots; ++j) {
    float scale[kMostGroups];
    for (int32_t g = 0; g < tile.dim / kGroup; ++g) {
      uint16_t bits = 0;
      std::memcpy(&bits, tile.row[j] + static_cast<size_t>(g) * kGroupBytes, sizeof(bits));
      scale[g] = f16_to_f32(bits);
    }
    for (int32_t i = 0; i < tile.n_q; ++i) {
      const std::byte* q = tile.q + static_cast<size_t>(i) * low_bit_query_bytes(tile.dim);
      const auto* codes = reinterpret_cast<const int8_t*>(q + sizeof(float));
      float sum = 0, q_scale = 0;
      std::memcpy(&q_scale, q, sizeof(q_scale));
      for (int32_t g = 0; g < tile.dim / kGroup; ++g) {
        const auto* key = reinterpret_cast<const int8_t*>(tile.row[j] + static_cast<size_t>(g) * kGroupBytes + 2);
        sum += scale[g] * static_cast<float>(low_bit_dot_group(codes + g * kGroup, key));
      }
      const float logit = sum * q_scale + tile.bias[j];
      if (tile.logits != nullptr) tile.logits[i * kBlockSlots + j] = logit;
      if (tile.largest != nullptr && logit > tile.largest[i]) tile.largest[i] = logit;
    }
  }
}

}  // namespace
}  // namespace winnow
