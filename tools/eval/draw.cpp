#include "eval/draw.h"

#include <fmt/format.h>

#include <algorithm>
#include <numeric>
#include <unordered_set>

namespace winnow::eval {
namespace {

/// The finalizer of SplitMix64: neighbouring seeds give unrelated streams.
uint64_t mix(uint64_t value) {
  value += 0x9e3779b97f4a7c15ULL;
  value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9ULL;
  value = (value ^ (value >> 27)) * 0x94d049bb133111ebULL;
  return value ^ (value >> 31);
}

}  // namespace

uint64_t hash64(std::string_view text) {
  uint64_t hash = 0xcbf29ce484222325ULL;
  for (const char c : text) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3ULL;
  return hash;
}

Draw::Draw(uint64_t seed, std::string_view name, int64_t length, int64_t index)
    : random_(mix(mix(mix(seed ^ hash64(name)) ^ static_cast<uint64_t>(length)) ^ static_cast<uint64_t>(index))) {}

int64_t Draw::between(int64_t low, int64_t high) {
  const uint64_t n = static_cast<uint64_t>(high) - static_cast<uint64_t>(low) + 1;
  const uint64_t fair = UINT64_MAX - UINT64_MAX % n;  // draws beyond the last whole multiple would favour small values
  uint64_t value = random_();
  while (value >= fair) value = random_();
  return low + static_cast<int64_t>(value % n);
}

std::vector<int64_t> Draw::sample(int64_t n, int64_t k) {
  std::vector<int64_t> drawn;
  if (k * 4 < n) {
    std::unordered_set<int64_t> seen;
    while (static_cast<int64_t>(drawn.size()) < k) {
      const int64_t value = between(0, n - 1);
      if (seen.insert(value).second) drawn.push_back(value);
    }
    return drawn;
  }
  drawn.resize(static_cast<size_t>(n));
  std::iota(drawn.begin(), drawn.end(), 0);
  shuffle(drawn);
  drawn.resize(static_cast<size_t>(k));
  return drawn;
}

std::string Draw::letters(std::string_view alphabet, size_t n) {
  std::string text;
  for (size_t i = 0; i < n; ++i) text += alphabet[below(alphabet.size())];
  return text;
}

std::string Draw::number(int n_digits) {
  int64_t low = 1;
  for (int i = 1; i < n_digits; ++i) low *= 10;
  return std::to_string(between(low, low * 10 - 1));
}

std::string Draw::uuid() {
  const uint64_t high = (bits() & ~0xf000ULL) | 0x4000ULL;
  const uint64_t low = (bits() & ~(3ULL << 62)) | (2ULL << 62);
  return fmt::format("{:08x}-{:04x}-{:04x}-{:04x}-{:012x}", high >> 32, (high >> 16) & 0xffff, high & 0xffff, low >> 48,
                     low & 0xffffffffffffULL);
}

}  // namespace winnow::eval
