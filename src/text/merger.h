// Byte-pair merging: neighbours become one symbol, the best pair first, in n log n.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <vector>

namespace winnow {

class Merger {
 public:
  struct Symbol {
    uint32_t begin = 0, size = 0;  // bytes of the text; size 0: merged into the one before
    int32_t token = -1;            // -1: no token has this text
    int32_t previous = -1, next = -1;
  };
  struct Rule {
    double cost = 0;  // pairs of lower cost are merged first, of equal cost the leftmost
    int32_t token = -1;
  };

  void clear() { symbols_.clear(); }
  void add(uint32_t begin, uint32_t size, int32_t token) {
    const auto i = static_cast<int32_t>(symbols_.size());
    if (i > 0) symbols_.back().next = i;
    symbols_.push_back({begin, size, token, i - 1, -1});
  }

  /// Merges until no neighbours may be: `rule(left, right)` is an optional<Rule>. What is left is walked by `each`.
  template <typename Find>
  void merge(const Find& rule) {
    candidates_.clear();
    for (int32_t i = 0; i + 1 < static_cast<int32_t>(symbols_.size()); ++i) propose(i, rule);
    while (!candidates_.empty()) {
      std::pop_heap(candidates_.begin(), candidates_.end());
      const Candidate best = candidates_.back();
      candidates_.pop_back();
      Symbol& left = symbols_[static_cast<size_t>(best.left)];
      // Symbols only grow, so equal size means that neither neighbour has changed since the proposal.
      if (left.size == 0 || left.next < 0) continue;
      Symbol& right = symbols_[static_cast<size_t>(left.next)];
      if (left.size + right.size != best.size) continue;
      left.size = best.size;
      left.token = best.token;
      left.next = right.next;
      right.size = 0;
      if (left.next >= 0) symbols_[static_cast<size_t>(left.next)].previous = best.left;
      if (left.previous >= 0) propose(left.previous, rule);
      propose(best.left, rule);
    }
  }

  template <typename Visit>
  void each(const Visit& visit) const {
    for (int32_t i = symbols_.empty() ? -1 : 0; i >= 0; i = symbols_[static_cast<size_t>(i)].next) {
      visit(symbols_[static_cast<size_t>(i)]);
    }
  }

 private:
  struct Candidate {
    double cost;
    int32_t left, token;
    uint32_t size;                                  // of both
    bool operator<(const Candidate& other) const {  // the heap's top is the greatest
      return cost != other.cost ? cost > other.cost : left > other.left;
    }
  };

  template <typename Find>
  void propose(int32_t left, const Find& rule) {
    const Symbol& a = symbols_[static_cast<size_t>(left)];
    if (a.next < 0) return;
    const Symbol& b = symbols_[static_cast<size_t>(a.next)];
    const std::optional<Rule> found = rule(a, b);
    if (!found) return;
    candidates_.push_back({found->cost, left, found->token, a.size + b.size});
    std::push_heap(candidates_.begin(), candidates_.end());
  }

  std::vector<Symbol> symbols_;
  std::vector<Candidate> candidates_;
};

}  // namespace winnow
