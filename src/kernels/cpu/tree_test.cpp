// The tree search on the CPU, and the products that it is made of, against plain loops and the default.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <set>

#include "attention/problem.h"
#include "attention/tree.h"
#include "kernels/cpu/attend_kernel.h"
#include "kernels/cpu/cpu_device.h"
#include "kernels/ref/attention.h"

namespace winnow::cpu {
namespace {

class BestProductsTest : public testing::TestWithParam<const AttendKernel*> {};

INSTANTIATE_TEST_SUITE_P(All, BestProductsTest,
                         testing::ValuesIn(all_attend_kernels().begin(), all_attend_kernels().end()),
                         [](const auto& param) { return std::string(param.param->name); });

TEST_P(BestProductsTest, AreThoseOfPlainLoops) {
  const AttendKernel& kernel = *GetParam();
  if (!kernel.runs_on(machine_features())) GTEST_SKIP() << "this processor cannot run " << kernel.name;
  for (const char* text :
       {"prefill rows=64 slots=300 heads=2 kv=1 dim=64", "prefill rows=64 slots=300 dim=128 type=q8_0",
        "prefill rows=64 slots=300 dim=96 type=bf16", "prefill rows=64 slots=300 dim=80 type=fp8"}) {
    const ProblemData data(parse_problem(text));
    const AttnArgs& args = data.args();
    const KvHead& kv = args.kv.heads.front();
    const int32_t dim = args.q.head_dim;
    const Buffer k(kernel.kv_bytes(5 * kBlockSlots, dim), nullptr);
    const UnpackedKv keys{k.data(), nullptr, 5 * kBlockSlots, dim};
    for (int32_t block = 0; block < 5; ++block) {
      kernel.unpack_k(kv.k[static_cast<size_t>(block)], args.kv.k_type, block, std::min(64, 300 - block * 64), keys);
    }
    std::vector<float> values;
    ref::pool_keys(args.kv, 0, 1, values);
    std::vector<int32_t> slots(130);
    for (int32_t i = 0; i < 130; ++i) slots[static_cast<size_t>(i)] = i * 37 % 300;
    for (const int32_t n_rows : {1, 17, 32, 50, 64}) {
      SCOPED_TRACE(fmt::format("{} rows={}", text, n_rows));
      const Buffer packed(kernel.packed_bytes(dim), nullptr), scratch(kernel.best_bytes(dim), nullptr);
      kernel.pack_rows(args.q.at(0, 0), args.q.stride, n_rows, dim, packed.data());
      std::vector<float> actual(slots.size());
      kernel.best_products(packed.data(), n_rows, {&keys, slots}, actual.data(), scratch.data());
      for (size_t i = 0; i < slots.size(); ++i) {
        double expected = -std::numeric_limits<double>::infinity();
        for (int32_t row = 0; row < n_rows; ++row) {
          double sum = 0;
          for (int32_t d = 0; d < dim; ++d) {
            sum += double{args.q.at(row, 0)[d]} * double{values[static_cast<size_t>(slots[i] * dim + d)]};
          }
          expected = std::max(expected, sum);
        }
        ASSERT_NEAR(actual[i], expected, (kernel.product == Type::bf16 ? 0.2 : 0.02)) << "at " << i;
      }
    }
  }
}

TreeArgs args_of(const ProblemData& data) {
  const AttnArgs& args = data.args();
  return {.q = args.q,
          .kv = args.kv,
          .limit = {args.limit, static_cast<size_t>(args.q.n_rows)},
          .scale = args.scale,
          .n_keys = 64,
          .key_block = 2,
          .query_stride = 2,
          .key_stride = 1,
          .window = 70,
          .sinks = 5};
}

/// Scores without any order, of keys that no search may ask for twice.
class OncePerSearch final : public TreeScores {
 public:
  void begin(const HeadsView& /*rows*/) override { asked_.clear(); }

  void score(std::span<const int32_t> slots, std::vector<float>& best) override {
    best.clear();
    for (const int32_t slot : slots) {
      EXPECT_TRUE(asked_.insert(slot).second) << slot;
      best.push_back(static_cast<float>(slot * 37 % 101));
    }
  }

 private:
  std::set<int32_t> asked_;
};

TEST(CpuTree, ScoresNoKeyTwice) {
  const ProblemData data(parse_problem("prefill rows=900 heads=2 kv=1 dim=16"));
  CpuDevice device(1, machine_features());
  TreeArgs args = args_of(data);
  args.key_block = 1;
  const Selection found = select_tree_by(device, args, [](int32_t) { return std::make_unique<OncePerSearch>(); });
  EXPECT_EQ(std::ssize(found.columns(14)), args.sinks + args.n_keys);
}

// Rounding may decide between keys of nearly equal products, and with them between their chunks.
TEST(CpuTree, FindsNearlyTheKeysOfTheDefault) {
  for (const char* text : {"prefill rows=900 heads=4 kv=2 dim=64", "prefill rows=130 slots=1000 heads=2 kv=1 dim=128",
                           "prefill rows=300 heads=2 kv=1 dim=40 holes=0.3"}) {
    SCOPED_TRACE(text);
    const ProblemData data(parse_problem(text));
    CpuDevice device(2, machine_features());
    const Selection actual = device.select_tree(args_of(data)), expected = device.Ops::select_tree(args_of(data));
    EXPECT_EQ(device.memory().held(), 0);
    EXPECT_EQ(actual.block_ptr, expected.block_ptr);
    EXPECT_EQ(actual.block_begin, expected.block_begin);
    ASSERT_EQ(actual.column_ptr, expected.column_ptr);
    size_t n_same = 0;
    for (size_t list = 0; list + 1 < expected.column_ptr.size(); ++list) {
      const auto slots = [list](const Selection& s) {
        return std::set<int32_t>(s.column.begin() + s.column_ptr[list], s.column.begin() + s.column_ptr[list + 1]);
      };
      const std::set<int32_t> other = slots(expected);
      for (const int32_t slot : slots(actual)) n_same += other.count(slot);
    }
    EXPECT_GE(static_cast<double>(n_same), 0.95 * static_cast<double>(expected.column.size()));
  }
}

TEST(CpuTree, ThreadsChangeNothing) {
  const ProblemData data(parse_problem("prefill rows=500 heads=4 kv=2 dim=64"));
  CpuDevice one(1, machine_features()), three(3, machine_features());
  EXPECT_EQ(one.select_tree(args_of(data)).column, three.select_tree(args_of(data)).column);
}

}  // namespace
}  // namespace winnow::cpu
