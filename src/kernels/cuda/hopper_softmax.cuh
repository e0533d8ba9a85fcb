// The softmax of attend_hopper: from the scores of a step to probabilities, in the registers of a computing warpgroup.
#pragma once

#include "kernels/cuda/hopper_ring.cuh"

namespace winnow::cuda::hopper {

constexpr float kLog2E = 1.4426950408889634F;
constexpr float kLn2 = 0.6931471805599453F;
constexpr float kNone = -std::numeric_limits<float>::infinity();

/// What stands between Q K^T and the softmax. plain: a factor; voting: skip-softmax as well; general: everything.
enum class Logits { plain, voting, general };

// Where a thread stands is read anew each time, not to be kept in a register. A thread holds two rows of a tile, 8
// apart, and of every 8 columns two; four threads, a quad, share a row.
__device__ __forceinline__ int32_t computing_warp() {
  return thread_index() / 32 - 4;
}
__device__ __forceinline__ int32_t computing_group() {
  return thread_index() / kWarpgroup - 1;
}
__device__ __forceinline__ int32_t first_row() {
  return computing_warp() * 16 + thread_index() % 32 / 4;
}
__device__ __forceinline__ int32_t first_column() {
  return thread_index() % 4 * 2;
}

/// The pieces that are multiplied at a time.
template <int kStep, int kPieces>
struct Step {
  int32_t slot[kStep / kPieces];
  int32_t begin[kStep];
  bool kept[kStep];
};

template <int kDim, Logits kLogits, bool kPairs>
class Softmax {
 protected:
  using S = Shape<kDim, kPairs>;
  static constexpr int kStep = S::kStep;
  static constexpr int kScores = kPiece / 2;  // of a piece, in a thread
  using Step = hopper::Step<kStep, S::kPieces>;

  __device__ Softmax(const Params& p, Shared<kDim, kPairs>& shared) : p_(p), shared_(shared) {}

  /// From scores to logits in units of log 2.
  __device__ float factor() const { return kLogits == Logits::general ? 1.0F : p_.scale * kLog2E; }

  __device__ bool is_row(int r) const { return r < n_rows_; }

  __device__ bool votes() const {
    return kLogits == Logits::voting || (kLogits == Logits::general && p_.skip != nullptr);
  }

  __device__ __forceinline__ void start_rows(const Tile& tile) {
    const int32_t row = first_row();
    n_rows_ = (row < tile.n_rows ? 1 : 0) + (row + 8 < tile.n_rows ? 1 : 0);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      shared_.sees[row + 8 * r] = is_row(r) ? tile.visible(p_, row + 8 * r) : int2{0, 0};
      max_[r] = kNone;
      sum_[r] = 0;
    }
    const int32_t first = computing_group() * kGroupRows;
    const int32_t end = min(first + kGroupRows, tile.n_rows);
    // Threads read only what they wrote themselves, here as above.
    shared_.all_see[computing_warp()] =
        first < end ? int2{tile.visible(p_, end - 1).x, tile.visible(p_, first).y} : int2{0, 0};
    if (votes()) threshold_ = p_.skip[tile.head] * kLog2E;
    if (kLogits == Logits::general && p_.kv.bias != nullptr) bias_ = p_.kv.bias + tile.kv_head * p_.kv.capacity;
    computed_ = 0;
  }

