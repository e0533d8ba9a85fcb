#include "kernels/cuda/step_graph.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "kernels/cuda/check.h"

namespace winnow::cuda {
namespace {

constexpr size_t kAtOnce = 12;     // about a layer: the GPU has work while the host compares the first part
constexpr size_t kFirstPart = 24;  // launches; each part is twice as long as the one before it
constexpr size_t kLongestPart = 256;
constexpr size_t kLeast = 8;       // fewer are not worth a graph
constexpr int kStepsAlike = 3;     // before a graph is made
constexpr size_t kAlignment = 16;  // of arguments

size_t aligned(size_t bytes) {
  return (bytes + kAlignment - 1) / kAlignment * kAlignment;
}

/// Whether the GPU runs the code that waits (launch.cuh): that for 9.0. Later GPUs run that for 8.0, which does not.
bool starts_early() {
  static const bool kStartsEarly = [] {
    int device = 0, major = 0;
    check(cudaGetDevice(&device), "asking for the GPU");
    check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device), "asking for the GPU");
    return major == 9;
  }();
  return kStartsEarly;
}

void launch_now(const KernelCall& call, void** arguments, cudaStream_t stream) {
  cudaLaunchAttribute early{};
  early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  early.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = call.grid;
  config.blockDim = call.threads;
  config.dynamicSmemBytes = call.shared;
  config.stream = stream;
  config.attrs = &early;
  config.numAttrs = starts_early() ? 1 : 0;
  check(cudaLaunchKernelExC(&config, call.kernel, arguments), call.what);
}

/// The launch that was captured last.
cudaGraphNode_t last_captured(cudaStream_t stream) {
  cudaStreamCaptureStatus status{};
  const cudaGraphNode_t* last = nullptr;
  const cudaGraphEdgeData* edges = nullptr;
  size_t n = 0;
#if CUDART_VERSION >= 13000
  check(cudaStreamGetCaptureInfo(stream, &status, nullptr, nullptr, &last, &edges, &n), "capturing a step");
#else
  check(cudaStreamGetCaptureInfo_v3(stream, &status, nullptr, nullptr, &last, &edges, &n), "capturing a step");
#endif
  return n == 1 ? last[0] : nullptr;
}

}  // namespace

bool StepGraph::Held::equals(const KernelCall& other, std::span<const Argument> values) const {
  const auto same = [](const dim3& a, const dim3& b) { return a.x == b.x && a.y == b.y && a.z == b.z; };
  if (call.kernel != other.kernel || !same(call.grid, other.grid) || !same(call.threads, other.threads) ||
      call.shared != other.shared) {
    return false;  // a kernel has as many arguments, of the same sizes, each time
  }
  const std::byte* at = arguments.data();
  for (const Argument& value : values) {
    if (std::memcmp(at, value.value, value.bytes) != 0) return false;
    at += aligned(value.bytes);
  }
  return true;
}

StepGraph::~StepGraph() {
  drop();
}

void StepGraph::drop() {
  if (exec_ != nullptr) cudaGraphExecDestroy(exec_);
  if (graph_ != nullptr) cudaGraphDestroy(graph_);
  exec_ = nullptr;
  graph_ = nullptr;
  nodes_.clear();
}

void StepGraph::hold(const KernelCall& call, std::span<const Argument> arguments) {
  if (n_held_ == held_.size()) held_.emplace_back();
  Held& held = held_[n_held_++];
  if (held.equals(call, arguments)) return;
  held.call = call;
  held.is_new = true;
  held.bytes.clear();
  size_t total = 0;
  for (const Argument& argument : arguments) total += aligned(argument.bytes);
  held.arguments.resize(total);
  std::byte* at = held.arguments.data();
  for (const Argument& argument : arguments) {
    std::memcpy(at, argument.value, argument.bytes);
    held.bytes.push_back(argument.bytes);
    at += aligned(argument.bytes);
  }
}

std::vector<void*> StepGraph::addresses(Held& held) const {
  std::vector<void*> at;
  std::byte* next = held.arguments.data();
  for (const size_t bytes : held.bytes) {
    at.push_back(next);
    next += aligned(bytes);
  }
  return at;
}

