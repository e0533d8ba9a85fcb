// Number formats against their definitions: every half, every bfloat16, and rounding at every border between two
// halves.
#include "base/types.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>

namespace winnow {
namespace {

/// The value of a half by the definition of IEEE 754, in plain arithmetic.
double half_value(uint16_t bits) {
  const double sign = (bits & 0x8000) != 0 ? -1 : 1;
  const int exponent = (bits >> 10) & 31;
  const int mantissa = bits & 1023;
  if (exponent == 31) return mantissa != 0 ? std::nan("") : sign * std::numeric_limits<double>::infinity();
  if (exponent == 0) return sign * std::ldexp(mantissa, -24);
  return sign * std::ldexp(1024 + mantissa, exponent - 25);
}

TEST(Half, EveryValueIsReadByItsDefinition) {
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const double expected = half_value(static_cast<uint16_t>(bits));
    const float read = f16_to_f32(static_cast<uint16_t>(bits));
    if (std::isnan(expected)) {
      EXPECT_TRUE(std::isnan(read)) << bits;
    } else {
      EXPECT_EQ(read, expected) << bits;
      EXPECT_EQ(std::signbit(read), (bits & 0x8000) != 0) << bits;
    }
  }
}

TEST(Half, EveryValueSurvivesTheRoundTrip) {
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const auto half = static_cast<uint16_t>(bits);
    const uint16_t back = f32_to_f16(f16_to_f32(half));
    if (std::isnan(half_value(half))) {
      EXPECT_TRUE(std::isnan(half_value(back))) << bits;
    } else {
      EXPECT_EQ(back, half);
    }
  }
}

TEST(Half, RoundsToNearestAndTiesToEven) {
  for (uint16_t low = 0; low < 0x7bff; ++low) {  // every pair of neighbouring finite halves
    const auto high = static_cast<uint16_t>(low + 1);
    const auto middle = static_cast<float>((half_value(low) + half_value(high)) / 2);
    EXPECT_EQ(f32_to_f16(middle), low % 2 == 0 ? low : high) << low;
    EXPECT_EQ(f32_to_f16(std::nextafter(middle, 0.0F)), low) << low;
    EXPECT_EQ(f32_to_f16(std::nextafter(middle, 1e9F)), high) << low;
    EXPECT_EQ(f32_to_f16(-middle), 0x8000 | (low % 2 == 0 ? low : high)) << low;
  }
}

TEST(Half, OverflowsToInfinityFromHalfwayBeyondTheLargest) {
  EXPECT_EQ(f32_to_f16(65504.0F), 0x7bff);
  EXPECT_EQ(f32_to_f16(std::nextafter(65520.0F, 0.0F)), 0x7bff);
  EXPECT_EQ(f32_to_f16(65520.0F), 0x7c00);
  EXPECT_EQ(f32_to_f16(-std::numeric_limits<float>::max()), 0xfc00);
  EXPECT_EQ(f32_to_f16(std::numeric_limits<float>::infinity()), 0x7c00);
  EXPECT_EQ(f32_to_f16(std::numeric_limits<float>::denorm_min()), 0);
}

TEST(Bfloat, EveryValueSurvivesTheRoundTrip) {
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const float value = bf16_to_f32(static_cast<uint16_t>(bits));
    const uint16_t back = f32_to_bf16(value);
    if (std::isnan(value)) {
      EXPECT_TRUE(std::isnan(bf16_to_f32(back))) << bits;
    } else {
      EXPECT_EQ(back, bits);
    }
  }
}

TEST(Bfloat, RoundsToNearestAndTiesToEven) {
  EXPECT_EQ(f32_to_bf16(1.0F + 0x1p-8F), 0x3f80);  // half a unit above an even value
  EXPECT_EQ(f32_to_bf16(1.0F + 0x1p-8F + 0x1p-20F), 0x3f81);
  EXPECT_EQ(f32_to_bf16(1.0F + 0x3p-8F), 0x3f82);  // half a unit above an odd value
  EXPECT_EQ(f32_to_bf16(std::numeric_limits<float>::max()), 0x7f80);
  EXPECT_EQ(f32_to_bf16(-1.0F - 0x1p-8F), 0xbf80);
}

