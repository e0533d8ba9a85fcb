// An open hash table of places in somebody else's list. Vocabularies are looked up millions of times at loading, where
// std::unordered_map's nodes, scattered over memory, cost twice the time.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace winnow {

class HashIndex {
 public:
  /// For at most `n` places.
  explicit HashIndex(size_t n) : slots_(std::bit_ceil(2 * n + 2)) {}

  /// The place that was added under `hash` and for which `equal(place)` holds; -1: there is none.
  template <typename Equal>
  int32_t find(uint64_t hash, const Equal& equal) const {
    for (size_t at = start(hash);; at = (at + 1) & (slots_.size() - 1)) {
      const Slot& slot = slots_[at];
      if (slot.place < 0 || (slot.tag == tag(hash) && equal(slot.place))) return slot.place;
    }
  }

  /// To be added only where `find` gives -1.
  void add(uint64_t hash, int32_t place) {
    size_t at = start(hash);
    while (slots_[at].place >= 0) at = (at + 1) & (slots_.size() - 1);
    slots_[at] = {tag(hash), place};
  }

 private:
  struct Slot {
    uint32_t tag = 0;  // half of the hash: most that differ are told apart without a look at the list
    int32_t place = -1;
  };
  static uint32_t tag(uint64_t hash) { return static_cast<uint32_t>(hash >> 32); }
  size_t start(uint64_t hash) const { return static_cast<size_t>(hash) & (slots_.size() - 1); }

  std::vector<Slot> slots_;
};

}  // namespace winnow
