// Products of many rows (prefill): weights are unpacked once to 8-bit codes (int8_ops.h), and every product spreads its
// output over the threads in pieces that their caches hold.
#pragma once

#include <map>
#include <memory>
#include <span>
#include <vector>

#include "attention/device.h"
#include "kernels/cpu/context.h"
#include "kernels/cpu/int8_ops.h"
#include "kernels/cpu/row_ops.h"
#include "kernels/scratch_pool.h"

namespace winnow {

/// What becomes of the sums of a product.
struct ProductEnd {
  std::span<const float* const> biases{};  // for each weight [n_out], or null: none; empty: none at all
  bool adds = false;                       // they are added to what y holds
};

class ManyRows {
 public:
  ManyRows(CpuContext& context, ScratchPool& scratch)
      : context_(&context), scratch_(&scratch), ops_(&choose_int8_ops(context.features)) {}

  /// The weights stay unpacked while the result lives. Those that cannot be packed (odd n_in) are left out.
  std::unique_ptr<Unpacked> unpack(std::span<const Weight* const> weights);
  /// Whether all of them are unpacked.
  bool has(std::span<const Weight* const> weights) const;
  /// ys[i] = x W_i^T of unpacked weights that read the same x.
  void multiply(std::span<const Weight* const> weights, Mat x, std::span<const Mat> ys, const ProductEnd& end);
  /// y = down (act(gate x) * (up x)) of unpacked weights. What lies between is rounded to 8 bits piece by piece, while
  /// the caches still hold it: in float32 it would be the largest matrix of a model. end.adds: y += that.
  void feed_forward(const GatedWeights& weights, GateOp* act, Mat x, Mat y, const ProductEnd& end);

  const Int8Ops& ops() const { return *ops_; }

 private:
  struct Panels {  // one weight
    Int8Layout layout;
    int64_t n_panels = 0;
    size_t panel_bytes = 0;
    std::shared_ptr<std::byte> bytes;
  };
  struct Guard : Unpacked {
    std::vector<std::shared_ptr<const Panels>> held;
  };
  struct Input {  // activations in 8 bits
    int group = 0;
    int64_t n_groups = 0, n_tiles = 0;
    std::shared_ptr<std::byte> codes, scales;
  };
  struct Piece;
  struct Place;

  std::shared_ptr<const Panels> find(const Weight& weight) const;
  void pack_panel(const Weight& weight, const Panels& panels, int64_t panel) const;
  Input room(int64_t n_rows, int64_t n_in, int group) const;
  Input quantise(Mat x, int group) const;
  void quantise_row(const Input& to, int64_t tile, int row, std::span<const float> x, int64_t first_group) const;
  void multiply_input(std::span<const Weight* const> weights, const Input& input, std::span<const Mat> ys,
                      const ProductEnd& end) const;
  struct GatedPiece;
  void gated_piece(const GatedPiece& piece, const Input& input, const Input& hidden, float* spare) const;
  static const std::byte* panel_at(const Piece& piece, const Place& at);
  static void share_ahead(const Piece& piece, const Place& at, Int8Tile& tile);
  void multiply_piece(const Piece& piece, const Input& input) const;
  void multiply_tile(const Piece& piece, const Input& input, const Place& at) const;

  CpuContext* context_;
  ScratchPool* scratch_;
  const Int8Ops* ops_;
  std::map<const Weight*, std::weak_ptr<const Panels>> unpacked_;
};

}  // namespace winnow