  /// Scores to probabilities, in place, and what the outputs so far shrink by.
  __device__ __forceinline__ void softmax(Step& step) {
    pin(s_);
    if constexpr (kLogits == Logits::general) {
#pragma unroll
      for (int i = 0; i < kStep; ++i) make_logits(i, step);
    }
    hide(step);
    float largest[kStep][2];
#pragma unroll
    for (int i = 0; i < kStep; ++i) find_largest(i, largest[i]);
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
      const float top = max_[r] == kNone ? 0.0F : max_[r];
      offset[r] = top * factor();
      shrink_[r] = exp2_fast((before[r] - top) * factor());  // exactly 1 where the maximum stays
      sum_[r] *= shrink_[r];
    }
#pragma unroll
    for (int i = 0; i < kStep; ++i) {
      if (kLogits != Logits::plain && !step.kept[i]) continue;
      computed_ += n_seen_[i];
#pragma unroll
      for (int j = 0; j < kScores; ++j) {
        float& x = score(i, j);
        x = exp2_fast(fmaf(x, factor(), -offset[j % 4 / 2]));
        sum_[j % 4 / 2] += x;
      }
    }
  }

  __device__ __forceinline__ bool shrinks() const {
    return __any_sync(~0U, shrink_[0] != 1 || shrink_[1] != 1);
  }

  /// Probabilities as the left operand of the product with V: the layout of a score is that of an operand.
  __device__ __forceinline__ void pack() {
#pragma unroll
    for (int i = 0; i < kStep; ++i) {
#pragma unroll
      for (int j = 0; j < kScores; j += 2) {
        probability_[i][j / 8][j / 2 % 4] = pack_bf16(score(i, j), score(i, j + 1));
      }
    }
  }

  /// Number j of the thread's scores of piece i.
  __device__ __forceinline__ float& score(int i, int j) {
    return s_[i * kScores + j];
  }

 private:
  /// Chains of their own for even and odd columns, since each link waits for the one before.
  __device__ __forceinline__ void find_largest(int i, float (&largest)[2]) {
    float chain[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) chain[j] = score(i, j);
#pragma unroll
    for (int j = 4; j < kScores; ++j) chain[j % 4] = fmaxf(chain[j % 4], score(i, j));
    largest[0] = fmaxf(chain[0], chain[1]);
    largest[1] = fmaxf(chain[2], chain[3]);
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
      step.kept[i] = any_named(kFirstVote + computing_group(), kWarpgroup, keep);
    }
  }

  /// The slot in a column of a piece of single columns.
  __device__ __forceinline__ int32_t gathered_slot(int i, const Step& step, int32_t w, int32_t column) const {
    const int32_t entry = shared_.pieces[step.slot[i / S::kPieces]].column[i % S::kPieces][column];
    return (entry >> w & 1) != 0 ? entry >> 2 : kNothing;
  }

  /// Hides what a row does not see, and counts what it does.
  __device__ __forceinline__ void hide(const Step& step) {
    const int2 all_see = shared_.all_see[computing_warp()];
    bool whole[kStep];
#pragma unroll
    for (int i = 0; i < kStep; ++i) {
      n_seen_[i] = kPiece / 4 * ((is_row(0) ? 1 : 0) + (is_row(1) ? 1 : 0));
      whole[i] = step.begin[i] >= all_see.x && step.begin[i] <= all_see.y - kPiece;
    }
    if (whole[0] && whole[kStep - 1]) return;
#pragma unroll
    for (int i = 0; i < kStep; ++i) {
      if (!whole[i]) hide(i, step);
    }
  }

  __device__ __forceinline__ void hide(int i, const Step& step) {
    const int32_t row = first_row();
    const int32_t column = first_column();
    const int2 sees[2] = {shared_.sees[row], shared_.sees[row + 8]};
    n_seen_[i] = 0;
    if (step.begin[i] == kColumns) {
      const int32_t w = computing_group();
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
      if (!visible) score(i, j / 2 * 4 + 2 * r + j % 2) = kNone;
    }
  }

  /// Products to logits in units of log 2: the scale, the cap, the bias.
  __device__ __forceinline__ void make_logits(int i, const Step& step) {
    const int32_t w = computing_group();
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
        float& x = score(i, j / 2 * 4 + 2 * r + j % 2);
        x *= p_.scale;
        if (p_.softcap > 0) {  // tanh(y) = 1 - 2 / (1 + e^2y)
          const float e2y = exp2_fast(x * (2 * kLog2E) / p_.softcap);
          x = p_.softcap * (1 - __fdividef(2, 1 + e2y));
        }
        x = x * kLog2E + bias;
      }
    }
  }

 protected:
  const Params& p_;
  Shared<kDim, kPairs>& shared_;
  float s_[kStep * kScores];
  uint32_t probability_[kStep][kPiece / 16][4];
  float max_[2];
  float sum_[2];
  float shrink_[2];  // what the outputs before a step shrink by
  uint32_t computed_;

 private:
  int32_t n_rows_;     // how many of the thread's two there are
  float threshold_;    // of skip-softmax, in units of log 2
  const float* bias_;  // of the kv head
  uint32_t n_seen_[kStep];
};

}  // namespace winnow::cuda::hopper
