#include "target.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cstdlib>
#include <filesystem>

#include "base/error.h"
#include "eval/draw.h"
#include "eval/essay.h"
#include "files.h"
#include "model/synthetic.h"

namespace winnow {
namespace {

// Lengths are measured in classes, powers of two. A longer text than the last would cost minutes on a CPU; selections
// at 16,384 tokens tell those at 32,768 well.
constexpr int64_t kShortest = 512, kLongest = 16384;

int64_t length_class(int64_t n_tokens, int64_t n_ctx) {
  const auto floor = static_cast<int64_t>(std::bit_floor(static_cast<uint64_t>(std::max<int64_t>(n_tokens, 1))));
  return std::min(std::clamp(floor, kShortest, kLongest), n_ctx);
}

/// Of measured knobs; empty where the user has no folder of his own.
std::string cache_folder() {
  const char* base = std::getenv("XDG_CACHE_HOME");
  if (base != nullptr && *base != '\0') return std::string(base) + "/winnow/knobs";
  const char* home = std::getenv("HOME");
  return home != nullptr && *home != '\0' ? std::string(home) + "/.cache/winnow/knobs" : std::string();
}

Json to_json(const std::string& key, const KnobCurve& curve) {
  Json points = Json::array();
  for (const KnobPoint& point : curve.points) {
    points.push_back({{"place", point.place},
                      {"value", point.value},
                      {"density", point.density},
                      {"recall", point.recall},
                      {"seconds", point.seconds}});
  }
  return {{"key", key},
          {"n_tokens", curve.n_tokens},
          {"rest_s", curve.rest_s},
          {"attend_s", curve.attend_s},
          {"points", points}};
}

/// What `to_json` wrote for `key`; nothing where the text is something else.
std::optional<KnobCurve> from_json(const std::string& text, const std::string& key) {
  try {
    const Json json = Json::parse(text);
    if (json.at("key") != key) return std::nullopt;
    KnobCurve curve{
        .n_tokens = json.at("n_tokens"), .rest_s = json.at("rest_s"), .attend_s = json.at("attend_s"), .points = {}};
    for (const Json& point : json.at("points")) {
      curve.points.push_back({.place = point.at("place"),
                              .value = point.at("value"),
                              .density = point.at("density"),
                              .recall = point.at("recall"),
                              .seconds = point.at("seconds")});
    }
    if (curve.points.size() < 2 || curve.n_tokens < 1) return std::nullopt;
    return curve;
  } catch (const Json::exception&) {
    return std::nullopt;
  }
}

std::optional<KnobCurve> read_curve(const std::string& path, const std::string& key) {
  if (path.empty() || !std::filesystem::is_regular_file(path)) return std::nullopt;
  return from_json(read_file(path), key);
}

/// What cannot be kept is measured again the next time: no reason to stop.
void keep_curve(const std::string& path, const std::string& key, const KnobCurve& curve) {
  if (path.empty()) return;
  try {
    std::error_code error;
    std::filesystem::create_directories(std::filesystem::path(path).parent_path(), error);
    PendingFile file(path);
    const std::string text = to_json(key, curve).dump(1) + "\n";
    file.write(text.data(), text.size());
    file.commit();
  } catch (const Error& error) {
    fmt::print(stderr, "winnow: the measured knob is not kept: {}\n", error.what());
  }
}

}  // namespace

Tuner::Tuner(const Loaded& loaded, const ModelOptions& options) : loaded_(loaded), options_(options) {
  if (wanted() && options.methods.empty()) find_knob({});
}

std::string Tuner::suffix() const {
  if (!wanted()) return {};
  return options_.target.recall > 0 ? fmt::format(" at recall {}", options_.target.recall)
                                    : fmt::format(" at speed-up {}", options_.target.speedup);
}

std::vector<int32_t> Tuner::text(int64_t n_tokens) const {
  if (loaded_.tokenizer == nullptr) return synthetic_tokens(n_tokens);
  std::vector<int32_t> tokens;
  for (int64_t n_words = n_tokens; std::ssize(tokens) < n_tokens; n_words *= 2) {
    tokens = loaded_.tokenizer->encode(fmt::format("{}", fmt::join(eval::essay_sentences(n_words), " ")), false);
  }
  tokens.resize(static_cast<size_t>(n_tokens));
  return tokens;
}

const KnobCurve& Tuner::curve(const std::vector<std::string>& specs, int64_t n_tokens) {
  Engine& engine = *loaded_.engine;
  const Policy policy(specs, engine.method_shape());
  const std::string model = std::filesystem::exists(options_.path) ? file_fingerprint(options_.path) : options_.path;
  // Other versions of the program may choose and compute otherwise.
  const std::string key =
      fmt::format("{} | {} | {} | {} tokens | kv {} | {}, {} threads", WINNOW_VERSION, model, policy.name(), n_tokens,
                  options_.kv, engine.device().description(), engine.device().n_threads());
  if (const auto found = curves_.find(key); found != curves_.end()) return found->second;
  const std::string folder = cache_folder();
  const std::string path = folder.empty() ? folder : fmt::format("{}/{:016x}.json", folder, eval::hash64(key));
  std::optional<KnobCurve> curve = read_curve(path, key);
  if (!curve) {
    require_room(loaded_, n_tokens - 1, 1);
    const Watch watch(engine, policy.name() + ": measuring its knob", n_tokens);
    curve = measure_knob(engine, specs, text(n_tokens));
    keep_curve(path, key, *curve);
  }
  return curves_.emplace(key, std::move(*curve)).first->second;
}

Tuned Tuner::tune(const std::vector<std::string>& specs, int64_t n_tokens) {
  Engine& engine = *loaded_.engine;
  Tuned tuned{.specs = specs, .choice = {}};
  const bool dense = specs.size() == 1 && find_method(parse_spec(specs.front()).name).parts.empty();
  if (!wanted() || dense) return tuned;
  const KnobOwner owner = find_knob(specs);
  const Policy policy(specs, engine.method_shape());
  tuned.choice = {.param = std::string(owner.info->knob.param), .n_measured = 0, .setting = {}};
  if (n_tokens < policy.break_even()) {
    if (options_.target.speedup > 1) {
      fail("a speed-up of {} cannot be had at {} tokens: below {} {} leaves attention dense (min_len)",
           options_.target.speedup, human_count(n_tokens), human_count(policy.break_even()), owner.info->name);
    }
    return tuned;
  }
  const KnobCurve& measured = curve(specs, length_class(n_tokens, engine.n_ctx()));
  KnobSetting& setting = tuned.choice->setting;
  setting = choose_setting(measured, *owner.info, options_.target, n_tokens);
  tuned.choice->n_measured = measured.n_tokens;
  tuned.specs = with_knob(specs, owner, setting.value);
  return tuned;
}

void Tuner::add_json(Json& line, const Tuned& tuned, const Achieved* achieved) const {
  if (!tuned.choice) return;
  const Tuned::Choice& choice = *tuned.choice;
  const bool acts = choice.n_measured > 0;
  Json target = {{options_.target.recall > 0 ? "recall" : "speedup",
                  options_.target.recall > 0 ? options_.target.recall : options_.target.speedup},
                 {"param", choice.param},
                 {"value", acts ? Json(choice.setting.value) : Json()},
                 {"foretold",
                  {{"recall", choice.setting.recall},
                   {"density", choice.setting.density},
                   {"speedup", choice.setting.speedup},
                   {"n_tokens", choice.n_measured}}}};
  if (achieved != nullptr) {
    target["achieved"] = {{"recall", achieved->recall}, {"density", achieved->density}};
    if (acts) target["achieved"]["speedup"] = choice.setting.dense_s / achieved->prefill_s;
  }
  line["target"] = std::move(target);
}

std::string Tuner::sentence(const Tuned& tuned) const {
  if (!tuned.choice) return {};
  const Tuned::Choice& choice = *tuned.choice;
  if (choice.n_measured == 0)
    return fmt::format("{}: attention is dense, since the prompt is shorter than min_len", suffix().substr(1));
  return fmt::format("{}={} for{} (foretold: recall {}, density {}, {:.2f}x dense; measured on {} tokens)",
                     choice.param, choice.setting.value, suffix().substr(3), human_share(choice.setting.recall),
                     human_share(choice.setting.density), choice.setting.speedup, human_count(choice.n_measured));
}

}  // namespace winnow
