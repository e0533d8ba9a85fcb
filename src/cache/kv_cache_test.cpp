// The cache against a plain model of it: a list of (position, value) for each head, edited by the same rules.
#include "cache/kv_cache.h"

#include <gmock/gmock.h>

#include <algorithm>
#include <numeric>
#include <random>

namespace winnow {
namespace {

constexpr int32_t kLayers = 2, kHeads = 3, kDim = 32;

struct Plain {
  std::vector<int32_t> position;
  std::vector<float> value;  // every element of a slot's K is this, of its V the negative
};

class KvCacheTest : public testing::TestWithParam<Type> {
 protected:
  KvCacheTest() : device_(make_device("ref", 1)), cache_(*device_, shape()), plain_(kLayers * kHeads) {}

  static CacheShape shape() { return {kLayers, kHeads, kDim, GetParam(), GetParam()}; }
  Plain& plain(int32_t layer, int32_t head) { return plain_[static_cast<size_t>(layer * kHeads + head)]; }

  // Numbers that every codec holds within a thousandth when a slot has one value: those of fp8 from 2^-6 to 240.
  static float value_of(int32_t layer, int32_t head, int32_t position) {
    return fp8_to_f32(static_cast<uint8_t>((position * 7 + head * 13 + layer * 29) % 112 + 8));
  }
  // Means of two slots are rounded.
  static double tolerance() { return GetParam() == Type::fp8 ? 1.0 / 16 : 0.02; }

  void append(KvCache& cache, int32_t n_rows, int32_t first_position) {
    for (int32_t layer = 0; layer < kLayers; ++layer) {
      std::vector<float> k(static_cast<size_t>(n_rows * kHeads * kDim)), v(k.size());
      for (int32_t r = 0; r < n_rows; ++r) {
        for (int32_t h = 0; h < kHeads; ++h) {
          const float value = value_of(layer, h, first_position + r);
          std::fill_n(k.begin() + (r * kHeads + h) * kDim, kDim, value);
          std::fill_n(v.begin() + (r * kHeads + h) * kDim, kDim, -value);
          if (&cache != &cache_) continue;
          plain(layer, h).position.push_back(first_position + r);
          plain(layer, h).value.push_back(value);
        }
      }
      const HeadsView k_rows{k.data(), n_rows, kHeads, kDim, kHeads * kDim};
      const HeadsView v_rows{v.data(), n_rows, kHeads, kDim, kHeads * kDim};
      cache.append(layer, k_rows, v_rows, first_position);
    }
  }

  void expect_equal(const KvCache& cache) {
    std::vector<float> row(kDim);
    for (int32_t layer = 0; layer < kLayers; ++layer) {
      const KvView view = cache.view(layer);
      for (int32_t h = 0; h < kHeads; ++h) {
        const KvHead& head = view.heads[static_cast<size_t>(h)];
        const Plain& want = plain(layer, h);
        ASSERT_EQ(head.n_slots, static_cast<int32_t>(want.value.size()));
        for (int32_t slot = 0; slot < head.n_slots; ++slot) {
          const auto at = static_cast<size_t>(slot);
          ASSERT_EQ(head.position(slot), want.position[at]) << "layer " << layer << " head " << h << " slot " << slot;
          const auto block = static_cast<size_t>(slot / kBlockSlots);
          device_->load_slot(head.k[block], view.k_type, kDim, slot % kBlockSlots, row.data());
          ASSERT_NEAR(row[kDim / 2], want.value[at], tolerance() * want.value[at]);
          device_->load_slot(head.v[block], view.v_type, kDim, slot % kBlockSlots, row.data());
          ASSERT_NEAR(row[0], -want.value[at], tolerance() * want.value[at]);
        }
      }
    }
  }

  void keep(KvCache& cache, int32_t layer, int32_t h, const std::vector<int32_t>& slots) {
    KvEdit edit;
    edit.head.resize(kHeads);
    edit.head[static_cast<size_t>(h)].all = false;
    edit.head[static_cast<size_t>(h)].keep = slots;
    cache.apply(layer, edit);
    if (&cache != &cache_) return;
    Plain left;
    for (const int32_t slot : slots) {
      left.position.push_back(plain(layer, h).position[static_cast<size_t>(slot)]);
      left.value.push_back(plain(layer, h).value[static_cast<size_t>(slot)]);
    }
    plain(layer, h) = left;
  }

