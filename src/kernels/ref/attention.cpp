// Attention as its definition reads: plain loops in double. Every other kernel is tested against this one.
#include "kernels/ref/attention.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

namespace winnow::ref {
namespace {

constexpr double kNone = -std::numeric_limits<double>::infinity();

using Row = std::vector<double>;

/// Row `slot` of one kv head's blocks as doubles [head_dim].
Row load_row(std::span<const std::byte* const> blocks, Type type, int32_t head_dim, int32_t slot) {
  const std::byte* at = blocks[static_cast<size_t>(slot / kBlockSlots)] +
                        type_bytes(type, head_dim) * static_cast<size_t>(slot % kBlockSlots);
  Row row(static_cast<size_t>(head_dim));
  for (int32_t d = 0; d < head_dim; ++d) {
    double& value = row[static_cast<size_t>(d)];
    if (type == Type::f32) {
      float bits = 0;
      std::memcpy(&bits, at + static_cast<size_t>(d) * 4, 4);
      value = bits;
    } else if (type == Type::q8_0) {  // blocks of 32: an f16 scale, then 32 signed bytes
      const std::byte* block = at + static_cast<size_t>(d / 32) * 34;
      uint16_t scale = 0;
      std::memcpy(&scale, block, 2);
      value = static_cast<double>(f16_to_f32(scale)) * static_cast<int8_t>(block[2 + d % 32]);
    } else if (type == Type::fp8) {
      value = fp8_to_f32(static_cast<uint8_t>(at[d]));
    } else {
      uint16_t bits = 0;
      std::memcpy(&bits, at + static_cast<size_t>(d) * 2, 2);
      value = type == Type::f16 ? f16_to_f32(bits) : bf16_to_f32(bits);
    }
  }
  return row;
}

bool sees(const KvHead& kv, int32_t limit, int32_t window, int32_t slot) {
  const int32_t position = kv.position(slot);
  return position <= limit && (window <= 0 || limit - position < window);
}

double dot(const Row& a, const Row& b) {
  double sum = 0;
  for (size_t d = 0; d < a.size(); ++d) sum += a[d] * b[d];
  return sum;
}

double logit(double product, float scale, float softcap, const KvHead& kv, int32_t slot) {
  double x = product * scale;
  if (softcap > 0) x = softcap * std::tanh(x / softcap);
  return kv.bias == nullptr ? x : x + kv.bias[slot];
}

Row query(const HeadsView& q, int64_t row, int32_t head) {
  const float* at = q.at(row, head);
  return {at, at + q.head_dim};
}

/// The keys of one query block in the order in which they are visited, in the tiles of types.h.
std::vector<std::vector<int32_t>> tiles_of(const Selection* selection, int32_t head, int32_t block, int32_t n_slots) {
  std::vector<std::vector<int32_t>> tiles;
  const auto add_interval = [&](int32_t begin, int32_t end) {
    for (int32_t at = begin; at < end; at += kVoteSlots) {
      tiles.emplace_back();
      for (int32_t slot = at; slot < std::min({at + kVoteSlots, end, n_slots}); ++slot) tiles.back().push_back(slot);
    }
  };
  if (selection == nullptr || selection->everything()) {
    add_interval(0, n_slots);
    return tiles;
  }
  const int64_t list = selection->list(head, block);
  const std::span<const int32_t> columns = selection->columns(list);
  for (size_t i = 0; i < columns.size(); ++i) {
    if (i % kVoteSlots == 0) tiles.emplace_back();
    if (columns[i] < n_slots) tiles.back().push_back(columns[i]);
  }
  for (const int32_t begin : selection->blocks(list)) add_interval(begin, begin + selection->block_k);
  return tiles;
}

/// One row of one head on its way through the tiles.
struct Online {
  int64_t row = 0;
  int32_t head = 0;
  Row q;
  double max = kNone;
  double sum = 0;
  Row o;
};

class Call {
 public:
  explicit Call(const AttnArgs& args)
      : args_(args), group_(args.q.n_head / static_cast<int32_t>(args.kv.heads.size())) {}

  void run() {
    const int64_t n_rows = args_.q.n_rows;
    for (int32_t head = 0; head < args_.q.n_head; ++head) {
      const KvHead& kv = kv_of(head);
      for (int64_t row = 0; row < n_rows; ++row) {
        for (int32_t slot = 0; slot < kv.n_slots; ++slot) {
          permitted_ += sees(kv, args_.limit[row], args_.window, slot) ? 1 : 0;
        }
      }
    }
    for (int32_t first = 0; first < args_.q.n_head; first += group_) {
      if (n_rows == 1 && same_lists(first)) {
        tile(0, 1, first, group_);
        continue;
      }
      for (int32_t head = first; head < first + group_; ++head) {
        for (int64_t row = 0; row < n_rows; row += kVoteRows) {
          tile(row, std::min<int64_t>(kVoteRows, n_rows - row), head, 1);
        }
      }
    }
    if (args_.counts != nullptr) {
      args_.counts->permitted += permitted_;
      args_.counts->computed += computed_;
    }
  }

