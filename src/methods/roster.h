// All methods by name, and several of them put together for one sequence.
#pragma once

#include <vector>

#include "methods/method.h"

namespace winnow {

/// All methods, one for each file of src/methods.
std::span<const MethodInfo* const> method_roster();

/// Throws Error that lists the known names.
const MethodInfo& find_method(std::string_view name);

/// A checked choice of methods: at most one selector and one pruner; compressors in the order given. Immutable, shared
/// by sequences.
class Policy {
 public:
  Policy() = default;
  /// Throws Error where a spec is malformed, unknown, out of range, or two of them cannot work together.
  Policy(std::span<const std::string> specs, const MethodShape& shape);

  /// The policy as a user would write it; "dense" where there is none.
  const std::string& name() const { return name_; }
  /// New methods with empty state, for one sequence.
  std::vector<Method> make() const;
  /// The selector's min_len: with fewer tokens in the cache the engine computes dense attention.
  int32_t break_even() const { return break_even_; }
  /// The selector's: so many last rows of the prompt see everything.
  int32_t last_rows() const { return last_rows_; }
  /// The pruner's: with fewer tokens in the sequence nothing is dropped.
  int32_t prune_break_even() const { return prune_break_even_; }
  /// skip-softmax's: with fewer tokens in the cache nothing is skipped.
  int32_t skip_break_even() const { return skip_break_even_; }

 private:
  struct Choice {
    const MethodInfo* info;
    Params params;
  };
  std::vector<Choice> choices_;
  MethodShape shape_;
  std::string name_ = "dense";
  int32_t break_even_ = 0, last_rows_ = 0, prune_break_even_ = 0, skip_break_even_ = 0;
};

}  // namespace winnow
