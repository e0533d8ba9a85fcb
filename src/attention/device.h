// What a machine must be able to do to run a model: about a dozen ops, the verbs of ops.h, and memory.
// Activations are matrices in device memory: float32, or bf16 where the device computes in that. Calls run in order;
// `sync` waits for them.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "attention/ops.h"
#include "base/memory.h"
#include "base/types.h"

namespace winnow {

/// A view of activations, row-major, on the device.
struct Mat {  // [rows, cols]
  float* data = nullptr;
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t stride = 0;     // values from one row to the next
  Type type = Type::f32;  // or bf16: `data` then points at these

  /// One row; float32 only.
  float* row(int64_t r) const { return data + r * stride; }
  Mat slice(int64_t begin, int64_t n) const { return {advance(data, begin * stride, type), n, cols, stride, type}; }
  HeadsView heads(int32_t head_dim) const {
    return {data, rows, static_cast<int32_t>(cols / head_dim), head_dim, stride, type};
  }
};

/// Activations that belong to somebody; given back to the device's pool when it dies.
class Scratch {
 public:
  Scratch() = default;
  Scratch(Mat view, std::shared_ptr<void> owner) : view_(view), owner_(std::move(owner)) {}
  operator Mat() const { return view_; }  // NOLINT(google-explicit-constructor): a Scratch is used as its view
  const Mat* operator->() const { return &view_; }

 private:
  Mat view_;
  std::shared_ptr<void> owner_;
};

/// A weight matrix as its file stores it: n_out rows of n_in values. y = x W^T.
struct Weight {
  std::string name;
  Type type = Type::f32;
  int64_t n_out = 0;
  int64_t n_in = 0;
  const std::byte* data = nullptr;  // in the mapped file, host memory
  explicit operator bool() const { return data != nullptr; }
};

enum class Gate { silu, gelu_tanh };

/// What a device computes products in: its own choice, which `description` tells, or eight-bit floats (e4m3) with a
/// scale for each row of weights and of activations.
enum class ProductType { own, fp8 };

/// "own" or "fp8". Throws Error for any other name.
ProductType product_type(std::string_view name);

/// Where new rows of K and V of one kv head go: row r to slot first_slot + r of the head's blocks.
struct KvTarget {
  std::span<std::byte*const> k, v;  // all blocks of the head, those of the new slots among them
  int32_t first_slot = 0;
};

struct BytesCopy {
  std::byte* to = nullptr;
  const std::byte* from = nullptr;
  size_t bytes = 0;
};

/// How many rows a device likes to work on at once.
struct RowsAtOnce {
  int32_t product = 1024;  // rows that a layer's products take together
  int64_t attend = 4096;   // rows of one attention call; K and V are prepared anew for each
};

/// Weights unpacked for products of many rows; dropped when it dies. See Device::unpack.
class Unpacked {
 public:
  virtual ~Unpacked() = default;
};

/// The weights of a layer's feed-forward part: down (act(gate x) * (up x)).
struct GatedWeights {
  const Weight* gate = nullptr;  // [n_ff, n_embd]
  const Weight* up = nullptr;    // [n_ff, n_embd]
  const Weight* down = nullptr;  // [n_embd, n_ff]
  Gate act = Gate::silu;
};

class Device : public Ops {
 public:
  virtual std::string_view name() const = 0;
  virtual int n_threads() const = 0;
  /// What this device chose on this machine, for people: instruction sets, precision of the products.
  virtual std::string description() const = 0;
  /// GFLOP/s of the device's own matrix product in the number format that its attention computes in: a yardstick,
  /// measured anew by each call, which takes about a second. 0: has none (ref).
  virtual double peak_gflops() = 0;
  MemoryMeter& memory() { return memory_; }

  virtual RowsAtOnce rows_at_once() const { return {}; }
  /// Whether the host may read and write what the device allocates.
  virtual bool memory_is_host() const { return true; }

  // Memory. `scratch` is float32: the residual stream, logits. `activations` are what products and attention hand to
  // each other, in the type that the device computes in.
  virtual Scratch scratch(int64_t rows, int64_t cols) = 0;
  virtual Scratch activations(int64_t rows, int64_t cols) { return scratch(rows, cols); }
  virtual void upload(Mat to, const float* from) = 0;             // from: [rows, cols], contiguous, host memory
  virtual void download(float* to, Mat from) = 0;                 // to: [rows, cols], contiguous, host memory
  virtual std::shared_ptr<std::byte> allocate(size_t bytes) = 0;  // counted; cache blocks
  /// Within device memory. No copy reads or writes what another one writes.
  virtual void copy_bytes(std::span<const BytesCopy> copies) = 0;
  virtual void upload_bytes(std::byte* to, const std::byte* from, size_t bytes) = 0;  // from: host memory
  virtual void sync() = 0;