 private:
  const KvHead& kv_of(int32_t head) const { return args_.kv.heads[static_cast<size_t>(head / group_)]; }

  int32_t block_of(int64_t row) const {
    return args_.selection == nullptr || args_.selection->everything()
               ? 0
               : static_cast<int32_t>((args_.first_row + row) / args_.selection->block_q);
  }

  bool same_lists(int32_t first) const {
    if (args_.selection == nullptr || args_.selection->everything()) return true;
    const Selection& s = *args_.selection;
    const int64_t expected = s.list(first, block_of(0));
    for (int32_t head = first + 1; head < first + group_; ++head) {
      const int64_t list = s.list(head, block_of(0));
      if (!std::ranges::equal(s.blocks(list), s.blocks(expected))) return false;
      if (!std::ranges::equal(s.columns(list), s.columns(expected))) return false;
    }
    return true;
  }

  /// Rows that vote together: n_rows rows of n_heads heads, all of one kv head and with one list.
  void tile(int64_t row, int64_t n_rows, int32_t head, int32_t n_heads) {
    std::vector<Online> members;
    for (int32_t h = head; h < head + n_heads; ++h) {
      for (int64_t r = row; r < row + n_rows; ++r) {
        members.push_back({r, h, query(args_.q, r, h), kNone, 0, Row(static_cast<size_t>(args_.q.head_dim))});
      }
    }
    bool first = true;
    for (const std::vector<int32_t>& slots : tiles_of(args_.selection, head, block_of(row), kv_of(head).n_slots)) {
      first = !visit(members, slots, first) && first;
    }
    for (const Online& member : members) finish(member);
  }

  /// One tile of keys; false where nobody sees anything of it.
  bool visit(std::vector<Online>& members, const std::vector<int32_t>& slots, bool first) {
    const KvHead& kv = kv_of(members[0].head);
    std::vector<Row> logits(members.size(), Row(slots.size(), kNone));
    bool seen = false;
    bool keep = first;
    for (size_t i = 0; i < slots.size(); ++i) {
      const Row k = load_row(kv.k, args_.kv.k_type, args_.kv.head_dim, slots[i]);
      for (size_t m = 0; m < members.size(); ++m) {
        if (!sees(kv, args_.limit[members[m].row], args_.window, slots[i])) continue;
        logits[m][i] = logit(dot(members[m].q, k), args_.scale, args_.softcap, kv, slots[i]);
        seen = true;
      }
    }
    for (size_t m = 0; m < members.size(); ++m) {
      const double largest = slots.empty() ? kNone : *std::max_element(logits[m].begin(), logits[m].end());
      const double threshold = args_.skip == nullptr ? kNone : args_.skip[members[m].head];
      if (largest != kNone && !(largest - std::max(largest, members[m].max) < threshold)) keep = true;
    }
    if (seen && keep) {
      for (size_t m = 0; m < members.size(); ++m) add(members[m], slots, logits[m]);
    }
    return seen;
  }

  void add(Online& member, const std::vector<int32_t>& slots, const Row& logits) {
    const KvHead& kv = kv_of(member.head);
    for (size_t i = 0; i < slots.size(); ++i) {
      if (!sees(kv, args_.limit[member.row], args_.window, slots[i])) continue;
      ++computed_;
      if (logits[i] == kNone) continue;
      const double max = std::max(member.max, logits[i]);
      const double shrink = std::exp(member.max - max);
      const double p = std::exp(logits[i] - max);
      const Row v = load_row(kv.v, args_.kv.v_type, args_.kv.head_dim, slots[i]);
      for (size_t d = 0; d < v.size(); ++d) member.o[d] = member.o[d] * shrink + p * v[d];
      member.sum = member.sum * shrink + p;
      member.max = max;
    }
  }

  void finish(const Online& member) {
    float* o = args_.o.at(member.row, member.head);
    for (size_t d = 0; d < member.o.size(); ++d) {
      o[d] = member.sum > 0 ? static_cast<float>(member.o[d] / member.sum) : 0.0F;
    }
    if (args_.lse == nullptr) return;
    args_.lse[member.row * args_.q.n_head + member.head] =
        static_cast<float>(member.sum > 0 ? member.max + std::log(member.sum) : kNone);
  }

