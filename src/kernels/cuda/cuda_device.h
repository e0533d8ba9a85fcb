// An NVIDIA GPU of compute capability 8.0 or later. All work goes down one stream and the host never waits for it
// inside a layer. Activations are bf16, the residual stream and logits float32; weights stay on the GPU as bf16 after
// their first use; counts of attention reach their structs at the next sync.
#pragma once

#include <mutex>
#include <string>

#include "kernels/cuda/attention.h"
#include "kernels/cuda/chunks.h"
#include "kernels/cuda/copies.h"
#include "kernels/cuda/counters.h"
#include "kernels/cuda/cover.h"
#include "kernels/cuda/estimate.h"
#include "kernels/cuda/gpu_lists.h"
#include "kernels/cuda/lines.h"
#include "kernels/cuda/products.h"
#include "kernels/cuda/step_graph.h"
#include "kernels/cuda/tables.h"

namespace winnow::cuda {

class CudaDevice final : public Device {
 public:
  /// n_threads: of the host, for decoding weights and for methods. Throws Error where there is no GPU that serves, or
  /// none that has such products.
  CudaDevice(int n_threads, ProductType products);
  ~CudaDevice() override;

  /// Stands beside every figure, and keeps apart what was measured in other products.
  std::string_view name() const override { return products_.type() == ProductType::fp8 ? "cuda (fp8)" : "cuda"; }
  int n_threads() const override { return pool_.size(); }
  std::string description() const override;
  double peak_gflops() override;
  RowsAtOnce rows_at_once() const override { return {.product = 8192, .attend = int64_t{1} << 20}; }

  Scratch scratch(int64_t rows, int64_t cols) override { return matrix(rows, cols, Type::f32); }
  Scratch activations(int64_t rows, int64_t cols) override { return matrix(rows, cols, Type::bf16); }
  bool memory_is_host() const override { return false; }
  void upload(Mat to, const float* from) override;
  void download(float* to, Mat from) override;
  std::shared_ptr<std::byte> allocate(size_t bytes) override { return gpu_memory_.block(bytes); }
  void copy_bytes(std::span<const BytesCopy> copies) override;
  void upload_bytes(std::byte* to, const std::byte* from, size_t bytes) override;
  void sync() override;
  void begin_step() override;
  void end_step() override;
  StepCounts step_counts() const { return launcher_.counts(); }

  std::unique_ptr<Unpacked> unpack(std::span<const Weight* const> weights) override;
  void linear(const Weight& weight, Mat x, Mat y, const float* bias) override;
  void linear_many(std::span<const Weight* const> weights, Mat x, std::span<const Mat> ys,
                   std::span<const float* const> biases) override;
  void linear_add(const Weight& weight, Mat h, Mat x) override;
  void feed_forward_add(const GatedWeights& weights, Mat h, Mat x) override;

  void embed(const Weight& table, std::span<const int32_t> tokens, float scale, Mat x) override;
  void rms_norm(Mat x, const float* weight, float eps, Mat y) override;
  void rms_norm_heads(HeadsView x, const float* weight, float eps) override;
  void rope(HeadsView x, const RopeArgs& args, std::span<const int32_t> position) override {
    rope_both(x, {}, args, position);
  }
  void rope_both(HeadsView q, HeadsView k, const RopeArgs& args, std::span<const int32_t> position) override;
  void gated(Mat gate, Mat up, Gate kind, Mat y) override;
  void add(Mat x, Mat y) override;
  void add_bias(Mat x, const float* bias) override;
  void scale_softcap(Mat x, float softcap) override;
  void gather_rows(Mat from, std::span<const int32_t> rows, Mat to) override;

  void store_kv(HeadsView k, HeadsView v, Type k_type, Type v_type, std::span<const KvTarget> target) override;
  void load_slot(const std::byte* block, Type type, int32_t head_dim, int32_t slot, float* values) override;
  void store_slot(std::byte* block, Type type, int32_t head_dim, int32_t slot, const float* values) override;

  void attend(const AttnArgs& args) override;
  void merge(HeadsView into, float* into_lse, const Partial& from, float gain) override;
  void score_window(const ProbeArgs& args, int32_t head, std::vector<float>& scores) override;
  void window_mass(const ProbeArgs& args, std::vector<std::vector<float>>& mass) override {
    begin_window_mass(args)->get(mass);
  }
  std::unique_ptr<PendingMass> begin_window_mass(const ProbeArgs& args) override;
  void pool_queries(const HeadsView& q, int32_t head, int32_t block, std::vector<float>& pooled) override;
  void pool_keys(const KvView& kv, int32_t kv_head, int32_t block, std::vector<float>& pooled) override;
  void score_blocks(const std::vector<float>& a, const std::vector<float>& b, int32_t dim, float scale,
                    std::vector<float>& scores) override;
  void antidiagonal_scores(const AntidiagonalArgs& args, std::vector<std::vector<float>>& scores) override;
  Selection select_antidiagonals(const AntidiagonalArgs& args, double share) override;
  Selection select_lines(const LineArgs& args) override;
  Selection select_chunks(const ChunkArgs& args) override;
  Selection select_tree(const TreeArgs& args) override;
  Selection select_outstanding(const OutstandingArgs& args) override;
  void proxy_scores(const ProxyArgs& args, std::vector<std::vector<float>>& scores) override;
  Selection select_cover(const CoverArgs& args) override;
  Selection select_ranked(const RankedArgs& args) override;
  Selection select_gated(const GateArgs& args) override;
  Selection choose_core(const CoreArgs& args) override;
  Selection choose_important(const ImportantArgs& args) override;
  Selection select_sets(const SetArgs& args) override;
  Selection on_host(const Selection& selection) override;
  Selection on_device(const Selection& selection) override;
  void for_each(int64_t n_items, const std::function<void(int64_t item, int thread)>& work) override {
    pool_.parallel_for(n_items, work);
  }

