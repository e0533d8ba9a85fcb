// The border of a choice by cumulative weight: of values in descending order, how far their weights stay within a
// limit. By digits of the values' bits, from the highest on. Weights are integers, so that sums do not depend on the
// order in which they are made.
#pragma once

#include <cub/block/block_scan.cuh>

#include "kernels/cuda/cover.h"

namespace winnow::cuda {

constexpr int kCutThreads = 1024;          // of the block that looks for a cut
constexpr double kUnit = 1099511627776.0;  // of weights that are values: 2^-40

constexpr Cut kEverything = {0, 0x7fffffff};

struct CutShared {
  unsigned long long weight[kCutDigits];
  unsigned long long before;
  uint32_t digit;
  int32_t index;
  typename cub::BlockScan<unsigned long long, kCutThreads>::TempStorage sums;
  typename cub::BlockScan<int32_t, kCutThreads>::TempStorage ties;
};

__device__ inline bool takes(const Cut& cut, uint32_t key, int32_t index) {
  return key > cut.key || (key == cut.key && index <= cut.last);
}

/// kByValue: a value weighs itself, in units of kUnit; else each weighs 1.
template <bool kByValue>
__device__ unsigned long long weight_of(uint32_t key) {
  if constexpr (!kByValue) return 1;
  return static_cast<unsigned long long>(static_cast<double>(__uint_as_float(key)) * kUnit);
}

/// The index of the `rank`-th (from 1) of the entries whose key is `key`. All threads.
template <typename Keys>
__device__ int32_t find_tie(const Keys& keys, int32_t n, uint32_t key, long long rank, CutShared& shared) {
  constexpr int32_t kItems = 8;
  long long found = 0;
  for (int32_t strip = 0; strip < n && found < rank; strip += kCutThreads * kItems) {
    const int32_t first = strip + static_cast<int32_t>(threadIdx.x) * kItems;
    int32_t own = 0, before = 0, all = 0;
    for (int32_t i = first; i < min(first + kItems, n); ++i) own += keys(i) == key ? 1 : 0;
    cub::BlockScan<int32_t, kCutThreads>(shared.ties).ExclusiveSum(own, before, all);
    long long at = found + before;
    for (int32_t i = first; own > 0 && i < min(first + kItems, n); ++i) {
      if (keys(i) == key && ++at == rank) shared.index = i;
    }
    found += all;
    __syncthreads();
  }
  return shared.index;
}

/// What is known of the key at the border, from its highest bits on.
struct Border {
  uint32_t prefix = 0;
  unsigned long long above = 0;  // weight of what is taken in any case
};

// The digits of a key, from its highest bits on.
constexpr int kCutRounds = 3;
__device__ constexpr int cut_bits(int round) {
  return round < 2 ? 11 : 10;
}
__device__ constexpr int cut_shift(int round) {
  return round == 0 ? 21 : round == 1 ? 10 : 0;
}

/// Adds an entry of this key to the weights of the digits of a round, if its higher bits are the border's.
template <bool kByValue>
__device__ void weigh(uint32_t key, uint32_t prefix, int round, unsigned long long* weights) {
  const int bits = cut_bits(round), shift = cut_shift(round);
  if (round > 0 && (key >> (shift + bits)) != prefix) return;
  const unsigned long long weight = weight_of<kByValue>(key);
  if (weight > 0) atomicAdd(&weights[key >> shift & ((1U << bits) - 1)], weight);
}

/// The border's digit of this round, by shared.weight. -> whether there is a border: false where everything stays
/// within the limit. All threads, after a barrier.
__device__ inline bool find_digit(Border& border, int round, unsigned long long limit, CutShared& shared) {
  if (threadIdx.x == 0) shared.digit = kCutDigits;
  __syncthreads();
  // From the largest digit down: two to a thread.
  const int high = kCutDigits - 1 - 2 * static_cast<int>(threadIdx.x);
  const unsigned long long weights[2] = {shared.weight[high], shared.weight[high - 1]};
  unsigned long long before = 0;
  cub::BlockScan<unsigned long long, kCutThreads>(shared.sums).ExclusiveSum(weights[0] + weights[1], before);
  before += border.above;
  for (int i = 0; i < 2; ++i) {
    if (before <= limit && before + weights[i] > limit) {
      shared.digit = static_cast<uint32_t>(high - i);
      shared.before = before;
    }
    before += weights[i];
  }
  __syncthreads();
  const uint32_t digit = shared.digit;
  if (digit == kCutDigits) return false;
  border = {border.prefix << cut_bits(round) | digit, shared.before};
  __syncthreads();
  return true;
}

/// What is taken of n entries, equal ones by ascending index, while the sum of weights stays within `limit`. keys(i):
/// the bits of a value that is not negative. All threads of a block of kCutThreads.
template <bool kByValue, typename Keys>
__device__ Cut find_cut(const Keys& keys, int32_t n, unsigned long long limit, CutShared& shared) {
  Border border;
  for (int round = 0; round < kCutRounds; ++round) {
    for (int i = threadIdx.x; i < kCutDigits; i += kCutThreads) shared.weight[i] = 0;
    __syncthreads();
    for (int32_t i = threadIdx.x; i < n; i += kCutThreads)
      weigh<kByValue>(keys(i), border.prefix, round, shared.weight);
    __syncthreads();
    if (!find_digit(border, round, limit, shared)) return kEverything;
  }
  const auto n_ties = static_cast<long long>((limit - border.above) / weight_of<kByValue>(border.prefix));
  return {border.prefix, n_ties == 0 ? -1 : find_tie(keys, n, border.prefix, n_ties, shared)};
}

}  // namespace winnow::cuda