  // Weights. A product of many rows needs its weights unpacked; that costs as much as a few hundred rows of it, so the
  // engine does it once per layer and prompt. Products of few rows read the file's own quantised blocks.
  virtual std::unique_ptr<Unpacked> unpack(std::span<const Weight* const> weights) = 0;
  /// y = x W^T (+ bias). x [rows, n_in], y [rows, n_out], bias [n_out] or null. Uses what `unpack` left, if it is
  /// alive.
  virtual void linear(const Weight& weight, Mat x, Mat y, const float* bias = nullptr) = 0;
  /// y = x [W_0; W_1; ...]^T: several weights of the same input, each into its own y. One pass over x. biases: one for
  /// each weight, as `linear` takes it; or empty: none.
  virtual void linear_many(std::span<const Weight* const> weights, Mat x, std::span<const Mat> ys,
                           std::span<const float* const> biases = {}) = 0;
  /// y = down (act(gate x) * (up x)). x and y [rows, n_embd]; y may be x. A device that can computes it without
  /// writing down what lies between.
  virtual void feed_forward(const GatedWeights& weights, Mat x, Mat y);
  /// x += feed_forward(h), of float32 rows x. The default writes into h first.
  virtual void feed_forward_add(const GatedWeights& weights, Mat h, Mat x) {
    feed_forward(weights, h, h);
    add(x, h);
  }

  /// x += h W^T, of float32 rows x. The default makes the product first.
  virtual void linear_add(const Weight& weight, Mat h, Mat x) {
    const Scratch y = activations(h.rows, weight.n_out);
    linear(weight, h, y);
    add(x, y);
  }

  // Ops of layers. Vectors of parameters (norm weights, biases) are float32 in host memory.
  virtual void embed(const Weight& table, std::span<const int32_t> tokens, float scale, Mat x) = 0;
  virtual void rms_norm(Mat x, const float* weight, float eps, Mat y) = 0;                      // per row; y may be x
  virtual void rms_norm_heads(HeadsView x, const float* weight, float eps) = 0;                 // per head, in place
  virtual void rope(HeadsView x, const RopeArgs& args, std::span<const int32_t> position) = 0;  // in place
  virtual void gated(Mat gate, Mat up, Gate kind, Mat y) = 0;  // y = act(gate) * up; y may be gate
  virtual void add(Mat x, Mat y) = 0;                          // x += y
  virtual void add_bias(Mat x, const float* bias) = 0;         // every row
  virtual void scale_softcap(Mat x, float softcap) = 0;        // x = softcap * tanh(x / softcap)
  virtual void gather_rows(Mat from, std::span<const int32_t> rows, Mat to) = 0;

  // Cache storage. k and v [n_rows, n_kv_head, head_dim]; target [n_kv_head].
  virtual void store_kv(HeadsView k, HeadsView v, Type k_type, Type v_type, std::span<const KvTarget> target) = 0;
  /// One slot of a block as float32 [head_dim], and back; for edits of the cache.
  virtual void load_slot(const std::byte* block, Type type, int32_t head_dim, int32_t slot, float* values) = 0;
  virtual void store_slot(std::byte* block, Type type, int32_t head_dim, int32_t slot, const float* values) = 0;

  // What a device may do better at once than one by one.
  /// `rope` of queries and keys of the same rows.
  virtual void rope_both(HeadsView q, HeadsView k, const RopeArgs& args, std::span<const int32_t> position) {
    rope(q, args, position);
    rope(k, args, position);
  }
  /// Between the two lies a decode step, most likely much like the one before it. A device may hold its work back then,
  /// until something of it is waited for.
  virtual void begin_step() {}
  virtual void end_step() {}

 protected:
  MemoryMeter memory_;
};

/// Values of one K or V block in `type`: bytes of [kBlockSlots, head_dim]. head_dim must be a multiple of the type's
/// block.
size_t kv_block_bytes(Type type, int32_t head_dim);

/// `name`: "cpu", "cuda" or "ref" (plain loops in double, the oracle). n_threads 0: all usable cores.
/// Throws Error, saying what is available, for any other name, and where the device has no such products.
std::unique_ptr<Device> make_device(std::string_view name, int n_threads, ProductType products = ProductType::own);

}  // namespace winnow
