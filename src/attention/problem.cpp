#include "attention/problem.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <set>

#include "attention/drawn_lines.h"
#include "base/random.h"

namespace winnow {
namespace {

// So many numbers of queries, and of keys and values, are drawn; longer problems repeat them.
constexpr size_t kMostDrawn = size_t{1} << 26;

double uniform(uint64_t& state) {
  return static_cast<double>(next_random(state) >> 11) * 0x1p-53;
}

/// Sum of four uniform numbers, scaled to variance 1: near enough to normal, and cheap.
float normal(uint64_t& state) {
  const uint64_t bits = next_random(state);
  double sum = 0;
  for (int i = 0; i < 4; ++i) sum += static_cast<double>((bits >> (16 * i)) & 0xffffU);
  return static_cast<float>((sum / 65536 - 2) * 1.7320508);
}

void encode_row(const std::vector<float>& values, Type type, std::byte* to) {
  if (type == Type::q8_0) {
    for (size_t begin = 0; begin < values.size(); begin += 32, to += 34) {
      float largest = 0;
      for (size_t i = begin; i < begin + 32; ++i) largest = std::max(largest, std::abs(values[i]));
      const uint16_t scale = f32_to_f16(largest / 127);
      std::memcpy(to, &scale, 2);
      for (size_t i = 0; i < 32; ++i) {
        const float q = largest == 0 ? 0 : std::round(values[begin + i] / (largest / 127));
        to[2 + i] = static_cast<std::byte>(static_cast<int8_t>(std::clamp(q, -127.0F, 127.0F)));
      }
    }
    return;
  }
  for (size_t i = 0; i < values.size(); ++i) {
    if (type == Type::f32) {
      std::memcpy(to + i * 4, &values[i], 4);
    } else if (type == Type::fp8) {
      to[i] = static_cast<std::byte>(f32_to_fp8(values[i]));
    } else {
      const uint16_t bits = type == Type::f16 ? f32_to_f16(values[i]) : f32_to_bf16(values[i]);
      std::memcpy(to + i * 2, &bits, 2);
    }
  }
}

}  // namespace

ProblemData::ProblemData(const Problem& problem, int copies) : problem_(problem), state_(problem.seed) {
  const auto n_rows = static_cast<size_t>(problem.rows);
  const auto n_heads = static_cast<size_t>(problem.heads);
  const auto dim = static_cast<size_t>(problem.dim);
  q_.resize(n_rows * n_heads * dim);
  const size_t n_drawn = std::min(q_.size(), kMostDrawn);
  for (size_t i = 0; i < n_drawn; ++i) q_[i] = normal(state_);
  for (size_t i = n_drawn; i < q_.size(); i += n_drawn) {
    std::copy_n(q_.begin(), std::min(n_drawn, q_.size() - i), q_.begin() + static_cast<ptrdiff_t>(i));
  }
  o_.assign(q_.size(), 0.0F);
  lse_.assign(n_rows * n_heads, 0.0F);
  make_positions();
  make_caches(copies);
  if (problem.lines()) {
    selection_ = lay_drawn_lines(problem, heads_[0][0], limit_);
  } else if (problem.sparse()) {
    make_selection();
  }
  const auto stride = static_cast<int64_t>(n_heads * dim);
  args_.q = {q_.data(), problem.rows, problem.heads, problem.dim, stride};
  args_.kv = {problem.k_type, problem.v_type, problem.dim, heads_[0]};
  args_.limit = limit_.data();
  args_.selection = problem.sparse() ? &selection_ : nullptr;
  args_.scale = 1 / std::sqrt(static_cast<float>(problem.dim));
  args_.softcap = static_cast<float>(problem.softcap);
  args_.window = problem.window;
  if (problem.skip > 0) {
    skip_.assign(n_heads, static_cast<float>(std::log(problem.skip)));
    args_.skip = skip_.data();
  }
  args_.o = {o_.data(), problem.rows, problem.heads, problem.dim, stride};
  args_.lse = lse_.data();
}

AttnArgs ProblemData::args_of_copy(int copy) const {
  AttnArgs args = args_;
  args.kv.heads = heads_[static_cast<size_t>(copy)];
  return args;
}

int64_t ProblemData::kv_bytes() const {
  const size_t row = type_bytes(problem_.k_type, problem_.dim) + type_bytes(problem_.v_type, problem_.dim);
  return static_cast<int64_t>(row) * problem_.n_slots() * problem_.kv;
}

/// Positions of slots, with holes between them, and the position of each row: the last rows of the sequence.
void ProblemData::make_positions() {
  int32_t position = 0;
  for (int64_t slot = 0; slot < problem_.n_slots(); ++slot, ++position) {
    while (uniform(state_) < problem_.holes) ++position;
    idx_.push_back(position);
    if (problem_.bias) bias_.push_back(normal(state_));
  }
  for (int64_t row = 0; row < problem_.rows; ++row) {
    limit_.push_back(idx_.back() - static_cast<int32_t>(problem_.rows - 1 - row));
  }
}

void ProblemData::make_caches(int copies) {
  const size_t k_row = type_bytes(problem_.k_type, problem_.dim);
  const size_t v_row = type_bytes(problem_.v_type, problem_.dim);
  const auto n_blocks = static_cast<size_t>((problem_.n_slots() + kBlockSlots - 1) / kBlockSlots);
  std::vector<float> values(static_cast<size_t>(problem_.dim));
  const size_t n_drawn = std::max<size_t>(kMostDrawn / (values.size() * kBlockSlots), 2) / 2 * 2;  // blocks
  const auto add_block = [&](size_t row_bytes, Type type, bool alike) {
    if (blocks_.size() >= n_drawn) {
      blocks_.push_back(std::vector(blocks_[blocks_.size() - n_drawn]));
      return;
    }
    std::vector<std::byte>& block = blocks_.emplace_back(row_bytes * kBlockSlots);
    for (size_t slot = 0; slot < kBlockSlots; ++slot) {
      if (slot == 0 || !alike) std::generate(values.begin(), values.end(), [this] { return normal(state_); });
      encode_row(values, type, block.data() + slot * row_bytes);
    }
  };
  for (int copy = 0; copy < copies; ++copy) {
    heads_.emplace_back();
    for (int32_t h = 0; h < problem_.kv; ++h) {
      auto* k = lists_.emplace_back(std::make_unique<std::vector<const std::byte*>>()).get();
      auto* v = lists_.emplace_back(std::make_unique<std::vector<const std::byte*>>()).get();
      for (size_t b = 0; b < n_blocks; ++b) {
        if (copy == 0) {
          add_block(k_row, problem_.k_type, problem_.lines());  // alike: the estimate finds diagonals in clusters
          add_block(v_row, problem_.v_type, false);
        } else {  // the same numbers at another place
          blocks_.push_back(std::vector(blocks_[2 * (static_cast<size_t>(h) * n_blocks + b)]));
          blocks_.push_back(std::vector(blocks_[2 * (static_cast<size_t>(h) * n_blocks + b) + 1]));
        }
        k->push_back((blocks_.end() - 2)->data());
        v->push_back((blocks_.end() - 1)->data());
      }
      heads_.back().push_back({*k, *v, static_cast<int32_t>(problem_.n_slots()),
                               problem_.holes > 0 ? idx_.data() : nullptr, problem_.bias ? bias_.data() : nullptr});
    }
  }
}

void ProblemData::make_selection() {
  selection_.block_q = problem_.block_q;
  selection_.block_k = problem_.block_k;
  selection_.n_head = problem_.shared ? 1 : problem_.heads;
  selection_.n_block_q = static_cast<int32_t>((problem_.rows + problem_.block_q - 1) / problem_.block_q);
  selection_.block_ptr = {0};
  selection_.column_ptr = {0};
  for (int32_t head = 0; head < selection_.n_head; ++head) {
    for (int32_t block = 0; block < selection_.n_block_q; ++block) make_list(block);
  }
}

/// The lists of one query block: the block that holds its last key, others at random, then columns between them.
void ProblemData::make_list(int64_t block) {
  const auto last_row = std::min(problem_.rows, (block + 1) * problem_.block_q) - 1;
  const int32_t limit = limit_[static_cast<size_t>(last_row)];
  const auto n_seen = static_cast<int64_t>(std::upper_bound(idx_.begin(), idx_.end(), limit) - idx_.begin());
  const int64_t offset = problem_.unaligned ? random_below(state_, problem_.block_k) : 0;  // blocks begin earlier
  const int64_t n_blocks = (n_seen + offset + problem_.block_k - 1) / problem_.block_k;
  const auto share = static_cast<int64_t>(std::llround(problem_.density * static_cast<double>(n_blocks)));
  const int64_t wanted = problem_.density > 0 ? std::max<int64_t>(share, 1) : 0;
  std::set<int64_t> chosen;
  if (n_blocks > 0 && wanted > 0) chosen.insert(n_blocks - 1);
  while (std::ssize(chosen) < std::min(wanted, n_blocks)) chosen.insert(random_below(state_, n_blocks));
  if (offset > 0) chosen.erase(0);  // it would begin before slot 0
  for (const int64_t b : chosen) {
    selection_.block_begin.push_back(static_cast<int32_t>(b * problem_.block_k - offset));
  }
  std::set<int32_t> columns;
  for (int32_t i = 0; i < problem_.columns && n_seen > 0; ++i) {
    const int64_t slot = random_below(state_, n_seen);
    if (chosen.count((slot + offset) / problem_.block_k) == 0) columns.insert(static_cast<int32_t>(slot));
  }
  selection_.column.insert(selection_.column.end(), columns.begin(), columns.end());
  selection_.block_ptr.push_back(static_cast<int32_t>(selection_.block_begin.size()));
  selection_.column_ptr.push_back(static_cast<int32_t>(selection_.column.size()));
}

ProblemOn::ProblemOn(Device& device, const ProblemData& data, int copies) : device_(device), data_(data) {
  const HeadsView& q = data.args().q;
  const int64_t width = int64_t{q.n_head} * q.head_dim;
  q_ = device.activations(q.n_rows, width);
  o_ = device.activations(q.n_rows, width);
  lse_ = device.scratch(1, q.n_rows * q.n_head);
  device.upload(q_, q.data);
  selection_ = device.on_device(data.selection());
  for (int copy = 0; copy < copies; ++copy) {
    const AttnArgs args = data.args_of_copy(copy);
    heads_.emplace_back(args.kv.heads.begin(), args.kv.heads.end());
    for (KvHead& head : heads_.back()) {
      auto* k = lists_.emplace_back(std::make_unique<std::vector<const std::byte*>>()).get();
      auto* v = lists_.emplace_back(std::make_unique<std::vector<const std::byte*>>()).get();
      for (const std::byte* block : head.k) k->push_back(upload(block, args.kv.k_type).get());
      for (const std::byte* block : head.v) v->push_back(upload(block, args.kv.v_type).get());
      head.k = *k;
      head.v = *v;
    }
  }
}

std::shared_ptr<std::byte> ProblemOn::upload(const std::byte* from, Type type) {
  const size_t bytes = kv_block_bytes(type, data_.args().kv.head_dim);
  blocks_.push_back(device_.allocate(bytes));
  device_.upload_bytes(blocks_.back().get(), from, bytes);
  return blocks_.back();
}

AttnArgs ProblemOn::args(int copy) const {
  AttnArgs args = data_.args();
  args.q = q_->heads(args.q.head_dim);
  args.kv.heads = heads_[static_cast<size_t>(copy)];
  args.o = o_->heads(args.q.head_dim);
  args.lse = lse_->data;
  if (args.selection != nullptr) args.selection = &selection_;
  return args;
}

void ProblemOn::download(std::vector<float>& o, std::vector<float>& lse) {
  o.resize(static_cast<size_t>(o_->rows * o_->cols));
  lse.resize(static_cast<size_t>(lse_->cols));
  device_.download(o.data(), o_);
  device_.download(lse.data(), lse_);
}

}  // namespace winnow
