// The one stream of a device, as everybody holds it. Launches of a decode step may wait (step_graph.h); whoever uses
// the stream for anything else takes it as a cudaStream_t, and what waits is sent first. So nobody has to think of it.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <span>

namespace winnow::cuda {

class Launcher;

/// A launch without its arguments.
struct KernelCall {
  const void* kernel = nullptr;
  dim3 grid, threads;
  size_t shared = 0;      // bytes
  const char* what = "";  // for messages
};

struct Argument {
  const void* value = nullptr;
  size_t bytes = 0;
};

/// Among launches that wait: behind them, or ahead of them, which is for what touches no memory that they touch.
enum class When { in_turn, ahead };

/// Must not outlive its Launcher.
class Stream {
 public:
  Stream() = default;
  explicit Stream(Launcher& launcher) : launcher_(&launcher) {}

  operator cudaStream_t() const { return at(When::in_turn); }  // NOLINT(google-explicit-constructor): as CUDA's own
  cudaStream_t at(When when) const;
  /// Launches now, or holds back in a decode step. Arguments are copied.
  void launch(const KernelCall& call, std::span<const Argument> arguments) const;
  /// A number that is another one as soon as what waits now has been sent.
  uint64_t turn() const;

 private:
  Launcher* launcher_ = nullptr;
};

}  // namespace winnow::cuda
