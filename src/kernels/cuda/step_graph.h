// Launches of a decode step, sent as CUDA graphs. One step does nearly what the one before it did, so a graph serves as
// a cache of launches: the host's code runs as ever, but what it launches is only compared with the graph's node of the
// same number. A node that differs is set anew, and one call sends them all. Whatever is no launch of ours (a copy, a
// product by cuBLAS, waiting) sends what was held back so far and goes its own way.
//
// A step is cut into parts, so that the GPU works on one while the host compares the next: the first launches go at
// once, then parts of ever more launches.
#pragma once

#include <cuda_runtime.h>

#include <memory>
#include <vector>

#include "kernels/cuda/gpu.h"
#include "kernels/cuda/stream.h"

namespace winnow::cuda {

/// One part of a step: some launches in a row, and the graph that makes as many.
class StepGraph {
 public:
  explicit StepGraph(StepCounts& counts) : counts_(counts) {}
  ~StepGraph();
  StepGraph(const StepGraph&) = delete;
  StepGraph& operator=(const StepGraph&) = delete;

  void hold(const KernelCall& call, std::span<const Argument> arguments);
  size_t n_held() const { return n_held_; }
  /// Sends what is held: by the graph if it has as many nodes, else one by one. A graph is made once as many launches
  /// were held several steps in a row.
  void send(cudaStream_t stream);

 private:
  struct Held {
    KernelCall call;
    std::vector<size_t> bytes;  // of each argument
    std::vector<std::byte> arguments;
    bool is_new = true;  // not what the graph's node holds

    bool equals(const KernelCall& other, std::span<const Argument> values) const;
  };

  /// Where the arguments of a launch are.
  std::vector<void*> addresses(Held& held) const;
  void launch_all(size_t n, cudaStream_t stream);
  void build(size_t n, cudaStream_t stream);
  void update();
  void drop();

  StepCounts& counts_;
  std::vector<Held> held_;  // of this step the first n_held_, then those of an earlier one
  size_t n_held_ = 0, n_last_ = 0;
  int n_steps_alike_ = 0;
  std::vector<cudaGraphNode_t> nodes_;  // of the graph, in order; none: there is no graph
  cudaGraph_t graph_ = nullptr;
  cudaGraphExec_t exec_ = nullptr;
};

/// The stream of a device and what waits to be sent down it.
class Launcher {
 public:
  Launcher();
  ~Launcher();
  Launcher(const Launcher&) = delete;
  Launcher& operator=(const Launcher&) = delete;

  void begin_step();
  /// Nothing is held back from now on; what is waits until the next use of the stream.
  void end_step() noexcept { in_step_ = false; }
  void launch(const KernelCall& call, std::span<const Argument> arguments);
  /// Sends what waits.
  void send();

  cudaStream_t stream() const { return stream_; }
  uint64_t turn() const { return turn_; }
  const StepCounts& counts() const { return counts_; }

 private:
  void send_part();

  cudaStream_t stream_ = nullptr;
  StepCounts counts_;
  std::vector<std::unique_ptr<StepGraph>> parts_;
  size_t part_ = 0;  // the one that is being filled
  bool in_step_ = false;
  size_t n_at_once_ = 0;  // launches in a row that were not held back
  size_t limit_ = 0;      // launches of the part that is being filled
  uint64_t turn_ = 0;
};

}  // namespace winnow::cuda