void StepGraph::send(cudaStream_t stream) {
  const size_t n = std::exchange(n_held_, 0);
  n_steps_alike_ = n == n_last_ ? n_steps_alike_ + 1 : 0;
  n_last_ = n;
  counts_.launches += static_cast<int64_t>(n);
  if (nodes_.size() == n) {
    update();
  } else if (n >= kLeast && n_steps_alike_ >= kStepsAlike) {
    build(n, stream);
  } else {
    launch_all(n, stream);
    return;
  }
  check(cudaGraphLaunch(exec_, stream), "launching a step");
  counts_.replayed += static_cast<int64_t>(n);
}

void StepGraph::launch_all(size_t n, cudaStream_t stream) {
  for (size_t i = 0; i < n; ++i) launch_now(held_[i].call, addresses(held_[i]).data(), stream);
}

void StepGraph::update() {
  for (size_t i = 0; i < nodes_.size(); ++i) {
    Held& held = held_[i];
    if (!held.is_new) continue;
    std::vector<void*> arguments = addresses(held);
    cudaKernelNodeParams params{};
    params.func = const_cast<void*>(held.call.kernel);
    params.gridDim = held.call.grid;
    params.blockDim = held.call.threads;
    params.sharedMemBytes = static_cast<unsigned>(held.call.shared);
    params.kernelParams = arguments.data();
    check(cudaGraphExecKernelNodeSetParams(exec_, nodes_[i], &params), held.call.what);
    held.is_new = false;
    ++counts_.changed;
  }
}

/// By capturing what would be launched: so the graph's kernels overlap as those of the stream do.
void StepGraph::build(size_t n, cudaStream_t stream) {
  drop();
  std::vector<cudaGraphNode_t> nodes;
  check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeRelaxed), "capturing a step");
  for (size_t i = 0; i < n; ++i) {
    launch_now(held_[i].call, addresses(held_[i]).data(), stream);
    nodes.push_back(last_captured(stream));
  }
  check(cudaStreamEndCapture(stream, &graph_), "capturing a step");
  check(cudaGraphInstantiate(&exec_, graph_, 0), "making a step's graph");
  nodes_ = std::move(nodes);
  for (size_t i = 0; i < n; ++i) held_[i].is_new = false;
  ++counts_.graphs;
}

Launcher::Launcher() {
  check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "making a stream");
}

Launcher::~Launcher() {
  cudaStreamSynchronize(stream_);
  parts_.clear();
  cudaStreamDestroy(stream_);
}

void Launcher::begin_step() {
  send();
  in_step_ = true;
  part_ = 0;
}

void Launcher::launch(const KernelCall& call, std::span<const Argument> arguments) {
  if (!in_step_) send();
  if (!in_step_ || n_at_once_ < kAtOnce) {
    std::vector<void*> addresses;
    for (const Argument& argument : arguments) addresses.push_back(const_cast<void*>(argument.value));
    launch_now(call, addresses.data(), stream_);
    ++n_at_once_;
    if (in_step_) ++counts_.launches;
    return;
  }
  if (part_ == parts_.size()) parts_.push_back(std::make_unique<StepGraph>(counts_));
  parts_[part_]->hold(call, arguments);
  if (parts_[part_]->n_held() == limit_) {
    send_part();
    limit_ = std::min(2 * limit_, kLongestPart);
  }
}

void Launcher::send_part() {
  ++turn_;
  parts_[part_++]->send(stream_);
}

void Launcher::send() {
  if (part_ < parts_.size() && parts_[part_]->n_held() > 0) send_part();
  n_at_once_ = 0;
  limit_ = kFirstPart;
}

cudaStream_t Stream::at(When when) const {
  if (when == When::in_turn) launcher_->send();
  return launcher_->stream();
}

void Stream::launch(const KernelCall& call, std::span<const Argument> arguments) const {
  launcher_->launch(call, arguments);
}

uint64_t Stream::turn() const {
  return launcher_->turn();
}

}  // namespace winnow::cuda
