// Decode on the CPU: few rows, many slots. K and V of a kv head are read once, straight from the cache, by all query
// rows of its group. The slots are cut into parts of fixed size (never by the number of threads, which must not change
// a bit), each part gives a partial softmax, and the parts are added up in order.
#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <limits>

#include "kernels/cpu/attend_lists.h"

namespace winnow::cpu {
namespace {

constexpr int32_t kPartTiles = 8;
constexpr int32_t kPartSlots = kPartTiles * kTileSlots;
constexpr float kLog2E = 1.44269504F;
constexpr float kLn2 = 0.693147181F;
constexpr float kNothing = -std::numeric_limits<float>::infinity();
// Adding up the parts is shared between threads from this many values on.
constexpr int64_t kSharedMerge = 1 << 16;

/// Up to kTileSlots slots: consecutive ones, or columns of a list.
struct Keys {
  const int32_t* column;
  int32_t first;
  int32_t n;

  int32_t slot(int32_t i) const { return column == nullptr ? first + i : column[i]; }
};

/// Query heads that read the same keys, with all their rows: query i is row i % n_rows of head first_head + i / n_rows.
struct Group {
  const KvHead* kv;
  const Visible* visible;
  int32_t first_head;
  int32_t n_heads;
  int32_t n_q;
  int64_t first_part;
  int64_t n_parts;
  int64_t first_query;  // over all groups
  std::vector<Keys> tiles;
  std::vector<char> keep;  // [tile, head] what skip-softmax left
};

class Decode {
 public:
  Decode(const AttendKernel& kernel, CpuContext& context, const AttnArgs& args)
      : kernel_(kernel),
        context_(context),
        args_(args),
        n_rows_(static_cast<int32_t>(args.q.n_rows)),
        dim_((args.q.head_dim + kernel.lanes - 1) / kernel.lanes * kernel.lanes) {
    for (int32_t h = 0; args.skip != nullptr && h < args.q.n_head; ++h) votes_ = votes_ || args.skip[h] > kNothing;
    find_groups();
    allocate();
  }

  void run() {
    if (votes_) {
      context_.pool.parallel_shares(n_parts_, [&](int64_t part, int thread) { scores(part, thread); });
      for (Group& group : groups_) vote(group);
      context_.pool.parallel_shares(n_parts_, [&](int64_t part, int thread) { values(part, thread); });
    } else {
      context_.pool.parallel_shares(n_parts_, [&](int64_t part, int thread) {
        scores(part, thread);
        values(part, thread);
      });
    }
    if (n_parts_ * most_queries_ * dim_ >= kSharedMerge) {
      context_.pool.parallel_for(n_queries_, [&](int64_t query, int /*thread*/) { add_parts(query); });
    } else {
      for (int64_t query = 0; query < n_queries_; ++query) add_parts(query);
    }
    if (args_.counts != nullptr) {
      args_.counts->permitted += permitted_;
      args_.counts->computed += computed_.load();
    }
  }

 private:
  void find_groups() {
    const auto n_kv = static_cast<int32_t>(args_.kv.heads.size());
    const int32_t size = args_.q.n_head / n_kv;
    visible_.reserve(static_cast<size_t>(n_kv));
    for (int32_t h = 0; h < n_kv; ++h) {
      const KvHead& kv = args_.kv.heads[static_cast<size_t>(h)];
      visible_.push_back(visible_slots(kv, args_.limit, n_rows_, args_.window));
      permitted_ += visible_.back().pairs() * size;
      const KeyLists lists = lists_of(args_, h * size, 0, kv.n_slots);
      bool same = true;
      for (int32_t i = 1; i < size; ++i) same = same && same_lists(lists, lists_of(args_, h * size + i, 0, kv.n_slots));
      for (int32_t i = 0; i < (same ? 1 : size); ++i) add_group(kv, visible_.back(), h * size + i, same ? size : 1);
    }
  }

