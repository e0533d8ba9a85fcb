// The computing half of attend_hopper: a warpgroup that multiplies, and keeps the softmax, of 64 rows.
#pragma once

#include "kernels/cuda/hopper_ring.cuh"
#include "kernels/cuda/hopper_rows.cuh"

namespace winnow::cuda::hopper {

constexpr float kLog2E = 1.4426950408889634F;
constexpr float kLn2 = 0.6931471805599453F;
constexpr float kNone = -std::numeric_limits<float>::infinity();

/// What stands between Q K^T and the softmax. plain: a factor; voting: skip-softmax as well; general: everything.
enum class Logits { plain, voting, general };

/// A computing warpgroup. A thread holds two rows of a tile, 8 apart, and of every 8 columns two; four threads, a quad,
/// share a row.
template <int kDim, Logits kLogits>
class Computer {
  using S = Shape<kDim>;
  static constexpr int kStep = S::kStep;
  static constexpr int32_t kNobody = -1;

  /// The pieces that are multiplied at a time.
  struct Step {
    int32_t slot[kStep];
    int32_t begin[kStep];
    bool kept[kStep];
  };

 public:
  __device__ Computer(const Params& p, Shared<kDim>& shared) : p_(p), shared_(shared) {}

  __device__ void run() {
    next_ = static_cast<int32_t>(blockIdx.x);
    while (agree(next_ < p_.n_tiles)) {
      int32_t index = next_;
      start(Tile(p_, index));
      if constexpr (S::kOverlaps) {
        run_overlapped();
      } else {
        run_in_order();
      }
      pin(index);  // so that the tile is computed anew, not kept in registers meanwhile
      finish(Tile(p_, index));
    }
  }

 private:
  // Where a thread stands is read anew each time, not to be kept in a register.
  static __device__ __forceinline__ int32_t thread() { return thread_index(); }
  static __device__ __forceinline__ int32_t warp() { return thread() / 32 - 4; }
  static __device__ __forceinline__ int32_t warpgroup() { return thread() / kWarpgroup - 1; }
  static __device__ __forceinline__ int32_t first_row() { return warp() * 16 + thread() % 32 / 4; }
  static __device__ __forceinline__ int32_t first_column() { return thread() % 4 * 2; }

  /// From scores to logits in units of log 2.
  __device__ float factor() const { return kLogits == Logits::general ? 1.0F : p_.scale * kLog2E; }

  __device__ bool is_row(int r) const { return r < n_rows_; }

  __device__ bool votes() const {
    return kLogits == Logits::voting || (kLogits == Logits::general && p_.skip != nullptr);
  }

  /// The tile's head in row r of the tile.
  template <typename T>
  static __device__ T* row_of(const HeadRows& rows, const Tile& tile, int32_t r) {
    return static_cast<T*>(rows.data) + (tile.row + r) * rows.stride + static_cast<int64_t>(tile.head) * rows.head_dim;
  }

  __device__ __forceinline__ void start(const Tile& tile) {
    const int32_t row = first_row();
    split_ = agree(tile.split);
    ended_ = false;
    n_rows_ = (row < tile.n_rows ? 1 : 0) + (row + 8 < tile.n_rows ? 1 : 0);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      shared_.sees[row + 8 * r] = is_row(r) ? tile.visible(p_, row + 8 * r) : int2{0, 0};
      max_[r] = kNone;
      sum_[r] = 0;
    }
    const int32_t first = warpgroup() * kGroupRows;
    const int32_t end = min(first + kGroupRows, tile.n_rows);
    // Threads read only what they wrote themselves, here as above.
    shared_.all_see[warp()] = first < end ? int2{tile.visible(p_, end - 1).x, tile.visible(p_, first).y} : int2{0, 0};
    if (votes()) threshold_ = p_.skip[tile.head] * kLog2E;
    if (kLogits == Logits::general && p_.kv.bias != nullptr) bias_ = p_.kv.bias + tile.kv_head * p_.kv.capacity;
    computed_ = 0;
    if (p_.q.type == Type::f32) {
      load_queries<float>(tile);
    } else {
      load_queries<__nv_bfloat16>(tile);
    }
#pragma unroll
    for (auto& part : o_) {
#pragma unroll
      for (float& x : part) x = 0;
    }
  }

