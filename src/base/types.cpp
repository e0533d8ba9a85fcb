#include "base/types.h"

#include <algorithm>
#include <array>
#include <limits>

#include "base/error.h"

namespace winnow {
namespace {

struct Entry {
  Type type;
  TypeInfo info;
};

// Block layouts: GGUF specification, ggml's block_* structures.
constexpr std::array<Entry, 12> kTypes{{
    {Type::f32, {"f32", 1, 4}},
    {Type::f16, {"f16", 1, 2}},
    {Type::q4_0, {"q4_0", 32, 18}},
    {Type::q4_1, {"q4_1", 32, 20}},
    {Type::q5_0, {"q5_0", 32, 22}},
    {Type::q5_1, {"q5_1", 32, 24}},
    {Type::q8_0, {"q8_0", 32, 34}},
    {Type::q4_K, {"q4_K", 256, 144}},
    {Type::q5_K, {"q5_K", 256, 176}},
    {Type::q6_K, {"q6_K", 256, 210}},
    {Type::i32, {"i32", 1, 4}},
    {Type::bf16, {"bf16", 1, 2}},
}};
constexpr TypeInfo kFp8{"fp8", 1, 1};

}  // namespace

const TypeInfo* find_type(int32_t id) {
  for (const Entry& entry : kTypes) {
    if (static_cast<int32_t>(entry.type) == id) return &entry.info;
  }
  return nullptr;
}

const TypeInfo& type_info(Type type) {
  if (type == Type::fp8) return kFp8;
  const TypeInfo* info = find_type(static_cast<int32_t>(type));
  WINNOW_ASSERT(info != nullptr);
  return *info;
}

size_t type_bytes(Type type, int64_t n_values) {
  const TypeInfo& info = type_info(type);
  WINNOW_ASSERT(n_values % info.block_values == 0);
  return static_cast<size_t>(n_values / info.block_values) * static_cast<size_t>(info.block_bytes);
}

float f16_to_f32(uint16_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000U) << 16;
  const uint32_t exponent = (bits >> 10) & 0x1fU;
  const uint32_t mantissa = bits & 0x3ffU;
  if (exponent == 0) {  // zero or subnormal: the mantissa counts units of 2^-24
    const float magnitude = static_cast<float>(mantissa) * 0x1p-24F;
    return sign != 0 ? -magnitude : magnitude;
  }
  const uint32_t wide = exponent == 31 ? 255U : exponent + 112U;  // 112 = 127 - 15, the two biases
  return std::bit_cast<float>(sign | (wide << 23) | (mantissa << 13));
}

uint16_t f32_to_f16(float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  const auto sign = static_cast<uint16_t>((bits >> 16) & 0x8000U);
  const uint32_t magnitude = bits & 0x7fffffffU;
  if (magnitude > 0x7f800000U) return sign | 0x7e00U;   // NaN
  if (magnitude >= 0x477ff000U) return sign | 0x7c00U;  // rounds to 65520 or more: infinity
  if (magnitude < 0x38800000U) {                        // below 2^-14: subnormal
    // Adding 0.5 aligns the value's units of 2^-24 with the float's last bit and rounds to nearest even.
    const float aligned = std::bit_cast<float>(magnitude) + 0.5F;
    return sign | static_cast<uint16_t>(std::bit_cast<uint32_t>(aligned) - 0x3f000000U);
  }
  const uint32_t rounded = magnitude + 0xfffU + ((magnitude >> 13) & 1U) - (112U << 23);
  return sign | static_cast<uint16_t>(rounded >> 13);
}

float fp8_to_f32(uint8_t code) {
  const uint32_t magnitude = code & 0x7fU;
  if (magnitude == 0x7f) return std::numeric_limits<float>::quiet_NaN();
  // The exponent's and the mantissa's bits, read as a float, are the number times 2^-120, subnormals included.
  const float value = std::bit_cast<float>(magnitude << 20) * 0x1p120F;  // 120 = 127 - 7, the two biases
  return (code & 0x80U) != 0 ? -value : value;
}

uint8_t f32_to_fp8(float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  const auto sign = static_cast<uint8_t>((bits >> 24) & 0x80U);
  if ((bits & 0x7fffffffU) > 0x7f800000U) return 0x7f;                   // NaN
  const uint32_t magnitude = std::min(bits & 0x7fffffffU, 0x43e00000U);  // 448
  if (magnitude < 0x3c800000U) {                                         // below 2^-6: subnormal
    // Adding 2^14 aligns the value's units of 2^-9 with the float's last bit and rounds to nearest even.
    const float aligned = std::bit_cast<float>(magnitude) + 0x1p14F;
    return sign | static_cast<uint8_t>(std::bit_cast<uint32_t>(aligned) - 0x46800000U);
  }
  const uint32_t rounded = magnitude + 0x7ffffU + ((magnitude >> 20) & 1U) - (120U << 23);
  return sign | static_cast<uint8_t>(rounded >> 20);
}

}  // namespace winnow
