// InfiniteBench's Retrieve.KV: the value of one key among pairs of UUIDs, which give a selector nothing to go by.
#include <fmt/format.h>

#include "eval/infinite_bench.h"

namespace winnow::roster {
namespace {

constexpr int32_t kTokens = 50;

eval::Sample build(eval::Draw& draw, int64_t n_pairs) {
  eval::Sample sample;
  const int64_t gold = draw.between(0, n_pairs - 1);
  sample.depth = static_cast<double>(gold) / static_cast<double>(n_pairs);
  sample.context = "Extract the value corresponding to the specified key in the JSON object below.\n\nJSON data:\n{";
  for (int64_t i = 0; i < n_pairs; ++i) {
    const std::string key = draw.uuid(), value = draw.uuid();
    sample.context += fmt::format("{}\"{}\": \"{}\"", i == 0 ? "" : ", ", key, value);
    if (i != gold) continue;
    sample.question = fmt::format("\n\nKey: \"{}\"\nThe value associated with the specified key is: ", key);
    sample.outputs = {value};
  }
  sample.context += "}";
  return sample;
}

}  // namespace

const eval::TaskInfo& task_kv_retrieval() {
  static const eval::TaskInfo kInfo = {
      .name = "kv_retrieval",
      .title = "the value of one key among pairs of UUIDs",
      .source = eval::kInfiniteBench,
      .metric = "word",
      .n_gen = kTokens,
      .make = [](const eval::Request& request) {
        return eval::make_sized(request, {.name = "kv_retrieval", .build = build, .step = 2, .reserve = kTokens});
      }};
  return kInfo;
}

}  // namespace winnow::roster
