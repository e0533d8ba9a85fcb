#include "attention/outstanding.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>

#include "attention/lists.h"

namespace winnow {
namespace {

constexpr int32_t kBlock = kBlockSlots;  // rows and slots
constexpr int64_t kTogether = 8;         // blocks of rows that are estimated together: the keys are turned once for all

// Rows that vote for one block of rows or several: every step-th, the last one among them.
struct Voters {
  HeadsView rows;
  int64_t first = 0;  // of all
};

Voters voters(const HeadsView& q, int64_t begin, int64_t end, int64_t step) {
  const int64_t n = (end - begin + step - 1) / step, first = end - 1 - (n - 1) * step;
  HeadsView rows = q.rows(first, n);
  rows.stride *= step;
  return {rows, first};
}

// e^x for x <= 0, to 1e-4 of itself: 2^(whole + rest) by the exponent's bits and a polynomial. Compilers make vectors
// of a loop over this, which they do not of std::exp.
float exp_below_zero(float x) {
  const float y = std::max(x * 1.44269504F, -126.0F) + 126.0F;
  const auto whole = static_cast<int32_t>(y);
  const float rest = y - static_cast<float>(whole);
  const float power = 1 + rest * (0.69513F + rest * (0.22764F + rest * 0.07724F));
  return power * std::bit_cast<float>((whole + 1) << 23);
}

// What one row spends on `logits`, whose maximum and denominator so far are `top` and `sum`.
void spend(std::span<const float> logits, float& top, float& sum) {
  float most = top;
  for (const float x : logits) most = std::max(most, x);
  constexpr size_t kLanes = 8;
  std::array<float, kLanes> part{};
  size_t i = 0;
  for (; i + kLanes <= logits.size(); i += kLanes) {
    for (size_t lane = 0; lane < kLanes; ++lane) part[lane] += exp_below_zero(logits[i + lane] - most);
  }
  for (; i < logits.size(); ++i) part[0] += exp_below_zero(logits[i] - most);
  sum *= std::exp(top - most);
  for (const float x : part) sum += x;
  top = most;
}

class Outstanding {
 public:
  Outstanding(Ops& ops, const OutstandingArgs& args, const LowBitScores& scores)
      : ops_(ops), args_(args), scores_(scores) {}

  Selection select() const {
    const int64_t n_block = ceil_div(args_.q.n_rows, kBlock), n_part = ceil_div(n_block, kTogether);
    std::vector<HeadLists> parts(static_cast<size_t>(args_.q.n_head * n_part));
    ops_.for_each(std::ssize(parts), [&](int64_t item, int) {
      const auto head = static_cast<int32_t>(item / n_part);
      const int64_t begin = item % n_part * kTogether * kBlock;
      const int64_t end = std::min(begin + kTogether * kBlock, args_.q.n_rows);
      push(head, {begin, end}, args_.tau[static_cast<size_t>(head)], parts[static_cast<size_t>(item)]);
    });
    std::vector<HeadLists> lists(static_cast<size_t>(args_.q.n_head));
    for (size_t i = 0; i < parts.size(); ++i) append(parts[i], lists[i / static_cast<size_t>(n_part)]);
    return join_lists(lists, kBlock, kBlock);
  }

 private:
  struct Rows {
    int64_t begin, end;
  };
  // Key blocks of one block of rows: [0, sink) and [local, end) in any case.
  struct Edges {
    int32_t sink, local, end;
  };

  static void append(const HeadLists& part, HeadLists& lists) {
    for (size_t i = 1; i < part.block_ptr.size(); ++i) {
      lists.block_begin.insert(lists.block_begin.end(), part.block_begin.begin() + part.block_ptr[i - 1],
                               part.block_begin.begin() + part.block_ptr[i]);
      lists.end_block();
    }
  }

  Edges edges(const KvHead& kv, int64_t begin, int64_t end) const {
    const int32_t diagonal = slot_of(kv, begin) / kBlock, last = slot_of(kv, end - 1) / kBlock;
    const int32_t local = std::max(0, diagonal - args_.local_blocks);
    return {std::min(args_.sink_blocks, local), local, last + 1};
  }

