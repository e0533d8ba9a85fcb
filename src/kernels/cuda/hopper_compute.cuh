// The computing half of attend_hopper: a warpgroup that multiplies, and keeps the softmax, of 64 rows.
#pragma once

#include "kernels/cuda/hopper_rows.cuh"
#include "kernels/cuda/hopper_softmax.cuh"

namespace winnow::cuda::hopper {

/// A computing warpgroup.
template <int kDim, Logits kLogits, bool kPairs>
class Computer : private Softmax<kDim, kLogits, kPairs> {
  using Base = Softmax<kDim, kLogits, kPairs>;
  using Base::computed_;
  using Base::factor;
  using Base::is_row;
  using Base::kStep;
  using Base::max_;
  using Base::p_;
  using Base::pack;
  using Base::probability_;
  using Base::s_;
  using Base::score;
  using Base::shared_;
  using Base::shrink_;
  using Base::shrinks;
  using Base::softmax;
  using Base::sum_;
  using typename Base::S;
  using typename Base::Step;
  static constexpr int32_t kNobody = -1;

 public:
  __device__ Computer(const Params& p, Shared<kDim, kPairs>& shared) : Base(p, shared) {}

  __device__ void run() {
    auto index = static_cast<int32_t>(blockIdx.x);
    if (computing_group() == 1) pass_turn();
    while (agree(index < p_.n_tiles)) {
      start(Tile(p_, index));
      if constexpr (S::kOverlaps) {
        run_overlapped();
      } else {
        run_in_order();
      }
      pin(index);  // so that the tile is computed anew, not kept in registers meanwhile
      finish(Tile(p_, index));
      index = next_tile(tag_);
    }
    if (computing_group() == 0) await_turn();
  }

 private:
  /// The tile's head in row r of the tile.
  template <typename T>
  static __device__ T* row_of(const HeadRows& rows, const Tile& tile, int32_t r) {
    return static_cast<T*>(rows.data) + (tile.row + r) * rows.stride + static_cast<int64_t>(tile.head) * rows.head_dim;
  }

  __device__ __forceinline__ void start(const Tile& tile) {
    tag_ = 0;
    this->start_rows(tile);
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
      sync_named(kFirstQueries + computing_group(), kWarpgroup);  // all products of the tile before are over
#pragma unroll 4
      for (auto i = static_cast<int32_t>(threadIdx.x % kWarpgroup); i < kGroupRows * kDim / 8; i += kWarpgroup) {
        const int32_t r = i / (kDim / 8);
        const int32_t chunk = i % (kDim / 8);
        const int32_t in_tile = computing_group() * kGroupRows + r;
        uint32_t x[4];
        load_eight(row_of<T>(p_.q, tile, in_tile), in_tile < tile.n_rows ? p_.q.head_dim : 0, chunk * 8, x);
        const uint32_t to = chunk / 8 * S::kHalfBytes + r * 128 + (chunk % 8 ^ r % 8) * 16;
        *reinterpret_cast<uint4*>(shared_.q[computing_group()] + to) = {x[0], x[1], x[2], x[3]};
      }
      show_stores();
      sync_named(kFirstQueries + computing_group(), kWarpgroup);
    }
  }

  /// Where nothing is left out the computing warpgroups start their products in turns, so that one's softmax falls into
  /// the other's products; that makes 1 %. Lists lose 3 % by it.
  __device__ bool takes_turns() const {
    return kPairs && p_.lists.n_block_q == 0;
  }

  __device__ __forceinline__ void await_turn() const {
    if (takes_turns()) sync_named(kFirstTurn + computing_group(), 2 * kWarpgroup);
  }

  __device__ __forceinline__ void pass_turn() const {
    if (takes_turns()) arrive_named(kFirstTurn + 1 - computing_group(), 2 * kWarpgroup);
  }