  template <typename T>
  __device__ __forceinline__ void load_queries(const Tile& tile) {
    if constexpr (S::kOverlaps) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const T* row = row_of<T>(p_.q, tile, first_row() + 8 * r);
#pragma unroll
        for (int j = 0; j < kDim / 32; ++j) {
          uint32_t x[4];
          load_eight(row, is_row(r) ? p_.q.head_dim : 0, 32 * j + 4 * first_column(), x);
          transpose_in_quad(x);
#pragma unroll
          for (int i = 0; i < 4; ++i) q_[2 * j + i / 2][i % 2 * 2 + r] = x[i];
        }
      }
    } else {
      sync_named(kFirstQueries + warpgroup(), kWarpgroup);  // all products of the tile before are over
#pragma unroll 4
      for (auto i = static_cast<int32_t>(threadIdx.x % kWarpgroup); i < kGroupRows * kDim / 8; i += kWarpgroup) {
        const int32_t r = i / (kDim / 8);
        const int32_t chunk = i % (kDim / 8);
        const int32_t in_tile = warpgroup() * kGroupRows + r;
        uint32_t x[4];
        load_eight(row_of<T>(p_.q, tile, in_tile), in_tile < tile.n_rows ? p_.q.head_dim : 0, chunk * 8, x);
        const uint32_t to = chunk / 8 * S::kHalfBytes + r * 128 + (chunk % 8 ^ r % 8) * 16;
        *reinterpret_cast<uint4*>(shared_.q[warpgroup()] + to) = {x[0], x[1], x[2], x[3]};
      }
      show_stores();
      sync_named(kFirstQueries + warpgroup(), kWarpgroup);
    }
  }

  /// The products of one step run while the softmax of the step before is computed.
  __device__ __forceinline__ void run_overlapped() {
    Step step;
    while (agree(take(step, kNobody))) {
      begin_products();
      multiply_keys(step);
      wait_products<0>();
      softmax(step);
      if (shrinks()) shrink_outputs();
      pack();
      Step next;
      while (agree(take(next, step.slot[0]))) {
        begin_products();
        multiply_keys(next);
        multiply_values(step);
        wait_products<1>();
        softmax(next);
#pragma unroll
        for (auto& scores : s_) pin(scores);
        if (shrinks()) {  // waits in either branch: a wait ahead of it would move up to before the softmax
          wait_products<0, 1>();
          pin_outputs();
          shrink_outputs();
        } else {
          wait_products<0, 2>();
          pin_outputs();
        }
        give_back(step);
        pack();
        step = next;
      }
      begin_products();
      multiply_values(step);
      wait_products<0>();
      pin_outputs();
      give_back(step);
    }
  }

  /// The same one after the other, where registers do not allow more.
  __device__ __forceinline__ void run_in_order() {
    Step step;
    while (agree(take(step, kNobody))) {
      begin_products();
      multiply_keys(step);
      wait_products<0>();
      softmax(step);
      if (shrinks()) shrink_outputs();
      pack();
      begin_products();
      multiply_values(step);
      wait_products<0>();
      pin_outputs();
      give_back(step);
    }
  }

  /// Waits for the next wanted pieces. False: there are none, or what they would need is the slot `held`, the oldest
  /// that the caller has not given back. A step that is not full repeats its first piece unseen.
  __device__ __forceinline__ bool take(Step& step, int32_t held) {
#pragma unroll
    for (int i = 0; i < kStep; ++i) {
      if (!take_piece(step.slot[i], step.begin[i], held)) {
        if (i == 0) return false;
        step.slot[i] = step.slot[0];
        step.begin[i] = kNothing;
      } else if (held == kNobody) {
        held = step.slot[0];
      }
      step.kept[i] = true;
    }
    return true;
  }

  __device__ __forceinline__ bool take_piece(int32_t& slot, int32_t& begin, int32_t held) {
    while (!ended_ && cursor_.slot() != held) {
      slot = cursor_.slot();
      wait(shared_.full[slot], cursor_.parity());
      const Piece& piece = shared_.piece[slot];
      begin = piece.begin;
      const bool wanted = agree((piece.wanted >> warpgroup() & 1) != 0);
      ended_ = agree(begin == kEnd);
      if (ended_) next_ = piece.column[0];
      cursor_.advance();
      if (wanted) return true;
      give_back(slot);
    }
    return false;
  }

  __device__ void give_back(int32_t slot) {
    __syncwarp();
    if (threadIdx.x % 32 == 0) arrive(shared_.empty[slot]);
  }

  __device__ void give_back(const Step& step) {
    give_back(step.slot[0]);
    if (step.slot[kStep - 1] != step.slot[0]) give_back(step.slot[kStep - 1]);
  }

  __device__ __forceinline__ void multiply_keys(const Step& step) {
#pragma unroll
    for (int i = 0; i < kStep; ++i) {
      const uint64_t k = rows_descriptor(shared_address(shared_.k[first_lane(step.slot[i])]));
#pragma unroll
      for (int j = 0; j < kDim / 16; ++j) {
        const uint64_t offset = descriptor_offset(j / 4 * S::kHalfBytes + j % 4 * 32);
        if constexpr (S::kOverlaps) {
          multiply_rows(s_[i], q_[j], k + offset, j > 0);
        } else {
          const uint64_t q = rows_descriptor(shared_address(shared_.q[warpgroup()]));
          multiply_rows(s_[i], q + offset, k + offset, j > 0);
        }
      }
    }
    commit_products();
  }

  __device__ __forceinline__ void multiply_values(const Step& step) {
#pragma unroll
    for (int i = 0; i < kStep; ++i) {
      if constexpr (kLogits != Logits::plain) {
        if (!agree(step.kept[i])) continue;
        begin_products();
      }
      const uint64_t v = columns_descriptor(shared_address(shared_.v[first_lane(step.slot[i])]), S::kHalfBytes);
#pragma unroll
      for (int j = 0; j < kPiece / 16; ++j) {
#pragma unroll
        for (int part = 0; part < kDim / S::kWide; ++part) {
          const uint64_t offset = descriptor_offset(part * (S::kWide / 64) * S::kHalfBytes + j * 16 * 128);
          multiply_columns(o_[part], probability_[i][j], v + offset);
        }
      }
    }
    commit_products();
  }

  __device__ __forceinline__ void pin_outputs() {
#pragma unroll
    for (auto& part : o_) pin(part);
  }

  /// Scores to probabilities, in place, and what the outputs so far shrink by.
  __device__ __forceinline__ void softmax(Step& step) {
    const int2 all_see = shared_.all_see[warp()];
    float largest[kStep][2];
#pragma unroll
    for (int i = 0; i < kStep; ++i) {
      pin(s_[i]);
      if constexpr (kLogits == Logits::general) make_logits(i, step);
      n_seen_[i] = kPiece / 4 * ((is_row(0) ? 1 : 0) + (is_row(1) ? 1 : 0));
      if (step.begin[i] < all_see.x || step.begin[i] > all_see.y - kPiece) hide(i, step);
      find_largest(i, largest[i]);
    }
    float before[2] = {max_[0], max_[1]};
    if (votes()) {
      vote(step, largest);
    } else {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        float x = largest[0][r];
        if constexpr (kStep > 1) x = fmaxf(x, largest[1][r]);
        max_[r] = fmaxf(max_[r], over_quad(x));
      }
    }
    float offset[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      offset[r] = max_[r] == kNone ? 0.0F : max_[r] * factor();
      shrink_[r] = exp2_fast(before[r] * factor() - offset[r]);
      sum_[r] *= shrink_[r];
    }
