#include "eval/niah.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "eval/essay.h"
#include "eval/words.h"

namespace winnow::eval {
namespace {

constexpr std::string_view kNoise =
    "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again.";
constexpr int kDepths = 40;  // depths in essays are drawn from this many, evenly spaced from 0 to 100 %

struct Needle {
  std::string text;
  int key = 0;
};

std::string_view kind_name(NeedleKind kind) {
  return kind == NeedleKind::numbers ? "numbers" : kind == NeedleKind::words ? "words" : "uuids";
}

std::string draw_kind(Draw& draw, NeedleKind kind, int n_digits) {
  if (kind == NeedleKind::numbers) return draw.number(n_digits);
  return kind == NeedleKind::words ? draw.choice(pair_words()) : draw.uuid();
}

std::string needle_text(const NiahShape& shape, const std::string& key, const std::string& value) {
  return fmt::format("One of the special magic {} for {} is: {}.", kind_name(shape.value), key, value);
}

/// Distractors: a fresh key and value each. RULER v2 gives every distractor key as many values as the needles' keys
/// have and shuffles them.
std::vector<std::string> distractors(const NiahShape& shape, Draw& draw, int64_t n) {
  std::vector<std::string> lines;
  const bool grouped = shape.version2 && shape.n_values > 1;
  const int64_t n_keys = grouped ? (n + shape.n_values - 1) / shape.n_values : n;
  std::vector<std::string> keys;
  for (int64_t i = 0; i < n_keys; ++i) keys.push_back(draw_kind(draw, shape.key, shape.n_digits));
  for (int64_t i = 0; i < n; ++i) {
    lines.push_back(
        needle_text(shape, keys[static_cast<size_t>(i % n_keys)], draw_kind(draw, shape.value, shape.n_digits)));
  }
  if (grouped) draw.shuffle(lines);
  return lines;
}

/// Where each needle stands as a share of the text, in the order of `needles`.
using Depths = std::vector<double>;

std::string in_lines(const NiahShape& shape, Draw& draw, int64_t n, const std::vector<Needle>& needles,
                     Depths& depths) {
  std::vector<std::string> lines = shape.haystack == Haystack::noise
                                       ? std::vector<std::string>(static_cast<size_t>(n), std::string(kNoise))
                                       : distractors(shape, draw, n);
  std::vector<int64_t> places = draw.sample(n, static_cast<int64_t>(needles.size()));
  if (shape.depth >= 0) places = {std::lround(shape.depth * static_cast<double>(n))};
  std::sort(places.begin(), places.end(), std::greater<>());
  for (size_t i = 0; i < needles.size(); ++i) {
    lines.insert(lines.begin() + places[i], needles[i].text);
    depths.push_back(static_cast<double>(places[i]) / static_cast<double>(n));
  }
  return fmt::format("{}", fmt::join(lines, "\n"));
}

std::string in_essay(const NiahShape& shape, Draw& draw, int64_t n_words, const std::vector<Needle>& needles,
                     Depths& depths) {
  const std::vector<std::string> sentences = essay_sentences(n_words);
  std::vector<double> shares;
  for (const int64_t place : draw.sample(kDepths, static_cast<int64_t>(needles.size()))) {
    shares.push_back(std::nearbyint(100.0 * static_cast<double>(place) / (kDepths - 1)) / 100.0);
  }
  if (shape.depth >= 0) shares = {shape.depth};
  std::sort(shares.begin(), shares.end());
  std::vector<std::string> parts;
  size_t next = 0;
  for (size_t i = 0; i <= sentences.size(); ++i) {
    while (next < needles.size() && i == static_cast<size_t>(static_cast<double>(sentences.size()) * shares[next])) {
      parts.push_back(needles[next++].text);
    }
    if (i < sentences.size()) parts.push_back(sentences[i]);
  }
  depths = shares;
  return fmt::format("{}", fmt::join(parts, " "));
}

std::string list_of(const std::vector<std::string>& names) {
  if (names.size() == 1) return names.front();
  return fmt::format("{}, and {}", fmt::join(names.begin(), names.end() - 1, ", "), names.back());
}

void word_prompt(const NiahShape& shape, const std::string& text, const std::string& query, Sample& sample) {
  const bool one = shape.n_queries * shape.n_values == 1;
  std::string kind(kind_name(shape.value));
  if (one) kind.pop_back();
  const std::string_view memorize = shape.version2 && !one ? "them" : "it";
  sample.context = fmt::format(
      "{} special magic {} {} hidden within the following text. Make sure to memorize {}. I will quiz you about the {} "
      "afterwards.\n{}",
      one ? "A" : "Some", kind, one ? "is" : "are", memorize, kind, text);
  sample.question = fmt::format("\nWhat {} the special magic {} for {} mentioned in the provided text?",
                                one ? "is" : "are all", kind, query);
  sample.answer_prefix =
      fmt::format(" The special magic {} for {} mentioned in the provided text {}", kind, query, one ? "is" : "are");
  if (shape.version2) {  // the beginning of the answer is part of the user's turn
    sample.question += sample.answer_prefix;
    sample.answer_prefix.clear();
  }
}

}  // namespace

Sample build_niah(const NiahShape& shape, uint64_t seed, Draw& draw, int64_t size) {
  std::vector<std::string> keys;
  std::vector<std::vector<std::string>> values;
  std::vector<Needle> needles;
  for (int k = 0; k < shape.n_keys; ++k) {
    keys.push_back(draw_kind(draw, shape.key, shape.n_digits));
    values.emplace_back();
    for (int v = 0; v < shape.n_values; ++v) {
      values.back().push_back(draw_kind(draw, shape.value, shape.n_digits));
      needles.push_back({needle_text(shape, keys.back(), values.back().back()), k});
    }
  }
  Draw(seed).shuffle(needles);  // one order for all samples
  Depths depths;
  const std::string text = shape.haystack == Haystack::essay ? in_essay(shape, draw, size, needles, depths)
                                                             : in_lines(shape, draw, size, needles, depths);
  Sample sample;
  std::vector<std::string> queries;
  for (const int64_t key : draw.sample(shape.n_keys, shape.n_queries)) {
    queries.push_back(keys[static_cast<size_t>(key)]);
    const auto& answers = values[static_cast<size_t>(key)];
    sample.outputs.insert(sample.outputs.end(), answers.begin(), answers.end());
    for (size_t i = 0; i < needles.size() && shape.n_queries * shape.n_values == 1; ++i) {
      if (needles[i].key == key) sample.depth = depths[i];
    }
  }
  word_prompt(shape, text, list_of(queries), sample);
  return sample;
}

std::unique_ptr<Generator> make_niah(std::string_view name, const Request& request, const NiahShape& shape) {
  Sized sized{.name = name, .step = line_step(request), .reserve = kNiahTokens};
  if (shape.haystack == Haystack::essay) sized.step = 500;
  if (shape.version2) {
    sized.step = request.length < 4096 ? 5 : std::max(5, shape.n_values * shape.n_keys);
    sized.reserve = 0;
  }
  sized.build = [shape, seed = request.seed](Draw& draw, int64_t size) { return build_niah(shape, seed, draw, size); };
  return make_sized(request, std::move(sized));
}

}  // namespace winnow::eval