  /// The products of one step run while the softmax of the step before is computed.
  __device__ __forceinline__ void run_overlapped() {
    Step step;
    while (agree(take(step, kNobody))) {
      await(step);
      begin_products();
      multiply_keys(step);
      look_at(step);
      wait_products<0>();
      softmax(step);
      if (shrinks()) shrink_outputs();
      pack();
      Step next;
      while (agree(take(next, step.slot[0]))) {
        await(next);
        await_turn();
        begin_products();
        multiply_keys(next);
        multiply_values(step);
        pass_turn();
        look_at(next);
        wait_products<1>();
        softmax(next);
        pin(s_);
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
      await(step);
      begin_products();
      multiply_keys(step);
      look_at(step);
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
    if constexpr (kPairs) {
      return !is_last(tag_);
    } else {
#pragma unroll
      for (int i = 0; i < kStep; ++i) {
        if (!take_piece(step.slot[i], step.begin[i], held)) {
          if (i == 0) return false;
          step.slot[i] = step.slot[0];
          step.begin[i] = kNothing;
        } else if (held == kNobody) {
          held = step.slot[0];
        }
      }
      return true;
    }
  }

  /// Of pairs there is always a next one, up to a tile's last: nothing else decides what runs.
  __device__ __forceinline__ void await(Step& step) {
#pragma unroll
    for (bool& kept : step.kept) kept = true;
    if constexpr (kPairs) {
      step.slot[0] = first_lane(cursor_.slot());
      wait(shared_.full[step.slot[0]], cursor_.parity());
      cursor_.advance();
    }
  }

  /// Reads what a pair consists of: with its products underway, since reading takes a while.
  __device__ __forceinline__ void look_at(Step& step) {
    if constexpr (kPairs) {
      const auto& pieces = shared_.pieces[step.slot[0]];
      step.begin[0] = pieces.begin[0];
      step.begin[1] = pieces.begin[1];
      tag_ = pieces.tag;
    }
  }

  __device__ __forceinline__ bool take_piece(int32_t& slot, int32_t& begin, int32_t held) {
    while (!agree(is_last(tag_)) && cursor_.slot() != held) {
      slot = cursor_.slot();
      wait(shared_.full[slot], cursor_.parity());
      begin = shared_.pieces[slot].begin[0];
      tag_ = shared_.pieces[slot].tag;
      const bool wanted = agree(is_wanted(tag_, computing_group()));
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

  __device__ __forceinline__ void give_back(const Step& step) {
    give_back(step.slot[0]);
    if constexpr (!kPairs && kStep > 1) {
      if (step.slot[1] != step.slot[0]) give_back(step.slot[1]);
    }
  }

  __device__ __forceinline__ void multiply_keys(const Step& step) {
    if constexpr (kPairs) {
      const uint64_t k = rows_descriptor(shared_address(shared_.k[step.slot[0]]));
#pragma unroll
      for (int j = 0; j < kDim / 16; ++j) multiply_rows(s_, q_[j], k + part(j), j > 0);
    } else {
#pragma unroll
      for (int i = 0; i < kStep; ++i) {
        auto& scores = *reinterpret_cast<float(*)[kPiece / 2]>(&score(i, 0));
        const uint64_t k = rows_descriptor(shared_address(shared_.k[first_lane(step.slot[i])]));
#pragma unroll
        for (int j = 0; j < kDim / 16; ++j) {
          if constexpr (S::kOverlaps) {
            multiply_rows(scores, q_[j], k + part(j), j > 0);
          } else {
            const uint64_t q = rows_descriptor(shared_address(shared_.q[computing_group()]));
            multiply_rows(scores, q + part(j), k + part(j), j > 0);
          }
        }
      }
    }
    commit_products();
  }

  /// The j-th 16 columns of a matrix laid out like K.
  static __device__ __forceinline__ constexpr uint64_t part(int j) {
    return descriptor_offset(j / 4 * S::kHalfBytes + j % 4 * 32);
  }

  __device__ __forceinline__ void multiply_values(const Step& step) {
    int32_t slot = 0;
#pragma unroll
    for (int i = 0; i < kStep; ++i) {
      if (i % S::kPieces == 0) slot = first_lane(step.slot[i / S::kPieces]);
      if constexpr (kLogits != Logits::plain) {
        if (!agree(step.kept[i])) continue;
        begin_products();
      }
      const uint64_t v = columns_descriptor(shared_address(shared_.v[slot]), S::kHalfBytes) +
                         descriptor_offset(i % S::kPieces * S::kPieceBytes);
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

  __device__ __forceinline__ void shrink_outputs() {
#pragma unroll
    for (auto& part : o_) {
#pragma unroll
      for (int j = 0; j < S::kWide / 2; ++j) part[j] *= shrink_[j % 4 / 2];
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

  int32_t tag_;  // of the last slot that was looked at
  Cursor<S::kSlots> cursor_;
  uint32_t q_[S::kOverlaps ? kDim / 16 : 1][4];
  float o_[kDim / S::kWide][S::kWide / 2];
};

}  // namespace winnow::cuda::hopper
