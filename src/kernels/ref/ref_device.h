// The oracle: every op as plain loops in double over the weights' own values. Slow, and stays as it is; the other
// devices are tested against it.
#pragma once

#include "kernels/host_device.h"

namespace winnow {

class RefDevice : public HostDevice {
 public:
  explicit RefDevice(int n_threads) : HostDevice(n_threads) {}

  std::string_view name() const override { return "ref"; }
  std::string description() const override;
  double peak_gflops() override { return 0; }

  std::unique_ptr<Unpacked> unpack(std::span<const Weight* const> weights) override;
  void linear(const Weight& weight, Mat x, Mat y, const float* bias) override;
  void linear_many(std::span<const Weight* const> weights, Mat x, std::span<const Mat> ys,
                   std::span<const float* const> biases) override;

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
  void score_blocks(const std::vector<float>& a, const std::vector<float>& b, int32_t dim, float scale,
                    std::vector<float>& scores) override;
};

}  // namespace winnow