TEST(Bfloat, TheNearestValueIsTaken) {
  std::mt19937 random(7);
  std::uniform_real_distribution<float> numbers(-1000, 1000);
  for (int i = 0; i < 100000; ++i) {
    const float value = numbers(random);
    const uint16_t bits = f32_to_bf16(value);
    const float error = std::fabs(bf16_to_f32(bits) - value);
    EXPECT_LE(error, std::fabs(bf16_to_f32(static_cast<uint16_t>(bits + 1)) - value));
    EXPECT_LE(error, std::fabs(bf16_to_f32(static_cast<uint16_t>(bits - 1)) - value));
  }
}

/// The value of an E4M3 code by its definition, in plain arithmetic.
double fp8_value(uint8_t code) {
  const double sign = (code & 0x80) != 0 ? -1 : 1;
  const int exponent = (code >> 3) & 15;
  const int mantissa = code & 7;
  if (exponent == 15 && mantissa == 7) return std::nan("");
  return sign * (exponent == 0 ? std::ldexp(mantissa, -9) : std::ldexp(8 + mantissa, exponent - 10));
}

TEST(Fp8, EveryCodeIsReadByItsDefinitionAndSurvivesTheRoundTrip) {
  for (uint32_t bits = 0; bits < 256; ++bits) {
    const auto code = static_cast<uint8_t>(bits);
    const float read = fp8_to_f32(code);
    if ((code & 0x7f) == 0x7f) {
      EXPECT_TRUE(std::isnan(read)) << bits;
      EXPECT_EQ(f32_to_fp8(read), 0x7f);
    } else {
      EXPECT_EQ(read, fp8_value(code)) << bits;
      EXPECT_EQ(std::signbit(read), (code & 0x80) != 0) << bits;
      EXPECT_EQ(f32_to_fp8(read), code);
    }
  }
}

TEST(Fp8, RoundsToNearestAndTiesToEven) {
  for (uint8_t low = 0; low < 0x7e; ++low) {  // every pair of neighbouring numbers
    const auto high = static_cast<uint8_t>(low + 1);
    const auto middle = static_cast<float>((fp8_value(low) + fp8_value(high)) / 2);
    EXPECT_EQ(f32_to_fp8(middle), low % 2 == 0 ? low : high) << int{low};
    EXPECT_EQ(f32_to_fp8(std::nextafter(middle, 0.0F)), low) << int{low};
    EXPECT_EQ(f32_to_fp8(std::nextafter(middle, 1e9F)), high) << int{low};
    EXPECT_EQ(f32_to_fp8(-middle), 0x80 | (low % 2 == 0 ? low : high)) << int{low};
  }
}

TEST(Fp8, WhatIsBeyondTheLargestNumberBecomesIt) {
  for (const float beyond : {448.0F, 463.0F, 464.0F, 465.0F, 480.0F, 1e30F, std::numeric_limits<float>::infinity()}) {
    EXPECT_EQ(f32_to_fp8(beyond), 0x7e) << beyond;
    EXPECT_EQ(f32_to_fp8(-beyond), 0xfe) << beyond;
  }
  EXPECT_EQ(f32_to_fp8(std::numeric_limits<float>::denorm_min()), 0);
}

TEST(Types, IdsAreThoseOfTheFileFormat) {
  EXPECT_EQ(find_type(12)->name, "q4_K");
  EXPECT_EQ(find_type(30)->name, "bf16");
  EXPECT_EQ(find_type(3), &type_info(Type::q4_1));
  for (const int32_t unknown : {-1, 4, 5, 9, 31, 1 << 20}) EXPECT_EQ(find_type(unknown), nullptr) << unknown;
  EXPECT_EQ(type_info(Type::fp8).name, "fp8");  // which no file can ask for
  EXPECT_EQ(find_type(static_cast<int32_t>(Type::fp8)), nullptr);
}

TEST(Types, BytesCountWholeBlocks) {
  EXPECT_EQ(type_bytes(Type::f32, 3), 12U);
  EXPECT_EQ(type_bytes(Type::q8_0, 64), 68U);
  EXPECT_EQ(type_bytes(Type::fp8, 40), 40U);
  EXPECT_EQ(type_bytes(Type::q6_K, 512), 420U);
  EXPECT_EQ(type_bytes(Type::q4_0, 0), 0U);
  EXPECT_EQ(type_bytes(Type::f16, int64_t{1} << 33), size_t{1} << 34);
  EXPECT_DEATH(type_bytes(Type::q8_0, 33), "internal error");
}

}  // namespace
}  // namespace winnow