  void add_group(const KvHead& kv, const Visible& visible, int32_t head, int32_t n_heads) {
    Group group{&kv, &visible, head, n_heads, n_heads * n_rows_, n_parts_, 0, n_queries_, {}, {}};
    const int32_t low = visible.begin.front();
    const int32_t high = visible.end.back();
    const KeyLists lists = lists_of(args_, head, 0, kv.n_slots);
    const auto n_columns = static_cast<int32_t>(lists.column.size());
    for (int32_t at = 0; at < n_columns; at += kTileSlots) {
      const auto part =
          lists.column.subspan(static_cast<size_t>(at), static_cast<size_t>(std::min(kTileSlots, n_columns - at)));
      const auto begin = std::lower_bound(part.begin(), part.end(), low);
      const auto end = std::lower_bound(begin, part.end(), high);
      if (begin < end) group.tiles.push_back({&*begin, 0, static_cast<int32_t>(end - begin)});
    }
    for (const int32_t begin : lists.block) {
      for (int32_t at = begin; at < begin + lists.block_k; at += kTileSlots) {
        const int32_t from = std::max(at, low);
        const int32_t to = std::min({at + kTileSlots, begin + lists.block_k, high});
        if (from < to) group.tiles.push_back({nullptr, from, to - from});
      }
    }
    group.n_parts = (static_cast<int64_t>(group.tiles.size()) + kPartTiles - 1) / kPartTiles;
    group.keep.assign(group.tiles.size() * static_cast<size_t>(n_heads), 1);
    part_group_.insert(part_group_.end(), static_cast<size_t>(group.n_parts), groups_.size());
    n_parts_ += group.n_parts;
    n_queries_ += group.n_q;
    most_queries_ = std::max(most_queries_, group.n_q);
    groups_.push_back(std::move(group));
  }

  void allocate() {
    const auto floats = [this](int64_t n) { return Buffer(static_cast<size_t>(n) * sizeof(float), &context_.memory); };
    const int64_t n_scores = votes_ ? n_parts_ : context_.pool.size();
    query_bytes_ = kernel_.query_bytes(args_.kv.k_type, args_.q.head_dim);
    queries_ = Buffer(query_bytes_ * static_cast<size_t>(n_queries_), &context_.memory);
    scores_ = floats(n_scores * most_queries_ * kPartSlots);
    partial_o_ = floats(n_parts_ * most_queries_ * dim_);
    partial_max_ = floats(n_parts_ * most_queries_);
    partial_sum_ = floats(n_parts_ * most_queries_);
    tile_max_ = floats(votes_ ? n_parts_ * kPartTiles * most_queries_ : 0);
    row_bytes_ = (kernel_.row_bytes(args_.q.head_dim) + 63) / 64 * 64;
    rows_ = Buffer(row_bytes_ * static_cast<size_t>(context_.pool.size()), &context_.memory);
    const float factor = args_.softcap > 0 ? args_.scale / args_.softcap : args_.scale * kLog2E;
    std::vector<float> scaled(static_cast<size_t>(args_.q.head_dim));
    for (const Group& group : groups_) {
      for (int32_t i = 0; i < group.n_q; ++i) {
        const float* from = args_.q.at(i % n_rows_, group.first_head + i / n_rows_);
        std::transform(from, from + args_.q.head_dim, scaled.begin(), [factor](float x) { return x * factor; });
        kernel_.pack_query(scaled.data(), args_.kv.k_type, args_.q.head_dim, query_at(group.first_query + i));
      }
    }
  }

  std::byte* query_at(int64_t i) const { return queries_.data() + query_bytes_ * static_cast<size_t>(i); }

  const Group& group_of(int64_t part) const { return groups_[part_group_[static_cast<size_t>(part)]]; }

  std::span<const Keys> tiles_of(const Group& group, int64_t part) const {
    const auto begin = static_cast<size_t>(part - group.first_part) * kPartTiles;
    return std::span(group.tiles).subspan(begin, std::min<size_t>(kPartTiles, group.tiles.size() - begin));
  }

  /// [n_q, kPartSlots]; tile t of the part begins at t * kTileSlots.
  float* scores_of(int64_t part, int thread) const {
    return scores_.as<float>() + (votes_ ? part : thread) * most_queries_ * kPartSlots;
  }