#pragma unroll
    for (int i = 0; i < kStep; ++i) {
      if (kLogits != Logits::plain && !step.kept[i]) continue;
      computed_ += n_seen_[i];
#pragma unroll
      for (int j = 0; j < kPiece / 2; ++j) {
        s_[i][j] = exp2_fast(fmaf(s_[i][j], factor(), -offset[j % 4 / 2]));
        sum_[j % 4 / 2] += s_[i][j];
      }
    }
  }

  __device__ __forceinline__ void find_largest(int i, float (&largest)[2]) const {
    largest[0] = fmaxf(s_[i][0], s_[i][1]);
    largest[1] = fmaxf(s_[i][2], s_[i][3]);
#pragma unroll
    for (int j = 4; j < kPiece / 2; ++j) largest[j % 4 / 2] = fmaxf(largest[j % 4 / 2], s_[i][j]);
  }

  static __device__ __forceinline__ float over_quad(float x) {
    x = fmaxf(x, __shfl_xor_sync(~0U, x, 1));
    return fmaxf(x, __shfl_xor_sync(~0U, x, 2));
  }

  /// skip-softmax: which pieces of the step are kept; see kVoteRows in types.h.
  __device__ __forceinline__ void vote(Step& step, float (&largest)[kStep][2]) {
#pragma unroll
    for (int i = 0; i < kStep; ++i) {
      bool keep = false;
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const float x = over_quad(largest[i][r]);
        max_[r] = fmaxf(max_[r], x);  // where a piece is dropped, this changes nothing
        keep |= is_row(r) && x != kNone && !((x - max_[r]) * factor() < threshold_);
      }
      step.kept[i] = any_named(kFirstVote + warpgroup(), kWarpgroup, keep);
    }
  }

  /// The slot in a column of a piece of single columns.
  __device__ __forceinline__ int32_t gathered_slot(int i, const Step& step, int32_t w, int32_t column) const {
    const int32_t entry = shared_.piece[step.slot[i]].column[column];
    return (entry >> w & 1) != 0 ? entry >> 2 : kNothing;
  }

  /// Hides what a row does not see, and counts what it does.
  __device__ __forceinline__ void hide(int i, const Step& step) {
    const int32_t row = first_row();
    const int32_t column = first_column();
    const int2 sees[2] = {shared_.sees[row], shared_.sees[row + 8]};
    n_seen_[i] = 0;
    if (step.begin[i] == kColumns) {
      const int32_t w = warpgroup();
#pragma unroll
      for (int j = 0; j < kPiece / 4; ++j) {
        hide_slot(i, j, sees, gathered_slot(i, step, w, column + j / 2 * 8 + j % 2));
      }
    } else {
#pragma unroll
      for (int j = 0; j < kPiece / 4; ++j) hide_slot(i, j, sees, step.begin[i] + column + j / 2 * 8 + j % 2);
    }
  }

  /// The same of one of a thread's 16 columns, which is `slot`.
  __device__ __forceinline__ void hide_slot(int i, int j, const int2 (&sees)[2], int32_t slot) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const bool visible = slot >= sees[r].x && slot < sees[r].y;
      n_seen_[i] += visible ? 1 : 0;
      if (!visible) s_[i][j / 2 * 4 + 2 * r + j % 2] = kNone;
    }
  }

  /// Products to logits in units of log 2: the scale, the cap, the bias.
  __device__ __forceinline__ void make_logits(int i, const Step& step) {
    const int32_t w = warpgroup();
    const int32_t first = first_column();
#pragma unroll
    for (int j = 0; j < kPiece / 4; ++j) {
      float bias = 0;
      if (p_.kv.bias != nullptr) {
        const int32_t column = first + j / 2 * 8 + j % 2;
        const int32_t slot = step.begin[i] == kColumns ? gathered_slot(i, step, w, column) : step.begin[i] + column;
        bias = bias_[min(slot, static_cast<int32_t>(p_.kv.capacity) - 1)] * kLog2E;
      }
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        float& x = s_[i][j / 2 * 4 + 2 * r + j % 2];
        x *= p_.scale;
        if (p_.softcap > 0) {  // tanh(y) = 1 - 2 / (1 + e^2y)
          const float e2y = exp2_fast(x * (2 * kLog2E) / p_.softcap);
          x = p_.softcap * (1 - __fdividef(2, 1 + e2y));
        }
        x = x * kLog2E + bias;
      }
    }
  }

  __device__ __forceinline__ bool shrinks() const {
    return __any_sync(~0U, shrink_[0] != 1 || shrink_[1] != 1);
  }

  __device__ __forceinline__ void shrink_outputs() {
#pragma unroll
    for (auto& part : o_) {
#pragma unroll
      for (int j = 0; j < S::kWide / 2; ++j) part[j] *= shrink_[j % 4 / 2];
    }
  }

  /// Probabilities as the left operand of the product with V: the layout of a score is that of an operand.
  __device__ __forceinline__ void pack() {
#pragma unroll
    for (int i = 0; i < kStep; ++i) {
#pragma unroll
      for (int j = 0; j < kPiece / 4; ++j) {
        probability_[i][j / 4][j % 4] = pack_bf16(s_[i][2 * j], s_[i][2 * j + 1]);
      }
    }
  }

  __device__ __forceinline__ void finish(const Tile& tile) {
    float inverse[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      sum_[r] += __shfl_xor_sync(~0U, sum_[r], 1);
      sum_[r] += __shfl_xor_sync(~0U, sum_[r], 2);
      inverse[r] = sum_[r] > 0 ? 1 / sum_[r] : 0;
      if (p_.lse == nullptr || first_column() != 0 || !is_row(r)) continue;
      const float lse = sum_[r] > 0 ? max_[r] * factor() * kLn2 + logf(sum_[r]) : kNone;
      p_.lse[(tile.row + first_row() + 8 * r) * p_.q.n_head + tile.head] = lse;
    }
    if (p_.o.type == Type::f32) {
      store_outputs<float>(tile, inverse);
    } else {
      store_outputs<__nv_bfloat16>(tile, inverse);
    }
    if (p_.computed == nullptr) return;
    const uint32_t total = __reduce_add_sync(~0U, computed_);
    if (threadIdx.x % 32 == 0) atomicAdd(p_.computed, static_cast<unsigned long long>(total));
  }

  template <typename T>
  __device__ __forceinline__ void store_outputs(const Tile& tile, const float (&factor)[2]) const {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      T* row = row_of<T>(p_.o, tile, first_row() + 8 * r);
#pragma unroll
      for (int j = 0; j < kDim / 32; ++j) {
        const float* x = &o_[j * 32 / S::kWide][j * 32 % S::kWide / 2 + 2 * r];
        float low[4], high[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) low[i] = x[4 * i] * factor[r], high[i] = x[4 * i + 1] * factor[r];
        store_quad(row, is_row(r) ? p_.o.head_dim : 0, 32 * j, low, high);
      }
    }
  }

  const Params& p_;
  Shared<kDim>& shared_;
  int32_t n_rows_;     // how many of the thread's two there are
  bool split_;         // of the tile
  bool ended_;         // no pieces of the tile are left
  int32_t next_;       // tile
  float threshold_;    // of skip-softmax, in units of log 2
  const float* bias_;  // of the kv head
  Cursor<S::kSlots> cursor_;
  uint32_t q_[S::kOverlaps ? kDim / 16 : 1][4];
  float s_[kStep][kPiece / 2];
  uint32_t probability_[kStep][kPiece / 16][4];
  float o_[kDim / S::kWide][S::kWide / 2];
  float max_[2];
  float sum_[2];
  float shrink_[2];  // what the outputs before a step shrink by
  uint32_t n_seen_[kStep];
  uint32_t computed_;
};

}  // namespace winnow::cuda::hopper
