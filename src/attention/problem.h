// One attention call written as text, made up from random numbers: the same description serves tests and timing.
//
//   const Problem problem = parse_problem("prefill rows=8192 heads=12 kv=2 dim=128 density=0.1");
//   ProblemData data(problem);                        // in host memory
//   ProblemOn on_device(device, data);
//   device.attend(on_device.args());
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "attention/device.h"

namespace winnow {

/// What a problem string says; problem_help() describes the keys, in this order.
struct Problem {
  int64_t rows = 1024;
  int64_t slots = 0;  // 0: as many as rows
  int32_t heads = 8;
  int32_t kv = 2;
  int32_t dim = 64;
  Type k_type = Type::f16, v_type = Type::f16;
  double density = 1;
  int32_t block_q = 64, block_k = 64;
  int32_t columns = 0;
  int32_t verticals = 0, slashes = 0, runs = 48;  // lines instead of blocks; see attention/drawn_lines.h
  bool unaligned = false;
  bool shared = false;
  int32_t window = 0;
  double softcap = 0;
  bool bias = false;
  double holes = 0;
  double skip = 0;
  int32_t threads = 0;
  uint64_t seed = 1;

  int64_t n_slots() const { return slots > 0 ? slots : rows; }
  bool lines() const { return slashes > 0; }
  bool sparse() const { return density < 1 || columns > 0 || unaligned || lines(); }
};

/// "prefill KEY=VALUE ..." or "decode KEY=VALUE ...". Throws Error that names the key, its value and what is allowed.
Problem parse_problem(std::string_view text);
/// The keys with their meaning, for a program's help.
std::string_view problem_help();

/// Random queries, cache and selection of a problem, in host memory. The same seed gives the same numbers.
class ProblemData {
 public:
  /// `copies` caches of equal shape and different blocks, so that timing can read from memory instead of a cache.
  explicit ProblemData(const Problem& problem, int copies = 1);
  ProblemData(const ProblemData&) = delete;
  ProblemData& operator=(const ProblemData&) = delete;

  /// The call, with results in o() and lse(); `counts` is not asked for.
  const AttnArgs& args() const { return args_; }
  AttnArgs args_of_copy(int copy) const;
  std::vector<float>& o() { return o_; }      // [rows, heads, dim]
  std::vector<float>& lse() { return lse_; }  // [rows, heads]
  const Selection& selection() const { return selection_; }
  int64_t kv_bytes() const;  // of one copy

 private:
  void make_positions();
  void make_caches(int copies);
  void make_selection();
  void make_list(int64_t block);

  Problem problem_;
  uint64_t state_;
  std::vector<float> q_, o_, lse_, skip_;
  std::vector<int32_t> idx_, limit_;
  std::vector<float> bias_;
  std::vector<std::vector<std::byte>> blocks_;                         // storage of all copies
  std::vector<std::unique_ptr<std::vector<const std::byte*>>> lists_;  // addresses, two lists a kv head and copy
  std::vector<std::vector<KvHead>> heads_;                             // [copy]
  Selection selection_;
  AttnArgs args_;
};

/// A problem in a device's own memory: queries and outputs among its activations, caches in its blocks.
class ProblemOn {
 public:
  /// Takes the first `copies` of data's caches. `data` must outlive this.
  ProblemOn(Device& device, const ProblemData& data, int copies = 1);

  /// The call, with results where `download` finds them; `counts` is not asked for.
  AttnArgs args(int copy = 0) const;
  /// The results. -> o [rows, heads, dim], lse [rows, heads]
  void download(std::vector<float>& o, std::vector<float>& lse);

 private:
  std::shared_ptr<std::byte> upload(const std::byte* from, Type type);

  Device& device_;
  const ProblemData& data_;
  Scratch q_, o_, lse_;
  Selection selection_;
  std::vector<std::shared_ptr<std::byte>> blocks_;
  std::vector<std::unique_ptr<std::vector<const std::byte*>>> lists_;  // two for each kv head and copy
  std::vector<std::vector<KvHead>> heads_;                             // [copy]
};

struct ProblemResult {
  double max_error = 0;      // against ref, over the rows that were compared
  int64_t rows_checked = 0;  // whole query tiles; all rows of small problems
  AttnCounts counts;
  double seconds = 0;  // the fastest of the repetitions
  // Of problems with lines: the device's own estimate of as many, their lists laid out; the fastest of the repetitions,
  // and the density of attention with the lists it found.
  double estimate_seconds = 0, estimate_density = 0;
  double gflops = 0;          // of computed (row, slot) pairs: 4 * dim each
  double tile_gflops = 0;     // of whole tiles: a key that any row of a query tile sees counts for all its rows
  double peak_gflops = 0;     // the device's own matrix product, measured in the same run
  double gb_per_second = 0;   // K and V of all slots over the time; meant for decode
  double read_gb_second = 0;  // a streaming read by the same threads, measured in the same run
};

/// Checks the problem against ref, then times it for at least `seconds`.
ProblemResult run_problem(Device& device, const Problem& problem, double seconds = 1);

}  // namespace winnow