  using RowList = std::array<const std::byte*, kTileSlots>;

  /// Addresses of the rows of `keys`; the last one is repeated.
  static void find_rows(const Keys& keys, std::span<const std::byte* const> blocks, size_t bytes, RowList& rows) {
    for (int32_t i = 0; i < keys.n;) {
      const int32_t slot = keys.slot(i);
      const int32_t at = slot % kBlockSlots;
      const std::byte* row = blocks[static_cast<size_t>(slot / kBlockSlots)] + bytes * static_cast<size_t>(at);
      const int32_t end = keys.column != nullptr ? i + 1 : std::min(keys.n, i + kBlockSlots - at);
      for (; i < end; ++i, row += bytes) rows[static_cast<size_t>(i)] = row;
    }
    std::fill(rows.begin() + keys.n, rows.end(), rows[static_cast<size_t>(keys.n - 1)]);
  }

  /// All logits of one part, in base 2; -infinity where a row sees nothing or the tile is short.
  void scores(int64_t part, int thread) {
    const Group& group = group_of(part);
    const std::span<const Keys> tiles = tiles_of(group, part);
    const size_t bytes = type_bytes(args_.kv.k_type, args_.q.head_dim);
    const size_t v_bytes = type_bytes(args_.kv.v_type, args_.q.head_dim);
    float* s = scores_of(part, thread);
    std::array<RowList, 2> rows;
    find_rows(tiles[0], group.kv->k, bytes, rows[0]);
    for (size_t t = 0; t < tiles.size(); ++t) {
      const Keys& keys = tiles[t];
      float* at = s + t * kTileSlots;
      const bool more = t + 1 < tiles.size();  // behind the last keys come the values, unless there is a vote first
      if (more) find_rows(tiles[t + 1], group.kv->k, bytes, rows[(t + 1) % 2]);
      if (!more && !votes_) find_rows(tiles[0], group.kv->v, v_bytes, rows[(t + 1) % 2]);
      kernel_.dot_rows({rows[t % 2].data(), more || !votes_ ? rows[(t + 1) % 2].data() : nullptr, keys.n},
                       args_.kv.k_type, args_.q.head_dim, query_at(group.first_query), group.n_q, at, kPartSlots,
                       rows_.data() + row_bytes_ * static_cast<size_t>(thread));
      shape(group, keys, at);
      if (!votes_) continue;
      float* largest = tile_max_.as<float>() + (part * kPartTiles + static_cast<int64_t>(t)) * most_queries_;
      for (int32_t i = 0; i < group.n_q; ++i) largest[i] = kernel_.max_of(at + i * kPartSlots, kTileSlots);
    }
  }

  void shape(const Group& group, const Keys& keys, float* at) const {
    alignas(64) float bias[kTileSlots] = {};
    for (int32_t i = 0; group.kv->bias != nullptr && i < keys.n; ++i) bias[i] = group.kv->bias[keys.slot(i)] * kLog2E;
    const bool shapes = args_.softcap > 0 || group.kv->bias != nullptr;
    for (int32_t q = 0; q < group.n_q; ++q) {
      float* s = at + q * kPartSlots;
      for (int32_t i = keys.n; i < kTileSlots; ++i) s[i] = 0;
      if (shapes) kernel_.shape_logits(s, kTileSlots, args_.softcap, group.kv->bias == nullptr ? nullptr : bias);
      const auto row = static_cast<size_t>(q % n_rows_);
      const int32_t begin = group.visible->begin[row];
      const int32_t end = group.visible->end[row];
      for (int32_t i = keys.n; i < kTileSlots; ++i) s[i] = kNothing;
      if (keys.slot(0) >= begin && keys.slot(keys.n - 1) < end) continue;
      for (int32_t i = 0; i < keys.n; ++i) {
        if (keys.slot(i) < begin || keys.slot(i) >= end) s[i] = kNothing;
      }
    }
  }

