// Problem strings: the keys that problem_help() lists, and what each may be.
#include <algorithm>
#include <array>
#include <charconv>
#include <functional>
#include <limits>

#include "attention/problem.h"
#include "base/error.h"

namespace winnow {
namespace {

constexpr std::array kKvTypes{Type::f32, Type::f16, Type::bf16, Type::q8_0, Type::fp8};

double number(std::string_view key, std::string_view text, double min, double max) {
  double value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc{} || end != text.data() + text.size() || !(value >= min && value <= max)) {
    fail("problem: {}={} is not a number from {} to {}", key, text, min, max);
  }
  return value;
}

int64_t whole(std::string_view key, std::string_view text, int64_t min, int64_t max) {
  int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc{} || end != text.data() + text.size() || value < min || value > max) {
    fail("problem: {}={} is not a whole number from {} to {}", key, text, min, max);
  }
  return value;
}

Type kv_type(std::string_view key, std::string_view text) {
  for (const Type type : kKvTypes) {
    if (type_info(type).name == text) return type;
  }
  fail("problem: {}={} is not a type of the cache: f32, f16, bf16, q8_0 or fp8", key, text);
}

struct Key {
  std::string_view name;
  std::function<void(Problem&, std::string_view name, std::string_view value)> set;
};

template <typename T>
Key whole_key(std::string_view name, T Problem::*member, int64_t min, int64_t max) {
  return {name, [=](Problem& p, std::string_view key, std::string_view value) {
            p.*member = static_cast<T>(whole(key, value, min, max));
          }};
}

Key real_key(std::string_view name, double Problem::*member, double min, double max) {
  return {name,
          [=](Problem& p, std::string_view key, std::string_view value) { p.*member = number(key, value, min, max); }};
}

const std::vector<Key>& keys() {
  constexpr int64_t kMost = 1 << 24;
  static const std::vector<Key> kKeys{
      whole_key("rows", &Problem::rows, 1, kMost),
      whole_key("slots", &Problem::slots, 1, kMost),
      whole_key("heads", &Problem::heads, 1, 1024),
      whole_key("kv", &Problem::kv, 1, 1024),
      whole_key("dim", &Problem::dim, 8, 1024),
      {"type",
       [](Problem& p, std::string_view key, std::string_view value) { p.k_type = p.v_type = kv_type(key, value); }},
      {"ktype", [](Problem& p, std::string_view key, std::string_view value) { p.k_type = kv_type(key, value); }},
      {"vtype", [](Problem& p, std::string_view key, std::string_view value) { p.v_type = kv_type(key, value); }},
      real_key("density", &Problem::density, 0, 1),
      whole_key("block_q", &Problem::block_q, 64, 128),
      whole_key("block_k", &Problem::block_k, 64, 128),
      whole_key("columns", &Problem::columns, 0, kMost),
      whole_key("verticals", &Problem::verticals, 0, kMost),
      whole_key("slashes", &Problem::slashes, 0, kMost),
      whole_key("runs", &Problem::runs, 1, kMost),
      whole_key("unaligned", &Problem::unaligned, 0, 1),
      whole_key("shared", &Problem::shared, 0, 1),
      whole_key("window", &Problem::window, 0, kMost),
      real_key("softcap", &Problem::softcap, 0, 1e6),
      whole_key("bias", &Problem::bias, 0, 1),
      real_key("holes", &Problem::holes, 0, 0.99),
      real_key("skip", &Problem::skip, 0, 0.999),
      whole_key("threads", &Problem::threads, 0, 4096),
      whole_key("seed", &Problem::seed, 0, std::numeric_limits<int32_t>::max()),
  };
  return kKeys;
}

/// The words of `text`, split at blanks.
std::vector<std::string_view> words_of(std::string_view text) {
  std::vector<std::string_view> words;
  while (true) {
    const size_t begin = text.find_first_not_of(" \t\n");
    if (begin == std::string_view::npos) return words;
    text.remove_prefix(begin);
    const size_t length = std::min(text.find_first_of(" \t\n"), text.size());
    words.push_back(text.substr(0, length));
    text.remove_prefix(length);
  }
}

void check(const Problem& p) {
  if (p.heads % p.kv != 0) fail("problem: heads={} is not a multiple of kv={}", p.heads, p.kv);
  if (p.dim % 8 != 0) fail("problem: dim={} is not a multiple of 8", p.dim);
  for (const Type type : {p.k_type, p.v_type}) {
    const TypeInfo& info = type_info(type);
    if (p.dim % info.block_values != 0) {
      fail("problem: type {} needs a dim that is a multiple of {}, not {}", info.name, info.block_values, p.dim);
    }
  }
  for (const int32_t block : {p.block_q, p.block_k}) {
    if (block != 64 && block != 128) fail("problem: a block size is {}; it must be 64 or 128", block);
  }
  if (p.verticals > 0 && !p.lines()) fail("problem: verticals={} needs slashes beside them", p.verticals);
  if (p.lines() && (p.density < 1 || p.columns > 0 || p.unaligned || p.block_q != 64 || p.block_k != 64)) {
    fail("problem: slashes={} takes no density, columns, unaligned or blocks of 128 beside it", p.slashes);
  }
  if (p.rows > p.n_slots()) fail("problem: rows={} is more than slots={}", p.rows, p.n_slots());
}

}  // namespace

Problem parse_problem(std::string_view text) {
  const std::vector<std::string_view> words = words_of(text);
  Problem problem;
  if (words.empty() || (words[0] != "prefill" && words[0] != "decode")) {
    fail("problem: \"{}\" begins neither with prefill nor with decode", text);
  }
  if (words[0] == "decode") {
    problem.rows = 1;
    problem.slots = 32768;
  }
  for (size_t i = 1; i < words.size(); ++i) {
    const size_t equal = words[i].find('=');
    const std::string_view name = words[i].substr(0, equal);
    const auto key = std::find_if(keys().begin(), keys().end(), [name](const Key& k) { return k.name == name; });
    if (equal == std::string_view::npos || key == keys().end()) {
      std::string known;
      for (const Key& k : keys()) known += fmt::format("{}{}", known.empty() ? "" : ", ", k.name);
      fail("problem: \"{}\" is not KEY=VALUE with one of the keys {}", words[i], known);
    }
    key->set(problem, name, words[i].substr(equal + 1));
  }
  check(problem);
  return problem;
}

std::string_view problem_help() {
  return R"(prefill|decode KEY=VALUE ...
  rows       query rows, the last ones of the sequence (prefill 1024, decode 1)
  slots      cache slots of each kv head (prefill: as many as rows; decode: 32768)
  heads, kv  query heads and kv heads (8, 2)
  dim        head size, a multiple of 8 (64)
  type       of the cache: f32, f16, bf16, q8_0 or fp8 (f16); ktype and vtype set one of the two
  density    share of the key blocks that each query block computes, the diagonal always among them (1)
  block_q, block_k  rows and slots of a block, 64 or 128 (64)
  columns    single slots beside the blocks of each query block (0)
  slashes    instead of blocks: diagonals of each head; the estimate of as many lines is timed too (0)
  verticals  key columns of each head beside the diagonals (0)
  runs       clusters that the diagonals come in (48)
  unaligned  1: blocks begin at any slot (0)
  shared     1: all heads share their lists (0)
  window     sliding window in positions, 0: none
  softcap    0: none
  bias       1: slots carry a bias (0)
  holes      share of the positions that were dropped from the cache (0)
  skip       lambda of skip-softmax, 0: off
  threads    0: all cores
  seed       of the random numbers (1)
)";
}

}  // namespace winnow
