#include "eval_run.h"

#include <algorithm>
#include <chrono>

#include "base/error.h"
#include "distributions.h"
#include "eval/draw.h"
#include "eval/score.h"
#include "figures.h"

namespace winnow {
namespace {

using eval::Json;

double rounded(double value) {  // six digits say all that a timing or a mean holds
  return value == 0 || !std::isfinite(value) ? value : std::stod(fmt::format("{:.6g}", value));
}

/// The part of a text of `n` tokens that `position` lies in.
size_t part_of(int64_t position, int64_t n) {
  return static_cast<size_t>(std::min(position * kEvalParts / n, kEvalParts - 1));
}

/// Rows that divergence looks at, kEvalPartRows in each part.
std::vector<int64_t> probed_rows(int64_t n) {
  std::vector<int64_t> rows;
  constexpr int64_t kRows = kEvalParts * kEvalPartRows;
  for (int64_t i = 0; i < kRows; ++i) rows.push_back((2 * i + 1) * n / (2 * kRows));
  return rows;
}

Json means(const std::vector<double>& sums, const std::vector<int64_t>& counts) {
  Json list = Json::array();
  for (size_t i = 0; i < sums.size(); ++i)
    list.push_back(rounded(sums[i] / static_cast<double>(std::max<int64_t>(counts[i], 1))));
  return list;
}

double total(const std::vector<double>& values) {
  double sum = 0;
  for (const double value : values) sum += value;
  return sum;
}

}  // namespace

PromptMaker::PromptMaker(const Loaded& loaded, bool raw, bool later)
    : loaded_(loaded), later_(later), chat_(raw ? nullptr : chat_template(loaded)) {}

std::string PromptMaker::text(const eval::Sample& sample) const {
  if (!chat_) return sample.input() + sample.answer_prefix;
  return chat_->render({{"user", sample.input()}}) + sample.answer_prefix;
}

PromptMaker::Prompt PromptMaker::prompt(const eval::Sample& sample) const {
  Prompt prompt{.text = text(sample), .tokens = {}, .n_context = 0};
  // Templates may take white space off the end of a turn.
  const std::string asked = sample.question.substr(0, sample.question.find_last_not_of(" \t\r\n") + 1);
  const size_t cut = later_ && !asked.empty() ? prompt.text.rfind(asked) : 0;
  WINNOW_ASSERT(cut != std::string::npos);
  if (cut == 0) {
    prompt.tokens = prompt_tokens(*loaded_.tokenizer, prompt.text);
    return prompt;
  }
  prompt.tokens = prompt_tokens(*loaded_.tokenizer, std::string_view(prompt.text).substr(0, cut));
  prompt.n_context = prompt.tokens.size();
  const std::vector<int32_t> rest = loaded_.tokenizer->encode(std::string_view(prompt.text).substr(cut), true);
  prompt.tokens.insert(prompt.tokens.end(), rest.begin(), rest.end());
  return prompt;
}

PromptMaker::Prompt PromptMaker::plain(const eval::Sample& sample, int64_t length) const {
  Prompt prompt{.text = sample.input(), .tokens = loaded_.tokenizer->encode(sample.input(), false), .n_context = 0};
  if (loaded_.tokenizer->add_bos()) prompt.tokens.insert(prompt.tokens.begin(), loaded_.tokenizer->bos());
  WINNOW_ASSERT(std::ssize(prompt.tokens) >= length);
  prompt.tokens.resize(static_cast<size_t>(length));
  return prompt;
}

int64_t PromptMaker::n_tokens(const eval::Sample& sample) const {
  return std::ssize(prompt_tokens(*loaded_.tokenizer, text(sample)));
}

Json EvalRun::run(const Policy& policy, Watch& watch, int64_t n_done) {
  Engine& engine = *loaded_.engine;
  const auto n_prompt = std::ssize(prompt_.tokens);
  const bool dense = policy.name() == Policy().name();
  watch.begin(n_done, n_prompt);
  if (task_.kind == eval::TaskKind::divergence && !dense && dense_.empty()) {
    Sequence sequence = engine.start(Policy());
    dense_ = probe(sequence);
  }
  engine.device().memory().reset_peak();
  Sequence sequence = engine.start(policy);
  Json line = {{"prompt_hash", fmt::format("{:016x}", eval::hash64(prompt_.text))}, {"n_prompt", n_prompt}};
  if (sample_.depth >= 0) line["depth"] = rounded(sample_.depth);
  line.update(task_.kind == eval::TaskKind::answer     ? answer(sequence)
              : task_.kind == eval::TaskKind::surprise ? surprise(sequence)
                                                       : divergence(sequence));
  const Figures figures = measure(engine, sequence, {});
  line["prefill_tok_s"] = rounded(figures.prefill_tok_s);
  line["decode_tok_s"] = rounded(figures.decode_tok_s);
  line["density"] = rounded(figures.density);
  line["recall"] = sequence.stats().recall_n == 0 ? Json() : Json(rounded(figures.recall));
  line["estimated_mass"] = sequence.stats().estimate_n == 0 ? Json() : Json(rounded(figures.estimated_mass));
  line["select_share"] = rounded(figures.select_share);
  line["kv_bytes"] = figures.kv_bytes;
  line["peak_bytes"] = figures.peak_bytes;
  return line;
}

Json EvalRun::answer(Sequence& sequence) {
  Engine& engine = *loaded_.engine;
  const std::span<const int32_t> tokens = prompt_.tokens;
  const auto start = std::chrono::steady_clock::now();
  if (prompt_.n_context > 0) engine.prefill(sequence, tokens.first(prompt_.n_context));
  const double context_s =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() - sequence.stats().measure_s;
  GenerateOptions options;
  options.n_max = sample_.n_gen > 0 ? sample_.n_gen : task_.n_gen;
  const Generated answer = generate(engine, sequence, *loaded_.tokenizer, tokens.subspan(prompt_.n_context), options);
  const std::string& metric = sample_.metric.empty() ? task_.metric : sample_.metric;
  return {{"answer", answer.text},
          {"outputs", sample_.outputs},
          {"metric", metric},
          {"score", rounded(eval::find_metric(metric).score(answer.text, sample_.outputs))},
          {"n_gen", answer.tokens.size()},
          {"finish", finish_name(answer.finish)},
          {"ttft_s", rounded(context_s + answer.ttft_s)}};
}

/// -ln of the probability of each token after those before it, as means over parts of the text.
Json EvalRun::surprise(Sequence& sequence) {
  Engine& engine = *loaded_.engine;
  const auto n = std::ssize(prompt_.tokens);
  std::vector<double> scores(prompt_.tokens.size(), 0.0);
  std::vector<float> host;
  engine.prefill(sequence, prompt_.tokens, static_cast<int32_t>(n), [&](int64_t first_row, Mat logits) {
    host.resize(static_cast<size_t>(logits.rows * logits.cols));
    engine.device().download(host.data(), logits);
    engine.device().for_each(logits.rows, [&](int64_t row, int) {
      const int64_t next = first_row + row + 1;
      if (next >= n) return;  // what comes after the text is not known
      const std::span<const float> values(host.data() + row * logits.cols, static_cast<size_t>(logits.cols));
      scores[static_cast<size_t>(next)] = winnow::surprise(values, prompt_.tokens[static_cast<size_t>(next)]);
    });
  });
  std::vector<double> sums(kEvalParts, 0.0);
  std::vector<int64_t> counts(kEvalParts, 0);
  for (int64_t i = 1; i < n; ++i) {
    sums[part_of(i, n)] += scores[static_cast<size_t>(i)];
    ++counts[part_of(i, n)];
  }
  return {{"nll", rounded(total(sums) / static_cast<double>(n - 1))}, {"nll_by_part", means(sums, counts)}};
}

std::vector<std::vector<float>> EvalRun::probe(Sequence& sequence) {
  Engine& engine = *loaded_.engine;
  const auto n = std::ssize(prompt_.tokens);
  const std::vector<int64_t> rows = probed_rows(n);
  std::vector<std::vector<float>> found;
  engine.prefill(sequence, prompt_.tokens, static_cast<int32_t>(n), [&](int64_t first_row, Mat logits) {
    while (found.size() < rows.size() && rows[found.size()] < first_row + logits.rows) {
      found.emplace_back(static_cast<size_t>(logits.cols));
      engine.device().download(found.back().data(), logits.slice(rows[found.size() - 1] - first_row, 1));
    }
  });
  return found;
}

/// KL and top-1 agreement to dense attention on the same text, as means over parts of it.
Json EvalRun::divergence(Sequence& sequence) {
  const auto n = std::ssize(prompt_.tokens);
  const std::vector<int64_t> rows = probed_rows(n);
  const std::vector<std::vector<float>> logits = probe(sequence);
  if (dense_.empty()) dense_ = logits;
  std::vector<double> kl(kEvalParts, 0.0), same(kEvalParts, 0.0);
  const std::vector<int64_t> counts(kEvalParts, kEvalPartRows);
  for (size_t i = 0; i < rows.size(); ++i) {
    const size_t part = i / kEvalPartRows;
    kl[part] += kl_divergence(dense_[i], logits[i]);
    same[part] += best_token(dense_[i]) == best_token(logits[i]) ? 1 : 0;
  }
  const auto n_rows = static_cast<double>(rows.size());
  return {{"kl", rounded(total(kl) / n_rows)},
          {"agreement", rounded(total(same) / n_rows)},
          {"kl_by_part", means(kl, counts)},
          {"agreement_by_part", means(same, counts)}};
}

}  // namespace winnow
