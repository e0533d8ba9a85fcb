// The CPU: row ops compiled for each instruction set, products of few rows from the file's quantised blocks, products
// of many rows from weights unpacked to 8-bit codes, attention kernels of its own.
#pragma once

#include "attention/rope_angles.h"
#include "kernels/cpu/context.h"
#include "kernels/cpu/many_rows.h"
#include "kernels/cpu/peak.h"
#include "kernels/cpu/row_ops.h"
#include "kernels/host_device.h"

namespace winnow {

class CpuDevice : public HostDevice {
 public:
  CpuDevice(int n_threads, const CpuFeatures& features)
      : HostDevice(n_threads),
        context_{pool_, memory_, features},
        ops_(&choose_row_ops(features)),
        many_rows_(context_, scratch_) {}

  std::string_view name() const override { return "cpu"; }
  std::string description() const override;
  double peak_gflops() override { return cpu::matmul_peak_gflops(context_); }

  std::unique_ptr<Unpacked> unpack(std::span<const Weight* const> weights) override;
  void linear(const Weight& weight, Mat x, Mat y, const float* bias) override;
  void linear_many(std::span<const Weight* const> weights, Mat x, std::span<const Mat> ys,
                   std::span<const float* const> biases) override;
  void feed_forward(const GatedWeights& weights, Mat x, Mat y) override;
  void linear_add(const Weight& weight, Mat h, Mat x) override;
  void feed_forward_add(const GatedWeights& weights, Mat h, Mat x) override;

  void embed(const Weight& table, std::span<const int32_t> tokens, float scale, Mat x) override;
  void rms_norm(Mat x, const float* weight, float eps, Mat y) override;
  void rms_norm_heads(HeadsView x, const float* weight, float eps) override;
  void rope(HeadsView x, const RopeArgs& args, std::span<const int32_t> position) override;
  void gated(Mat gate, Mat up, Gate kind, Mat y) override;
  void add(Mat x, Mat y) override;
  void add_bias(Mat x, const float* bias) override;
  void scale_softcap(Mat x, float softcap) override;

  void store_kv(HeadsView k, HeadsView v, Type k_type, Type v_type, std::span<const KvTarget> target) override;
  void load_slot(const std::byte* block, Type type, int32_t head_dim, int32_t slot, float* values) override;
  void store_slot(std::byte* block, Type type, int32_t head_dim, int32_t slot, const float* values) override;

  void attend(const AttnArgs& args) override;
  void merge(HeadsView into, float* into_lse, const Partial& from, float gain) override;
  void score_window(const ProbeArgs& args, int32_t head, std::vector<float>& probabilities) override;
  void pool_queries(const HeadsView& q, int32_t head, int32_t block, std::vector<float>& pooled) override;
  void pool_keys(const KvView& kv, int32_t kv_head, int32_t block, std::vector<float>& pooled) override;
  void gather_keys(const KvView& kv, int32_t kv_head, std::span<const int32_t> slots,
                   std::vector<float>& keys) override;
  void score_blocks(const std::vector<float>& a, const std::vector<float>& b, int32_t dim, float scale,
                    std::vector<float>& scores) override;
  void antidiagonal_scores(const AntidiagonalArgs& args, std::vector<std::vector<float>>& scores) override;
  void proxy_scores(const ProxyArgs& args, std::vector<std::vector<float>>& scores) override;
  Selection select_tree(const TreeArgs& args) override;
  std::unique_ptr<LowBitScores> low_bit_scores(const LowBitArgs& args) override;

 private:
  /// Whether a product of so many rows takes unpacked weights.
  bool takes_many(int64_t n_rows, std::span<const Weight* const> weights) const;
  GateOp* gate_op(Gate kind) const;
  /// Calls work(row) for every row, several at a time where a row is short. `cost`: values touched in a row.
  template <typename Work>
  void for_rows(int64_t n_rows, int64_t cost, Work work);

  CpuContext context_;
  const RowOps* ops_;
  ManyRows many_rows_;
  RopeTables rope_tables_;
};

}  // namespace winnow
