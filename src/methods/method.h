// The method interface. A method is a policy for attention that a user switches on by name; it fills one or more parts,
// each of which returns plain data that the engine applies. One file each in src/methods, with its test beside it.
//
// A method object belongs to one sequence and lives exactly as long: its members are its state.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "attention/ops.h"
#include "base/spec.h"
#include "cache/kv_cache.h"

namespace winnow {

/// What a method needs to know of a model to set itself up.
struct MethodShape {
  int32_t n_layer = 0, n_head = 0, n_head_kv = 0, head_dim = 0;
  std::string_view architecture{};  // as its file calls it; the model's own text
  bool on_gpu = false;              // where it runs: break-evens differ
};

/// One layer of one sequence at one step, after its rows were appended to the cache. In layer-major prefill q holds
/// every row of the prompt that is being read; in chunk-major prefill a chunk's; in decode one row.
struct Site {
  int32_t layer = 0;
  HeadsView q;                     // [n_rows, n_head, head_dim] after RoPE
  KvView kv;                       // everything the rows may see, themselves included
  std::span<const int32_t> limit;  // [n_rows] causal position of each row
  float scale = 1, softcap = 0;
  int32_t window = 0;  // > 0: a sliding-window layer; the engine asks no selector there
  RopeArgs rope{};     // how positions turned q and the keys
  Ops& ops;
  int64_t n_wanted = 1;  // last rows whose logits somebody reads: they attend in any case. 0 in a chunk before the last
  int64_t n_later = 0;   // rows of the prompt that come after these: those of later chunks
};

/// Decides before attention which blocks and columns are computed. An empty Selection is the dense answer.
class Selector {
 public:
  virtual ~Selector() = default;
  virtual Selection select(const Site& site) = 0;
  /// Whether decoded rows are asked about too: each token's row, alone, in every layer without a window, once the cache
  /// is longer than the break-even. Otherwise decode is dense.
  virtual bool in_decode() const { return false; }
};

/// Decides after attention which slots the cache keeps. Called after a layer's whole prompt and after each decoded row.
class Compressor {
 public:
  virtual ~Compressor() = default;
  virtual KvEdit compress(const Site& site, bool prefill) = 0;
  /// Asked before `compress` in prefill: begins what that will look at where the device makes it while the host goes on
  /// (Ops::begin_window_mass). true: it has, and `compress` is asked of the same site when the device has been given
  /// the rest of the layer, so that nothing waits for the host.
  virtual bool begin(const Site& /*site*/) { return false; }
  /// Asked before a decoded row attends, unless a selector chooses for it: what it computes of the cache. Who lets go
  /// of slots later than they are due leaves them out here. Empty: everything.
  virtual Selection select_row(const Site& /*site*/) { return {}; }
};

/// Decides, after a layer has attended, which tokens go on to the layers above. Rows of dropped tokens are not computed
/// there, and their keys and values are not in those layers' caches.
class Pruner {
 public:
  virtual ~Pruner() = default;
  /// false: a dropped token stays where it stopped. The candidates are the rows that are being read, and decode asks
  ///   nobody: a new token attends to what each layer's cache holds. FastV, AdaptInfer, MustDrop.
  /// true: the engine keeps the hidden states of dropped tokens. In every step, prefill or decode, all tokens of the
  ///   sequence are candidates again; one that reaches a layer whose cache lacks it is computed there, once, and what
  ///   was dropped below is invisible to the step. LazyLLM. No compressor works beside it.
  virtual bool revives() const = 0;
  /// Asked after every layer but the last, sliding-window layers among them. `candidate`: ascending positions of the
  /// tokens that this layer attended to, all of them in site.kv; site.q holds the step's last rows, at most 128.
  /// -> ascending indices into `candidate` of those that go on; empty: all. Rows whose logits are wanted go on anyhow.
  virtual std::vector<int32_t> prune(const Site& site, std::span<const int32_t> candidate) = 0;
};

/// Thresholds of skip-softmax as factors: lambda = factor / (tokens in the cache). 0: off.
struct SkipSoftmax {
  double prefill = 0, decode = 0;
};

struct Method {
  std::unique_ptr<Selector> selector;
  std::unique_ptr<Compressor> compressor;
  std::unique_ptr<Pruner> pruner;
  SkipSoftmax skip;
};

/// Watches a dense prefill and ends with a calibration file's text (JSON). The file starts with the method's name and
/// the model's shape, and is refused for another.
class Calibration {
 public:
  virtual ~Calibration() = default;
  virtual void observe(const Site& site) = 0;
  virtual std::string result() const = 0;
};

/// The one parameter that trades what a method computes for what it misses, for users who ask for a recall or a
/// speed-up instead of a value.
struct Knob {
  std::string_view param;        // of the method's own; empty: it has no knob
  double dense = 0, sparse = 0;  // the range worth turning, from most to least computed; either may be the larger
  bool geometric = false;        // values between the ends lie equal ratios apart, not equal steps
};

/// One tensor of a method's file of trained weights; see methods/weights_file.h.
struct WeightTensor {
  std::string name;            // of a layer: "gate_k.weight" is "blk.0.gate_k.weight" and so on in the file
  std::vector<int64_t> shape;  // slowest first: [n_out, n_in] of a matrix
  std::string_view meaning;    // a phrase
  bool per_layer = true;       // false: one serves all layers, under its plain name
};

/// A selector's parameter: the engine lets these rows see everything, see last_rows.h. No paper's method has it, so it
/// is 0 unless the paper's rule is of that kind.
constexpr ParamInfo last_rows_param(double initial = 0) {
  return {"last_rows", "last rows of the prompt that see everything", initial, 0, 1e9, true};
}

/// As a break-even: at no length that was measured did the method gain.
inline constexpr int32_t kNeverGains = 1000000000;

struct MethodInfo {
  std::string_view name;
  std::string_view title;  // one line for people
  std::string_view paper;  // "MInference 1.0, arXiv 2407.02490"
  std::string_view
      parts;  // "selector", "compressor", "pruner", "skip-softmax", joined by ", "; empty: none, plain attention
  std::string_view neutral;  // a spec of this method whose result equals dense attention: "snapkv(budget=1000000000)"
  // A selector has the parameter "min_len": tokens in the cache below which it answers dense; so has a pruner, which
  // then drops nothing, and who skips, which then skips nothing. Its initial value is the break-even that was measured;
  // the engine looks at it, the method need not. So it does at a selector's other common parameter, last_rows_param().
  std::span<const ParamInfo> params;
  int32_t gpu_min_len = 0;                  // the break-even of GPUs, above 0 where it was measured to be another one
  Knob knob{};                              // of a selector; see knob.h
  std::span<const std::string_view> texts;  // parameters that are texts: paths of files
  Method (*make)(const Params& params, const MethodShape& shape) = nullptr;
  std::unique_ptr<Calibration> (*calibrate)(const Params& params, const MethodShape& shape) = nullptr;
  // What the file must hold that the text parameter "weights" names; null: there is no such parameter. Tests write
  // random files by it.
  std::vector<WeightTensor> (*weights)(const MethodShape& shape) = nullptr;
  bool needs_weights = false;  // refuses to work without the file
};

}  // namespace winnow