  /// Which tiles skip-softmax keeps: one verdict for a single row of all heads, else one for each head.
  void vote(Group& group) {
    const int32_t voters = n_rows_ == 1 ? group.n_heads : 1;  // heads that must agree
    for (int32_t head = 0; head < group.n_heads; head += voters) {
      std::vector<float> running(static_cast<size_t>(voters * n_rows_), kNothing);
      bool first = true;
      for (size_t t = 0; t < group.tiles.size(); ++t) {
        const float* largest = tile_max_.as<float>() +
                               (group.first_part * kPartTiles + static_cast<int64_t>(t)) * most_queries_ +
                               head * n_rows_;
        bool seen = false;
        bool keep = first;
        for (size_t i = 0; i < running.size(); ++i) {
          if (largest[i] == kNothing) continue;
          seen = true;
          const float threshold = args_.skip[group.first_head + head + static_cast<int32_t>(i) / n_rows_] * kLog2E;
          if (!(largest[i] - std::max(largest[i], running[i]) < threshold)) keep = true;
        }
        keep = keep && seen;
        first = first && !seen;
        for (int32_t h = head; h < head + voters; ++h) {
          group.keep[t * static_cast<size_t>(group.n_heads) + static_cast<size_t>(h)] = keep ? 1 : 0;
        }
        for (size_t i = 0; keep && i < running.size(); ++i) running[i] = std::max(running[i], largest[i]);
      }
    }
  }

  bool kept(const Group& group, size_t tile, int32_t head) const {
    return group.keep[tile * static_cast<size_t>(group.n_heads) + static_cast<size_t>(head)] != 0;
  }

  /// Softmax of one part's logits and its product with V.
  void values(int64_t part, int thread) {
    const Group& group = group_of(part);
    const std::span<const Keys> tiles = tiles_of(group, part);
    const auto first_tile = static_cast<size_t>(part - group.first_part) * kPartTiles;
    float* s = scores_of(part, thread);
    const auto n = static_cast<int32_t>(tiles.size()) * kTileSlots;
    for (int32_t q = 0; q < group.n_q; ++q) {
      float* row = s + q * kPartSlots;
      for (size_t t = 0; votes_ && t < tiles.size(); ++t) {
        if (!kept(group, first_tile + t, q / n_rows_)) std::fill_n(row + t * kTileSlots, kTileSlots, kNothing);
      }
      const float max = kernel_.max_of(row, n);
      partial_max_.as<float>()[part * most_queries_ + q] = max;
      partial_sum_.as<float>()[part * most_queries_ + q] = kernel_.exp2_of(row, n, max == kNothing ? 0 : max);
    }
    mix(part, s, thread);
  }

  /// o = P V over the tiles that any head keeps; the rows that come next are fetched meanwhile.
  void mix(int64_t part, const float* s, int thread) {
    const Group& group = group_of(part);
    const std::span<const Keys> tiles = tiles_of(group, part);
    const auto first_tile = static_cast<size_t>(part - group.first_part) * kPartTiles;
    float* o = partial_o_.as<float>() + part * most_queries_ * dim_;
    const size_t bytes = type_bytes(args_.kv.v_type, args_.q.head_dim);
    std::fill_n(o, static_cast<int64_t>(group.n_q) * dim_, 0.0F);
    std::vector<size_t> read;
    int64_t computed = 0;
    for (size_t t = 0; t < tiles.size(); ++t) {
      bool any = false;
      for (int32_t h = 0; h < group.n_heads; ++h) {
        if (!kept(group, first_tile + t, h)) continue;
        any = true;
        computed += seen_pairs(group, tiles[t]);
      }
      if (any) read.push_back(t);
    }
    computed_ += computed;
    std::array<RowList, 2> rows;
    if (!read.empty()) find_rows(tiles[read[0]], group.kv->v, bytes, rows[0]);
    for (size_t i = 0; i < read.size(); ++i) {
      bool more = i + 1 < read.size();
      if (more) {
        find_rows(tiles[read[i + 1]], group.kv->v, bytes, rows[(i + 1) % 2]);
      } else if (!votes_ && part + 1 < n_parts_) {  // most likely the thread goes on there
        const Group& other = group_of(part + 1);
        find_rows(tiles_of(other, part + 1)[0], other.kv->k, type_bytes(args_.kv.k_type, args_.q.head_dim),
                  rows[(i + 1) % 2]);
        more = true;
      }
      kernel_.mix_rows({rows[i % 2].data(), more ? rows[(i + 1) % 2].data() : nullptr, tiles[read[i]].n},
                       args_.kv.v_type, args_.q.head_dim, s + read[i] * kTileSlots, kPartSlots, group.n_q, o,
                       rows_.data() + row_bytes_ * static_cast<size_t>(thread));
    }
  }