  // Keys of position + 1 and values of its negative, into layer 0.
  static void insert(KvCache& cache, const std::vector<int32_t>& position) {
    std::vector<float> k, v;
    for (const int32_t p : position) {
      k.insert(k.end(), size_t{kHeads} * kDim, static_cast<float>(p + 1));
      v.insert(v.end(), size_t{kHeads} * kDim, -static_cast<float>(p + 1));
    }
    const auto n = std::ssize(position);
    cache.insert(0, {k.data(), n, kHeads, kDim, int64_t{kHeads} * kDim},
                 {v.data(), n, kHeads, kDim, int64_t{kHeads} * kDim}, position);
  }

  void truncate(int32_t n) {
    cache_.truncate(n);
    for (Plain& p : plain_) {
      while (!p.position.empty() && p.position.back() >= n) {
        p.position.pop_back();
        p.value.pop_back();
      }
    }
  }

  std::unique_ptr<Device> device_;
  KvCache cache_;
  std::vector<Plain> plain_;
};

TEST_P(KvCacheTest, AppendsAcrossBlockBorders) {
  int32_t position = 0;
  for (const int32_t n : {1, 62, 1, 1, 63, 64, 65, 128, 1}) {
    append(cache_, n, position);
    position += n;
    expect_equal(cache_);
  }
}

TEST_P(KvCacheTest, RandomEditsTruncationsAndAppends) {
  std::mt19937 random(7);
  int32_t position = 0;
  for (int step = 0; step < 60; ++step) {
    const int action = static_cast<int>(random() % 4);
    if (action < 2) {
      const auto n = static_cast<int32_t>(random() % 90 + 1);
      append(cache_, n, position);
      position += n;
    } else if (action == 2) {
      const auto layer = static_cast<int32_t>(random() % kLayers);
      const auto h = static_cast<int32_t>(random() % kHeads);
      std::vector<int32_t> slots;
      for (int32_t slot = 0; slot < cache_.n_slots(layer, h); ++slot) {
        if (random() % 3 != 0) slots.push_back(slot);
      }
      keep(cache_, layer, h, slots);
    } else {
      position = static_cast<int32_t>(random() % static_cast<unsigned>(position + 1));
      truncate(position);
    }
    expect_equal(cache_);
  }
}

// Rows that come late, between those that are there already: a fork keeps what it had.
TEST_P(KvCacheTest, InsertsBetweenOlderSlots) {
  std::mt19937 random(11);
  for (int round = 0; round < 8; ++round) {
    KvCache cache(*device_, cache_.shape());
    std::vector<int32_t> late, early;
    for (int32_t position = 0; position < 40 + 30 * round; ++position)
      (random() % 3 == 0 ? late : early).push_back(position);
    insert(cache, early);
    const KvCache before = cache.fork();
    insert(cache, late);
    for (int32_t h = 0; h < kHeads; ++h) {
      EXPECT_EQ(cache.n_slots(0, h), static_cast<int32_t>(early.size() + late.size()));
      EXPECT_EQ(cache.view(0).heads[static_cast<size_t>(h)].idx, nullptr) << "slots are positions again";
    }
    for (const KvCache* held : {static_cast<const KvCache*>(&cache), &before}) {
      const size_t n = held == &cache ? early.size() + late.size() : early.size();
      const KvView view = held->view(0);
      std::vector<float> row(kDim);
      for (const KvHead& head : view.heads) {
        ASSERT_EQ(head.n_slots, static_cast<int32_t>(n));
        for (int32_t slot = 0; slot < head.n_slots; ++slot) {
          const auto block = static_cast<size_t>(slot / kBlockSlots);
          const auto want = static_cast<float>(head.position(slot) + 1);
          device_->load_slot(head.k[block], view.k_type, kDim, slot % kBlockSlots, row.data());
          ASSERT_NEAR(row[0], want, tolerance() * want);
          device_->load_slot(head.v[block], view.v_type, kDim, slot % kBlockSlots, row.data());
          ASSERT_NEAR(row[kDim - 1], -want, tolerance() * want);
        }
      }
    }
  }
}

TEST_P(KvCacheTest, ForksShareBlocksUntilOneWrites) {
  append(cache_, 100, 0);
  const int64_t held = device_->memory().held();
  KvCache fork = cache_.fork();
  EXPECT_EQ(device_->memory().held(), held);
  append(fork, 10, 100);
  keep(fork, 0, 1, {0, 3, 99});
  expect_equal(cache_);
  EXPECT_EQ(fork.n_slots(0, 1), 3);
  EXPECT_EQ(fork.n_slots(1, 1), 110);
  append(cache_, 30, 100);
  expect_equal(cache_);
}

TEST_P(KvCacheTest, EditsFreeRealBytes) {
  append(cache_, 640, 0);
  const int64_t held = device_->memory().held();
  const size_t bytes = cache_.bytes();
  std::vector<int32_t> slots(64);
  std::iota(slots.begin(), slots.end(), 576);
  for (int32_t h = 0; h < kHeads; ++h) keep(cache_, 0, h, slots);
  const size_t block = type_bytes(GetParam(), kDim) * kBlockSlots * 2;
  EXPECT_EQ(bytes - cache_.bytes(), kHeads * (9 * block - 64 * sizeof(int32_t)));
  EXPECT_EQ(held - device_->memory().held(), static_cast<int64_t>(kHeads * 9 * block));
  expect_equal(cache_);
}

// Dropping whole blocks' worth behind the first slots moves nothing but the block between the two.
TEST_P(KvCacheTest, SlotsThatMoveByWholeBlocksTakeTheirBlocksAlong) {
  append(cache_, 300, 0);
  const KvView before = cache_.view(1);
  const std::vector<const std::byte*> k(before.heads[1].k.begin(), before.heads[1].k.end());
  std::vector<int32_t> slots = {0, 1, 2, 3};
  for (int32_t slot = 68; slot < 300; ++slot) slots.push_back(slot);
  const int64_t held = device_->memory().held();
  keep(cache_, 1, 1, slots);
  EXPECT_EQ(held - device_->memory().held(), static_cast<int64_t>(2 * kv_block_bytes(GetParam(), kDim)));
  const KvHead& head = cache_.view(1).heads[1];
  EXPECT_THAT(std::vector(head.k.begin() + 1, head.k.end()), testing::ElementsAreArray(k.begin() + 2, k.end()));
  EXPECT_EQ(std::count(k.begin(), k.end(), head.k[0]), 0);
  expect_equal(cache_);
  append(cache_, 70, 300);
  expect_equal(cache_);
}

TEST_P(KvCacheTest, TakesBackEditsAndWhatWasAppended) {
  std::mt19937 random(5);
  int32_t position = 0;
  for (int step = 0; step < 30; ++step) {
    const auto n = static_cast<int32_t>(random() % 90 + 1);
    append(cache_, n, position);
    position += n;
    const std::vector<Plain> before = plain_;
    const int64_t held = device_->memory().held();
    cache_.remember();
    append(cache_, 1, position);
    for (const int32_t layer : {0, 0, 1}) {  // twice the same: what was first is what comes back
      if (random() % 4 == 0) continue;
      std::vector<int32_t> slots;
      for (int32_t slot = 0; slot < cache_.n_slots(layer, 2); ++slot) {
        if (slot < 3 || slot > 60) slots.push_back(slot);
      }
      keep(cache_, layer, 2, slots);
    }
    KvEdit edit;
    edit.head.resize(kHeads);
    edit.head[0].merge = {{.into = 0, .from = cache_.n_slots(1, 0) - 1, .weight = 0.5F}};
    if (step % 2 == 0) {
      cache_.apply(1, edit);
      cache_.take_back(position);
      plain_ = before;
      EXPECT_EQ(device_->memory().held(), held);
    } else {
      cache_.forget();
      ++position;
    }
    expect_equal(cache_);
  }
}

TEST_P(KvCacheTest, MergesIntoTheWeightedMean) {
  append(cache_, 4, 0);
  KvEdit edit;
  edit.head.resize(kHeads);
  edit.head[0] = {false, {0, 2, 3}, {{.into = 2, .from = 1, .weight = 0.25F}}};
  cache_.apply(1, edit);
  Plain& p = plain(1, 0);
  p.value[2] = 0.75F * p.value[2] + 0.25F * p.value[1];
  p.value.erase(p.value.begin() + 1);
  p.position.erase(p.position.begin() + 1);
  expect_equal(cache_);
}

INSTANTIATE_TEST_SUITE_P(Codecs, KvCacheTest, testing::Values(Type::f32, Type::f16, Type::bf16, Type::q8_0, Type::fp8),
                         [](const auto& tested) { return std::string(type_info(tested.param).name); });

}  // namespace
}  // namespace winnow
