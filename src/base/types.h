// Storage types of numbers, with the sizes of their blocks. The ids are GGUF's own, so that a file's id is a type; fp8,
// which no file has, lies beyond them.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <string_view>

namespace winnow {

enum class Type : int32_t {
  f32 = 0,
  f16 = 1,
  q4_0 = 2,
  q4_1 = 3,
  q5_0 = 6,
  q5_1 = 7,
  q8_0 = 8,
  q4_K = 12,
  q5_K = 13,
  q6_K = 14,
  i32 = 26,
  bf16 = 30,
  fp8 = 1 << 16,  // e4m3, of the cache only
};

struct TypeInfo {
  std::string_view name;  // as a user writes it: "q4_K"
  int32_t block_values;   // values that share one block of storage; 1 for plain numbers
  int32_t block_bytes;    // bytes of such a block, scales included
};

/// Facts about the type that a file calls `id`, or null where winnow does not know it.
const TypeInfo* find_type(int32_t id);
const TypeInfo& type_info(Type type);
/// Bytes of `n_values` consecutive values; `n_values` must be a multiple of the type's block.
size_t type_bytes(Type type, int64_t n_values);

inline float bf16_to_f32(uint16_t bits) {
  return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16);
}

/// Round to nearest even; a NaN stays a NaN.
inline uint16_t f32_to_bf16(float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  if ((bits & 0x7fffffffU) > 0x7f800000U) return static_cast<uint16_t>((bits >> 16) | 0x40U);
  return static_cast<uint16_t>((bits + 0x7fffU + ((bits >> 16) & 1U)) >> 16);
}

float f16_to_f32(uint16_t bits);
uint16_t f32_to_f16(float value);

/// Eight bits with four of exponent and three of mantissa (OCP 8-bit floating point specification, 2023, E4M3): no
/// infinities, one code of NaN for each sign, 448 the largest number. The cache stores plain e4m3, without scales: keys
/// of the models at hand go up to 359, values to 126. Attention reads the NaN of a broken model as 480.
float fp8_to_f32(uint8_t code);
/// Round to nearest even; what lies beyond 448 and infinities become 448 with their sign, and a NaN the NaN 0x7f.
uint8_t f32_to_fp8(float value);

}  // namespace winnow
