// Random numbers that are the same on every platform.
#pragma once

#include <cstdint>

namespace winnow {

/// splitmix64: small and fast. Any state is a good one to begin with.
inline uint64_t next_random(uint64_t& state) {
  state += 0x9e3779b97f4a7c15U;
  uint64_t z = state;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9U;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebU;
  return z ^ (z >> 31);
}

/// From 0 to n - 1, n >= 1.
inline int64_t random_below(uint64_t& state, int64_t n) {
  return static_cast<int64_t>(next_random(state) % static_cast<uint64_t>(n));
}

}  // namespace winnow
