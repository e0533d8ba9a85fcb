// The needle test's grid (gkamradt/LLMTest_NeedleInAHaystack): one needle in prose at depths 0, 10, ... 100 %, sample
// after sample, 200 tokens kept free. The text is winnow's own, the needle is RULER's, and finding it is a matter of
// substrings where the original asks a judge model.
#include <array>

#include "eval/niah.h"

namespace winnow::roster {
namespace {

constexpr std::string_view kName = "needle_grid";
constexpr int64_t kDepths = 11;
constexpr int32_t kTokens = 48;
constexpr int64_t kBuffer = 200;

class Grid : public eval::Generator {
 public:
  explicit Grid(const eval::Request& request) : request_(request) {}

  eval::Sample sample(int64_t index) override {
    const auto at = static_cast<size_t>(index % kDepths);
    if (!rows_[at]) {
      const eval::NiahShape shape = {.haystack = eval::Haystack::essay,
                                     .depth = static_cast<double>(at) / (kDepths - 1)};
      const auto build = [shape, seed = request_.seed](eval::Draw& draw, int64_t size) {
        return eval::build_niah(shape, seed, draw, size);
      };
      rows_[at] = eval::make_sized(request_, {.name = kName, .build = build, .step = 20, .reserve = kBuffer});
    }
    return rows_[at]->sample(index);
  }

 private:
  eval::Request request_;
  std::array<std::unique_ptr<eval::Generator>, kDepths> rows_;
};

}  // namespace

const eval::TaskInfo& task_needle_grid() {
  static const eval::TaskInfo kInfo = {
      .name = kName,
      .title = "one number in prose, at eleven depths in turn",
      .source = "after LLMTest_NeedleInAHaystack; winnow's own essays, substrings instead of a judge",
      .metric = "all",
      .n_gen = kTokens,
      .make = [](const eval::Request& request) -> std::unique_ptr<eval::Generator> {
        return std::make_unique<Grid>(request);
      }};
  return kInfo;
}

}  // namespace winnow::roster