  void push(int32_t head, const Rows& rows, double tau, HeadLists& lists) const {
    const KvHead& kv = kv_head_of(head);
    const int32_t farthest = edges(kv, (rows.end - 1) / kBlock * kBlock, rows.end).local;
    // The last, shorter block has voters of its own: they are counted from its end.
    const int64_t whole = tau < kNoTau ? rows.begin : rows.begin + (rows.end - rows.begin) / kBlock * kBlock;
    std::vector<float> largest;
    if (whole > rows.begin) estimate(head, {rows.begin, whole}, farthest, largest);
    for (int64_t begin = rows.begin; begin < rows.end; begin += kBlock) {
      const int64_t end = std::min(begin + kBlock, rows.end);
      const Edges e = edges(kv, begin, end);
      int64_t first_vote = (begin - rows.begin) / args_.step;
      if (begin >= whole && tau >= kNoTau) {
        estimate(head, {begin, end}, farthest, largest);
        first_vote = 0;
      }
      std::vector<uint8_t> kept(static_cast<size_t>(e.end), tau < kNoTau ? 1 : 0);
      if (tau >= kNoTau && e.sink < e.local) {
        const std::vector<float> least = thresholds(head, {begin, end}, e, std::log(tau));
        const int64_t n_middle = farthest - args_.sink_blocks;
        for (int64_t r = 0; r < std::ssize(least); ++r) {
          const float* of_row = largest.data() + (first_vote + r) * n_middle;
          for (int32_t c = e.sink; c < e.local; ++c) {
            kept[static_cast<size_t>(c)] |= of_row[c - e.sink] > least[static_cast<size_t>(r)] ? 1 : 0;
          }
        }
      }
      for (int32_t c = 0; c < e.end; ++c) {
        if (c < e.sink || c >= e.local || kept[static_cast<size_t>(c)] != 0) lists.block_begin.push_back(c * kBlock);
      }
      lists.end_block();
    }
  }

  // The largest estimated logit of each voter and key block from the sinks to `end`.
  void estimate(int32_t head, const Rows& rows, int32_t end, std::vector<float>& largest) const {
    scores_.score(voters(args_.q, rows.begin, rows.end, args_.step).rows, head,
                  {args_.sink_blocks * kBlock, std::max(end, args_.sink_blocks) * kBlock, kBlock}, largest);
  }

  // m + ln(l) + ln(tau) of each voter of one block of rows.
  std::vector<float> thresholds(int32_t head, const Rows& rows, const Edges& e, double log_tau) const {
    const KvHead& kv = kv_head_of(head);
    const Voters vote = voters(args_.q, rows.begin, rows.end, args_.step);
    const int32_t local = e.local * kBlock, end = std::min(e.end * kBlock, kv.n_slots);
    std::vector<float> sink_logits, local_logits, least;
    scores_.score(vote.rows, head, {0, e.sink * kBlock, 1}, sink_logits);
    scores_.score(vote.rows, head, {local, end, 1}, local_logits);
    for (int64_t r = 0; r < vote.rows.n_rows; ++r) {
      const auto n_sink = static_cast<size_t>(e.sink * kBlock), n_local = static_cast<size_t>(end - local);
      const int32_t own = slot_of(kv, vote.first + r * args_.step);
      float top = -1e30F, sum = 0;
      spend(std::span(sink_logits).subspan(static_cast<size_t>(r) * n_sink, n_sink), top, sum);
      spend(std::span(local_logits)
                .subspan(static_cast<size_t>(r) * n_local, static_cast<size_t>(std::max(0, own + 1 - local))),
            top, sum);
      least.push_back(top + std::log(sum) + static_cast<float>(log_tau));
    }
    return least;
  }

  const KvHead& kv_head_of(int32_t head) const {
    const auto group = args_.q.n_head / static_cast<int32_t>(args_.kv.heads.size());
    return args_.kv.heads[static_cast<size_t>(head / group)];
  }
  int32_t slot_of(const KvHead& kv, int64_t row) const {
    return visible_slots(kv, args_.limit[static_cast<size_t>(row)]) - 1;
  }

  Ops& ops_;
  const OutstandingArgs& args_;
  const LowBitScores& scores_;
};

}  // namespace

Selection outstanding_blocks(Ops& ops, const OutstandingArgs& args, const LowBitScores& scores) {
  return Outstanding(ops, args, scores).select();
}

Selection Ops::select_outstanding(const OutstandingArgs& args) {
  const auto scores = low_bit_scores({.q = args.q, .kv = args.kv, .scale = args.scale, .softcap = args.softcap});
  return outstanding_blocks(*this, args, *scores);
}

}  // namespace winnow
