// Vectors of float32 as wide as the including file says (WINNOW_VECTOR_BYTES), through the compilers' vector types:
// one source for every instruction set. Included inside an anonymous namespace, so that no instruction of a wider set
// can leak into other files.

constexpr int kLanes = WINNOW_VECTOR_BYTES / 4;
typedef float Vec __attribute__((vector_size(WINNOW_VECTOR_BYTES)));       // NOLINT(modernize-use-using)
typedef int32_t IntVec __attribute__((vector_size(WINNOW_VECTOR_BYTES)));  // NOLINT(modernize-use-using)

inline Vec load(const float* from) {
  Vec v;
  __builtin_memcpy(&v, from, sizeof(v));
  return v;
}

inline void store(float* to, Vec v) {
  __builtin_memcpy(to, &v, sizeof(v));
}

inline Vec spread(float value) {
  return Vec{} + value;
}

inline float sum_lanes(Vec v) {
  float sum = 0;
  for (int i = 0; i < kLanes; ++i) sum += v[i];
  return sum;
}

/// e^x within 2 units in the last place; x is clamped to where the result is a normal number.
inline Vec exp_lanes(Vec x) {
  constexpr float kLowest = -87.0F;
  constexpr float kHighest = 88.0F;
  x = x < kLowest ? spread(kLowest) : x;
  x = x > kHighest ? spread(kHighest) : x;
  // x = n ln 2 + r with |r| <= ln 2 / 2; adding 1.5 * 2^23 rounds to the nearest whole number.
  constexpr float kRound = 12582912.0F;
  const Vec shifted = x * 1.44269504F + kRound;
  const Vec n = shifted - kRound;
  const Vec r = (x - n * 0.693145752F) - n * 1.42860677e-6F;
  // Taylor's series to the seventh power: the rest is below 1e-8 on that interval.
  Vec p = spread(1.0F / 5040);
  p = p * r + 1.0F / 720;
  p = p * r + 1.0F / 120;
  p = p * r + 1.0F / 24;
  p = p * r + 1.0F / 6;
  p = p * r + 0.5F;
  p = p * r + 1.0F;
  p = p * r + 1.0F;
  IntVec power;
  __builtin_memcpy(&power, &shifted, sizeof(power));
  power = (power << 23) + (127 << 23);  // the low bits of `shifted` are n
  Vec scale;
  __builtin_memcpy(&scale, &power, sizeof(scale));
  return p * scale;
}
