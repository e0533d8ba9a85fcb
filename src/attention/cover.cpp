#include "attention/cover.h"

#include <cmath>
#include <limits>
#include <utility>

#include "attention/lines.h"

namespace winnow {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

const KvHead& kv_head_of(const CoverArgs& args, int32_t head) {
  const std::span<const KvHead> heads = args.probe.kv.heads;
  return heads[static_cast<size_t>(head / (args.q.n_head / static_cast<int32_t>(heads.size())))];
}

// The probe's mass by key and by distance counted from the far end, each of sum 1.
LineMass project(Ops& ops, const ProbeArgs& probe, int32_t head) {
  std::vector<float> probabilities;
  LineMass lines = line_mass(ops, probe, head, probabilities);
  std::reverse(lines.slash.begin(), lines.slash.end());
  for (float& mass : lines.vertical) mass /= static_cast<float>(probe.q.n_rows);
  for (float& mass : lines.slash) mass /= static_cast<float>(probe.q.n_rows);
  return lines;
}

std::vector<float> block_sums(std::span<const float> values, int32_t block) {
  std::vector<float> sums(static_cast<size_t>(ceil_div(static_cast<int64_t>(values.size()), block)));
  for (size_t i = 0; i < values.size(); ++i) sums[i / static_cast<size_t>(block)] += values[i];
  return sums;
}

void softmax(std::span<float> scores) {
  const float top = *std::max_element(scores.begin(), scores.end());
  double sum = 0;
  for (float& score : scores) sum += score = std::exp(score - top);
  for (float& score : scores) score = static_cast<float>(score / sum);
}

// Square root of the Jensen-Shannon divergence, natural logarithm.
double divergence(std::span<const float> p, std::span<const float> q) {
  double sum = 0;
  const auto term = [](double x, double mean) { return x > 0 ? x * std::log(x / mean) : 0.0; };
  for (size_t i = 0; i < p.size(); ++i) {
    const double mean = (double{p[i]} + double{q[i]}) / 2;
    sum += term(p[i], mean) + term(q[i], mean);
  }
  return std::sqrt(std::max(0.0, sum / 2));
}

class Cover {
 public:
  Cover(Ops& ops, const CoverArgs& args, int32_t head)
      : ops_(ops), args_(args), head_(head), kv_(kv_head_of(args, head)) {}

  HeadLists lists(std::vector<float>& pooled_keys) const {
    HeadLists lists;
    const int32_t n = n_keys(), n_block = ceil_div(n, args_.block);
    const bool all = n <= cover_all_slots(args_.block, args_.least);
    Map map;
    map.vertical.assign(static_cast<size_t>(n_block), all ? 1 : 0);
    map.slash.assign(static_cast<size_t>(n_block), 0);
    if (!all) fill(pooled_keys, map);

    const auto nb = static_cast<size_t>(n_block);
    for (int64_t row = 0; row < args_.q.n_rows; row += args_.block) {
      const int64_t last_row = std::min<int64_t>(row + args_.block, args_.q.n_rows) - 1;
      const int32_t first = slot_of_row(row) / args_.block, last = slot_of_row(last_row) / args_.block;
      const auto at = static_cast<size_t>(row / args_.block) * nb;
      const uint8_t* extra = map.extra.empty() ? nullptr : map.extra.data() + at;
      const bool is_last = last_row + 1 == args_.q.n_rows;
      const float* mass = nullptr;
      if (!map.mass.empty()) mass = extra != nullptr ? map.mass.data() + at : is_last ? map.mass.data() : nullptr;
      double kept = 0;
      for (int32_t c = 0; c <= last; ++c) {
        bool active = map.vertical[static_cast<size_t>(c)] != 0 || (extra != nullptr && extra[c] != 0);
        for (int32_t r = std::max(first, c); r <= last; ++r) active |= map.slash[static_cast<size_t>(r - c)] != 0;
        if (!active) continue;
        lists.block_begin.push_back(c * args_.block);
        if (mass != nullptr) kept += double{mass[c]};
      }
      lists.end_block();
      if (mass != nullptr) lists.kept.add(kept);
    }
    if (all) lists.kept.add(1);
    return lists;
  }

 private:
  // The block map of one head: key block c of row block r is computed if vertical[c], slash[r - c], or if the query
  // block asks for it in `extra` [n_block_q, n_block].
  struct Map {
    std::vector<uint8_t> vertical, slash, extra;
    // What the choice takes each block to hold: the pooled map [n_block_q, n_block] beside `extra`, else what the
    // probe, the last block of rows, spends [n_block].
    std::vector<float> mass;
  };

  int32_t n_keys() const { return visible_slots(kv_, args_.limit.back()); }
  int32_t slot_of_row(int64_t row) const { return visible_slots(kv_, args_.limit[static_cast<size_t>(row)]) - 1; }