  const AttnArgs& args_;
  int32_t group_;
  int64_t permitted_ = 0;
  int64_t computed_ = 0;
};

/// Mean of each `block` of n rows, the last by its true length; row_at(i) gives row i.
template <typename RowAt>
void pool(int64_t n, int32_t block, int32_t dim, const RowAt& row_at, std::vector<float>& pooled) {
  pooled.clear();
  for (int64_t begin = 0; begin < n; begin += block) {
    const int64_t end = std::min<int64_t>(n, begin + block);
    Row sum(static_cast<size_t>(dim));
    for (int64_t i = begin; i < end; ++i) {
      const Row row = row_at(i);
      for (size_t d = 0; d < row.size(); ++d) sum[d] += row[d];
    }
    for (const double value : sum) pooled.push_back(static_cast<float>(value / static_cast<double>(end - begin)));
  }
}

}  // namespace

void attend(const AttnArgs& args) {
  Call(args).run();
}

void merge(HeadsView into, float* into_lse, const Partial& from, float gain) {
  for (int64_t row = 0; row < into.n_rows; ++row) {
    for (int32_t head = 0; head < into.n_head; ++head) {
      float& lse = into_lse[row * into.n_head + head];
      const double a = lse;
      const double b = static_cast<double>(from.lse[row * into.n_head + head]) + std::log(static_cast<double>(gain));
      const double max = std::max(a, b);
      if (max == kNone) continue;  // neither saw anything
      const double weight_a = std::exp(a - max);
      const double weight_b = std::exp(b - max);
      float* o = into.at(row, head);
      const float* other = from.o.at(row, head);
      for (int32_t d = 0; d < into.head_dim; ++d) {
        o[d] = static_cast<float>((weight_a * o[d] + weight_b * other[d]) / (weight_a + weight_b));
      }
      lse = static_cast<float>(max + std::log(weight_a + weight_b));
    }
  }
}

void score_window(const ProbeArgs& args, int32_t head, std::vector<float>& probabilities) {
  const int32_t group = args.q.n_head / static_cast<int32_t>(args.kv.heads.size());
  const KvHead& kv = args.kv.heads[static_cast<size_t>(head / group)];
  const auto n_slots = static_cast<size_t>(kv.n_slots);
  probabilities.assign(static_cast<size_t>(args.q.n_rows) * n_slots, 0.0F);
  for (int64_t row = 0; row < args.q.n_rows; ++row) {
    const Row q = query(args.q, row, head);
    Row logits(n_slots, kNone);
    for (int32_t slot = 0; slot < kv.n_slots; ++slot) {
      if (!sees(kv, args.limit[row], args.window, slot)) continue;
      const Row k = load_row(kv.k, args.kv.k_type, args.kv.head_dim, slot);
      logits[static_cast<size_t>(slot)] = logit(dot(q, k), args.scale, args.softcap, kv, slot);
    }
    const double max = n_slots == 0 ? kNone : *std::max_element(logits.begin(), logits.end());
    if (max == kNone) continue;
    double sum = 0;
    for (const double x : logits) sum += std::exp(x - max);
    for (size_t slot = 0; slot < n_slots; ++slot) {
      probabilities[static_cast<size_t>(row) * n_slots + slot] = static_cast<float>(std::exp(logits[slot] - max) / sum);
    }
  }
}

void pool_queries(const HeadsView& q, int32_t head, int32_t block, std::vector<float>& pooled) {
  pool(
      q.n_rows, block, q.head_dim, [&](int64_t row) { return query(q, row, head); }, pooled);
}

void pool_keys(const KvView& kv, int32_t kv_head, int32_t block, std::vector<float>& pooled) {
  const KvHead& head = kv.heads[static_cast<size_t>(kv_head)];
  const auto row_at = [&](int64_t slot) {
    return load_row(head.k, kv.k_type, kv.head_dim, static_cast<int32_t>(slot));
  };
  pool(head.n_slots, block, kv.head_dim, row_at, pooled);
}

void score_blocks(const std::vector<float>& a, const std::vector<float>& b, int32_t dim, float scale,
                  std::vector<float>& scores) {
  const auto n = static_cast<size_t>(dim);
  scores.clear();
  for (size_t i = 0; i < a.size(); i += n) {
    for (size_t j = 0; j < b.size(); j += n) {
      double sum = 0;
      for (size_t d = 0; d < n; ++d) sum += static_cast<double>(a[i + d]) * b[j + d];
      scores.push_back(static_cast<float>(sum * scale));
    }
  }
}

}  // namespace winnow::ref