  /// (row, slot) pairs of one head that a tile holds.
  int64_t seen_pairs(const Group& group, const Keys& keys) const {
    int64_t pairs = 0;
    for (size_t row = 0; row < static_cast<size_t>(n_rows_); ++row) {
      const int32_t begin = group.visible->begin[row];
      const int32_t end = group.visible->end[row];
      if (keys.slot(0) >= begin && keys.slot(keys.n - 1) < end) {
        pairs += keys.n;
        continue;
      }
      for (int32_t i = 0; i < keys.n; ++i) pairs += keys.slot(i) >= begin && keys.slot(i) < end ? 1 : 0;
    }
    return pairs;
  }

  /// One query's result out of its parts, by their log-sum-exp.
  void add_parts(int64_t query) {
    const auto group =
        std::find_if(groups_.begin(), groups_.end(), [query](const Group& g) { return query < g.first_query + g.n_q; });
    const auto i = static_cast<int32_t>(query - group->first_query);
    const int64_t end = group->first_part + group->n_parts;
    float max = kNothing;
    for (int64_t part = group->first_part; part < end; ++part) {
      max = std::max(max, partial_max_.as<float>()[part * most_queries_ + i]);
    }
    const int32_t head = group->first_head + i / n_rows_;
    float* o = args_.o.at(i % n_rows_, head);
    std::fill_n(o, args_.q.head_dim, 0.0F);
    float sum = 0;
    for (int64_t part = group->first_part; max > kNothing && part < end; ++part) {
      const float weight = std::exp2(partial_max_.as<float>()[part * most_queries_ + i] - max);
      sum += partial_sum_.as<float>()[part * most_queries_ + i] * weight;
      const float* from = partial_o_.as<float>() + (part * most_queries_ + i) * dim_;
      for (int32_t d = 0; d < args_.q.head_dim; ++d) o[d] += weight * from[d];
    }
    for (int32_t d = 0; sum > 0 && d < args_.q.head_dim; ++d) o[d] /= sum;
    if (args_.lse == nullptr) return;
    args_.lse[i % n_rows_ * args_.q.n_head + head] = sum > 0 ? (max + std::log2(sum)) * kLn2 : kNothing;
  }

  const AttendKernel& kernel_;
  CpuContext& context_;
  const AttnArgs& args_;
  int32_t n_rows_;
  int32_t dim_;  // head_dim rounded up to the lanes
  bool votes_ = false;
  std::vector<Visible> visible_;  // [kv head]
  std::vector<Group> groups_;
  std::vector<size_t> part_group_;  // [part]
  int64_t n_parts_ = 0;
  int64_t n_queries_ = 0;
  int32_t most_queries_ = 0;  // of one group
  int64_t permitted_ = 0;
  std::atomic<int64_t> computed_{0};
  size_t query_bytes_ = 0;
  Buffer queries_;      // [query] scaled and packed
  Buffer scores_;       // [part or thread, most_queries, kPartSlots]
  Buffer partial_o_;    // [part, most_queries, dim]
  Buffer partial_max_;  // [part, most_queries]
  Buffer partial_sum_;
  Buffer tile_max_;  // [part, kPartTiles, most_queries]
  size_t row_bytes_ = 0;
  Buffer rows_;  // [thread] scratch of the row kernels
};

}  // namespace

void attend_few(const AttendKernel& kernel, CpuContext& context, const AttnArgs& args) {
  Decode(kernel, context, args).run();
}

}  // namespace winnow::cpu
