// Random draws that are the same on every machine: the standard library's distributions are not.
#pragma once

#include <cstdint>
#include <random>
#include <string>
#include <string_view>
#include <vector>

namespace winnow::eval {

/// FNV-1a of 64 bits.
uint64_t hash64(std::string_view text);

class Draw {
 public:
  explicit Draw(uint64_t seed) : random_(seed) {}
  /// Draws of their own for each (seed, name, length, index).
  Draw(uint64_t seed, std::string_view name, int64_t length, int64_t index);

  uint64_t bits() { return random_(); }
  /// Whole number in [low, high].
  int64_t between(int64_t low, int64_t high);
  /// Index in [0, n).
  size_t below(size_t n) { return static_cast<size_t>(between(0, static_cast<int64_t>(n) - 1)); }
  /// `k` distinct numbers of [0, n) in the order they were drawn.
  std::vector<int64_t> sample(int64_t n, int64_t k);
  template <typename T>
  const T& choice(const std::vector<T>& values) {
    return values[below(values.size())];
  }
  template <typename T>
  void shuffle(std::vector<T>& values) {
    for (size_t i = values.size(); i > 1; --i) std::swap(values[i - 1], values[below(i)]);
  }
  /// `n` letters, each any of `alphabet`.
  std::string letters(std::string_view alphabet, size_t n);
  /// A whole number of exactly `n_digits` digits, the first of them not 0.
  std::string number(int n_digits);
  /// A random UUID (version 4, variant 1) of 128 random bits.
  std::string uuid();

 private:
  std::mt19937_64 random_;
};

}  // namespace winnow::eval