 private:
  /// One attention call's tables, in GPU memory.
  struct Call;
  struct Cover;
  struct ChunkMeansOnGpu;
  struct Sets;
  struct Gates;
  class Antidiagonals;
  class MassUnderWay;
  class Proxies;

  /// What `staged` made last, until something is written to a cache.
  struct Staged {
    std::vector<KvHead> heads;  // of which view; empty: nothing
    std::shared_ptr<std::byte> k, v;
    StagedKv kv;
  };
  /// The rows that lists are laid for; visible [n_head / group, n_rows].
  struct LineRows {
    const int2* visible;
    int64_t n_rows;
    int32_t n_head, group;
  };

  Scratch matrix(int64_t rows, int64_t cols, Type type);
  const int32_t* on_gpu(std::span<const int32_t> values) { return tables_.put(values); }
  std::unique_lock<std::recursive_mutex> begin() { return std::unique_lock(mutex_); }
  void attend_to_host(const AttnArgs& args);
  /// Slots that rows of these limits see. -> int2 [n_head_kv, n_rows]; `permitted` may be null.
  std::shared_ptr<std::byte> visible_rows(const DeviceKv& kv, std::span<const int32_t> limit, int32_t window,
                                          unsigned long long* permitted, int32_t group);
  /// The same for few rows, found on the host, where all layers of a step share one table; permitted slots are counted.
  const int2* visible_to_few(const AttnArgs& args);
  /// K and V as the kernels for many rows read them; made once for all that ask before the cache changes.
  StagedKv staged(const KvView& view, const DeviceKv& kv);
  /// Some of a probe's rows, at most kMaxProbeRows, whose visible slots are in `visible` as long as that is kept.
  struct RowRange {
    int64_t begin, n;
  };
  LineProbe line_probe(const ProbeArgs& args, const DeviceKv& tables, RowRange rows,
                       std::shared_ptr<std::byte>& visible);
  /// window_mass into sums [n_head, max_slots], or added to what is there.
  void spend(const ProbeArgs& args, const DeviceKv& tables, float* sums, bool adds);
  /// select_sets of rows of the sets alone, which are on the device; rows' own slots follow one another.
  Selection select_rows_of_sets(const SetArgs& args, const Selection& sets);
  /// The scores of all blocks of rows of the call's heads; parts are made here.
  void estimate_blocks(EstimateCall call);
  /// Lists of the blocks that call.marks marks; call.block_ptr is set.
  Selection lists_of_marks(CoverCall& call);
  /// The mean of shares of mass in GPU memory, for which the host waits.
  double mean_share(const float* shares, size_t n);
  ChunkMeansOnGpu chunk_means(const ChunkArgs& args, const ChunkCall& call, const StagedKv& kv);
  /// Lists of this shape, whose ends are yet to be written; then room for so many entries, for which the host waits,
  /// or for as many as there can be.
  NewLists new_lists(const Lists& shape);
  void make_room(NewLists& lists);
  void make_room(NewLists& lists, int64_t n_block, int64_t n_column);
  /// The parts of that: blocks as many as were counted, columns as many as there are at most.
  void make_blocks(NewLists& lists);
  void make_columns(NewLists& lists, size_t n);
  int32_t* room(NewLists& lists, size_t n_entries);
  /// Lists that share columns. -> column_end [n_head * n_block_q], to be written
  int32_t* share_columns(NewLists& lists);
  Selection lay(const ChosenLines& chosen, const LineRows& rows);
  std::shared_ptr<std::byte> upload_lists(const Selection& selection, Lists& lists);
  Lists few_lists(const Selection& selection);
  void attend_few_rows(const AttnArgs& args, const Call& call);
  void attend_many_rows(const AttnArgs& args, const Call& call);

  cudaDeviceProp properties_;
  Launcher launcher_;  // made before and destroyed after everything that uses it
  Stream stream_;
  ThreadPool pool_;
  DeviceMemory gpu_memory_;
  Transfers transfers_;
  CudaContext context_;
  Tables tables_;
  Parameters parameters_;
  KvTables kv_tables_;
  Counters counters_;
  Products products_;
  Staged staged_;
  bool hopper_ = false;
  std::recursive_mutex mutex_;  // verbs come from several threads of the host
};

}  // namespace winnow::cuda