  // Blocks that hold a given share of `mass`, within the budgets.
  int32_t n_cover(std::span<const float> mass, int32_t n_block) const {
    const int64_t covered = top_p_count(mass, args_.share) / args_.block + 1;
    const int32_t most = std::min(args_.most, n_block);
    return static_cast<int32_t>(std::min<int64_t>(std::max<int64_t>(covered, args_.least), most));
  }

  void fill(const std::vector<float>& pooled_keys, Map& map) const {
    const int32_t n = n_keys(), n_block = ceil_div(n, args_.block);
    const LineMass lines = project(ops_, args_.probe, head_);
    std::vector<float> by_block = block_sums(lines.vertical, args_.block);
    std::vector<float> by_distance = block_sums(lines.slash, args_.block);

    std::vector<float> pooled_probe, estimate;
    ops_.pool_queries(args_.probe.q, head_, args_.block, pooled_probe);
    ops_.score_blocks(pooled_probe, pooled_keys, args_.q.head_dim, args_.probe.scale, estimate);
    estimate.resize(static_cast<size_t>(n_block));
    softmax(estimate);
    const bool query_aware = divergence(by_block, estimate) < args_.distance;

    const int32_t n_vertical = query_aware ? args_.least : n_cover(lines.vertical, n_block);
    const int32_t n_slash = query_aware ? args_.least : n_cover(lines.slash, n_block);
    if (!query_aware) map.mass = by_block;
    by_block.front() = kInfinity;
    by_distance.back() = kInfinity;
    for (const int32_t c : top_k(by_block, n_vertical)) map.vertical[static_cast<size_t>(c)] = 1;
    for (const int32_t i : top_k(by_distance, n_slash)) map.slash[static_cast<size_t>(n_block - 1 - i)] = 1;
    if (query_aware) add_query_aware(pooled_keys, map);
  }

  // Takes the best blocks of the pooled map, over all query blocks together, while their sum stays within the share.
  void add_query_aware(const std::vector<float>& pooled_keys, Map& map) const {
    std::vector<float> pooled_queries, scores;
    ops_.pool_queries(args_.q, head_, args_.block, pooled_queries);
    ops_.score_blocks(pooled_queries, pooled_keys, args_.q.head_dim, args_.probe.scale, scores);
    const size_t n_key_block = pooled_keys.size() / static_cast<size_t>(args_.q.head_dim);
    const size_t n_block = map.vertical.size();
    const auto n_block_q = static_cast<size_t>(ceil_div(args_.q.n_rows, args_.block));
    map.mass.assign(n_block_q * n_block, 0);
    std::vector<std::pair<float, int32_t>> best;  // probability, flat index [n_block_q, n_block]
    for (size_t b = 0; b < n_block_q; ++b) {
      const int64_t last_row = std::min<int64_t>((static_cast<int64_t>(b) + 1) * args_.block, args_.q.n_rows) - 1;
      const auto n_seen = static_cast<size_t>(slot_of_row(last_row) / args_.block) + 1;
      const std::span<float> row(scores.data() + b * n_key_block, n_seen);
      softmax(row);
      std::copy(row.begin(), row.end(), map.mass.begin() + static_cast<std::ptrdiff_t>(b * n_block));
      for (size_t c = 0; c < n_seen; ++c) best.emplace_back(row[c], static_cast<int32_t>(b * n_block + c));
    }
    std::sort(best.begin(), best.end(), [](const auto& a, const auto& b) {
      return a.first != b.first ? a.first > b.first : a.second < b.second;
    });
    map.extra.assign(n_block_q * n_block, 0);
    const double limit = args_.share * static_cast<double>(n_block_q);
    double sum = 0;
    for (const auto& [probability, index] : best) {
      sum += double{probability};
      if (sum > limit) break;
      map.extra[static_cast<size_t>(index)] = 1;
    }
  }

  Ops& ops_;
  const CoverArgs& args_;
  const int32_t head_;
  const KvHead& kv_;
};

}  // namespace

HeadLists cover_blocks(Ops& ops, const CoverArgs& args, int32_t head, std::vector<float>& pooled_keys) {
  return Cover(ops, args, head).lists(pooled_keys);
}

Selection Ops::select_cover(const CoverArgs& args) {
  const auto n_kv = static_cast<int64_t>(args.probe.kv.heads.size());
  std::vector<std::vector<float>> pooled_keys(static_cast<size_t>(n_kv));
  for_each(n_kv, [&](int64_t head, int /*thread*/) {
    pool_keys(args.probe.kv, static_cast<int32_t>(head), args.block, pooled_keys[static_cast<size_t>(head)]);
  });
  std::vector<HeadLists> lists(static_cast<size_t>(args.q.n_head));
  const int64_t group = args.q.n_head / n_kv;
  for_each(args.q.n_head, [&](int64_t head, int /*thread*/) {
    lists[static_cast<size_t>(head)] =
        cover_blocks(*this, args, static_cast<int32_t>(head), pooled_keys[static_cast<size_t>(head / group)]);
  });
  return join_lists(lists, args.block, args.block);
}

}  // namespace winnow
