// Many-shot classification: labels that are numbers, given to eight topics anew for each sample, so that they can only
// be learned from the examples that fill the prompt (as HELMET's in-context learning tasks do with data sets that
// cannot be shipped).
#include <fmt/format.h>

#include <array>

#include "eval/sized.h"

namespace winnow::roster {
namespace {

using eval::Draw;

constexpr std::string_view kName = "many_shot";
constexpr int32_t kTokens = 8;

struct Topic {
  std::vector<std::string_view> who, what, how;
};

const std::array<Topic, 8>& topics() {
  static const std::array<Topic, 8> kTopics = {{
      {{"The storm", "A cold front", "Heavy rain", "The fog", "Thick snow", "The wind"},
       {"reached the coast", "moved over the hills", "closed the mountain road", "lasted until noon",
        "surprised the forecasters"},
       {"before the weekend", "with gusts from the west", "as the pressure fell", "and the temperature dropped",
        "after a dry week"}},
      {{"The cook", "My aunt", "The baker", "Our host", "The pastry chef", "The innkeeper"},
       {"stirred the soup", "seasoned the roast", "kneaded the dough", "chopped the onions", "tasted the sauce"},
       {"and added more pepper", "before the guests sat down", "over a low flame", "with butter and thyme",
        "in a copper pan"}},
      {{"The schooner", "The captain", "A tugboat", "The crew", "The lighthouse keeper", "The pilot boat"},
       {"left the harbour", "lowered the anchor", "sighted the reef", "steered past the buoy",
        "signalled to the shore"},
       {"at high tide", "under full sail", "in a heavy swell", "with the cargo on deck", "on the way to the strait"}},
      {{"The pianist", "The choir", "A young composer", "The orchestra", "The violinist", "The conductor"},
       {"rehearsed the second movement", "missed the chord", "sang the encore", "tuned the strings",
        "played the sonata"},
       {"a little too fast", "in a minor key", "to long applause", "without the score", "in the concert hall"}},
      {{"The bank", "An investor", "The treasurer", "The market", "A broker", "The pension fund"},
       {"raised its rates", "sold the bonds", "lost four percent", "paid a dividend", "refused the loan"},
       {"in the third quarter", "after the audit", "despite the losses", "at the close of trading", "on rising costs"}},
      {{"The surgeon", "A nurse", "The patient", "The dentist", "The clinic", "A young doctor"},
       {"treated the fever", "examined the lungs", "prescribed rest", "dressed the wound", "measured the pulse"},
       {"during the night shift", "after the operation", "with a new vaccine", "in the emergency ward",
        "until the pain was gone"}},
      {{"The judge", "A lawyer", "The jury", "The defendant", "The court", "The prosecutor"},
       {"read the verdict", "dismissed the charge", "questioned the witness", "filed an appeal",
        "reviewed the contract"},
       {"for lack of evidence", "behind closed doors", "on the second day of the trial", "under the new statute",
        "without a dissent"}},
      {{"The gardener", "A bee", "The old apple tree", "The tomato plant", "Our neighbour's hedge", "The rose bush"},
       {"was pruned", "needed more water", "bloomed early", "grew beside the fence", "was moved into the shade"},
       {"in the first warm week", "among the tulips", "with plenty of compost", "before the frost",
        "along the gravel path"}},
  }};
  return kTopics;
}

std::string sentence(Draw& draw, const Topic& topic) {
  return fmt::format("{} {} {}.", draw.choice(topic.who), draw.choice(topic.what), draw.choice(topic.how));
}

eval::Sample build(Draw& draw, int64_t n_shots) {
  std::vector<int64_t> labels = draw.sample(90, std::ssize(topics()));
  for (int64_t& label : labels) label += 10;  // two digits each
  eval::Sample sample;
  sample.context = "Every text below has a label. Learn which label belongs to which kind of text.\n";
  for (int64_t i = 0; i < n_shots; ++i) {
    const size_t topic = draw.below(topics().size());
    sample.context += fmt::format("\nText: {}\nLabel: {}\n", sentence(draw, topics()[topic]), labels[topic]);
  }
  const size_t topic = draw.below(topics().size());
  sample.question = fmt::format("\nWhat is the label of the next text? Answer with the label alone.\nText: {}",
                                sentence(draw, topics()[topic]));
  sample.answer_prefix = "Label:";
  sample.outputs = {std::to_string(labels[topic])};
  return sample;
}

}  // namespace

const eval::TaskInfo& task_many_shot() {
  static const eval::TaskInfo kInfo = {.name = kName,
                                       .title = "the label of a text, learned from as many labelled ones as fit",
                                       .source = "winnow's own, after HELMET's in-context learning, arXiv 2410.02694",
                                       .metric = "first_number",
                                       .n_gen = kTokens,
                                       .make = [](const eval::Request& request) {
                                         return eval::make_sized(
                                             request, {.name = kName, .build = build, .step = 8, .reserve = kTokens});
                                       }};
  return kInfo;
}

}  // namespace winnow::roster
