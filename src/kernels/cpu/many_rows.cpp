#include "kernels/cpu/many_rows.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "base/error.h"
#include "kernels/rows.h"

namespace winnow {
namespace {

// The largest power of two up to kMaxBlock that divides n_in; 0 where none of at least one window does.
int block_of(int64_t n_in) {
  for (int block = kMaxBlock; block >= kWindowInputs; block /= 2) {
    if (n_in % block == 0) return block;
  }
  return 0;
}

// A piece of work is at most so many bytes of activations, to be read again from the second-level cache for each
// panel, times so many panels: about half a millisecond of one core.
constexpr size_t kPieceCodes = 192U << 10;
constexpr int64_t kPiecePanels = 16;

}  // namespace

struct ManyRows::Piece {
  const Panels* panels;
  Mat y;
  const float* bias;
  int64_t first_panel, last_panel;
  int64_t first_tile, last_tile;
};

std::unique_ptr<Unpacked> ManyRows::unpack(std::span<const Weight* const> weights) {
  auto guard = std::make_unique<Guard>();
  std::erase_if(unpacked_, [](const auto& entry) { return entry.second.expired(); });
  struct Job {
    const Weight* weight;
    const Panels* panels;
    int64_t first_panel;
  };
  std::vector<Job> jobs;
  int64_t n_panels = 0;
  for (const Weight* weight : weights) {
    if (auto alive = find(*weight)) {
      guard->held.push_back(std::move(alive));
      continue;
    }
    auto panels = std::make_shared<Panels>();
    panels->block = block_of(weight->n_in);
    if (panels->block == 0) continue;
    panels->n_panels = (weight->n_out + kPanelChannels - 1) / kPanelChannels;
    panels->panel_bytes = static_cast<size_t>(weight->n_in / panels->block) * panel_block_bytes(panels->block);
    panels->bytes = Buffer(panels->panel_bytes * static_cast<size_t>(panels->n_panels), &context_->memory);
    jobs.push_back({weight, panels.get(), n_panels});
    n_panels += panels->n_panels;
    unpacked_[weight] = panels;
    guard->held.push_back(std::move(panels));
  }
  constexpr size_t kMaxPiece = 256;  // values; the largest block of a file's types
  std::vector<float> work(static_cast<size_t>(context_->pool.size()) * kPanelChannels * kMaxPiece);
  context_->pool.parallel_for(n_panels, [&](int64_t panel, int thread) {
    size_t j = jobs.size() - 1;
    while (jobs[j].first_panel > panel) --j;
    pack_panel(*jobs[j].weight, *jobs[j].panels, panel - jobs[j].first_panel,
               work.data() + static_cast<size_t>(thread) * kPanelChannels * kMaxPiece);
  });
  return guard;
}

std::shared_ptr<const ManyRows::Panels> ManyRows::find(const Weight& weight) const {
  const auto found = unpacked_.find(&weight);
  return found == unpacked_.end() ? nullptr : found->second.lock();
}

bool ManyRows::has(std::span<const Weight* const> weights) const {
  return std::all_of(weights.begin(), weights.end(), [&](const Weight* w) { return find(*w) != nullptr; });
}

void ManyRows::pack_panel(const Weight& weight, const Panels& panels, int64_t panel, float* work) const {
  // Both are powers of two, and divide n_in.
  const int piece = std::max(panels.block, type_info(weight.type).block_values);
  const size_t row_bytes = type_bytes(weight.type, weight.n_in);
  std::byte* to = panels.bytes.data() + static_cast<size_t>(panel) * panels.panel_bytes;
  for (int64_t begin = 0; begin < weight.n_in; begin += piece) {
    const size_t offset = type_bytes(weight.type, begin);
    for (int64_t channel = 0; channel < kPanelChannels; ++channel) {
      const int64_t out = panel * kPanelChannels + channel;
      float* values = work + channel * piece;
      if (out < weight.n_out) {
        decode_row(weight.type, weight.data + static_cast<size_t>(out) * row_bytes + offset, values, piece);
      } else {
        std::fill_n(values, piece, 0.0F);
      }
    }
    for (int part = 0; part < piece; part += panels.block) {
      ops_->pack(work + part, piece, panels.block, to);
      to += panel_block_bytes(panels.block);
    }
  }
}

ManyRows::Input ManyRows::quantise(Mat x, int block) const {
  const int64_t tile_rows = ops_->tile_rows;
  Input input;
  input.block = block;
  input.n_blocks = x.cols / block;
  input.n_tiles = (x.rows + tile_rows - 1) / tile_rows;
  const int64_t n_rows = input.n_tiles * tile_rows;
  input.codes = Buffer(static_cast<size_t>(n_rows * x.cols), &context_->memory);
  input.scales = Buffer(static_cast<size_t>(n_rows * input.n_blocks) * sizeof(float), &context_->memory);
  context_->pool.parallel_for(input.n_tiles, [&](int64_t tile, int /*thread*/) {
    auto* codes = input.codes.as<uint8_t>() + tile * tile_rows * x.cols;
    float* scales = input.scales.as<float>() + tile * tile_rows * input.n_blocks;
    for (int64_t r = 0; r < tile_rows; ++r) {
      // The last tile repeats the last row; what comes of it is thrown away.
      const int64_t row = std::min(x.rows - 1, tile * tile_rows + r);
      ops_->quantise(x.row(row), x.cols, block, codes + r * 4, scales + r);
    }
  });
  return input;
}

void ManyRows::multiply_piece(const Piece& piece, const Input& input) const {
  constexpr int kMaxTileRows = 32;
  alignas(64) float spare[kMaxTileRows * kPanelChannels];
  const int64_t tile_rows = ops_->tile_rows;
  const Mat& y = piece.y;
  for (int64_t panel = piece.first_panel; panel < piece.last_panel; ++panel) {
    const int64_t column = panel * kPanelChannels;
    const int64_t n_columns = std::min<int64_t>(kPanelChannels, y.cols - column);
    for (int64_t tile = piece.first_tile; tile < piece.last_tile; ++tile) {
      const int64_t row = tile * tile_rows;
      const int64_t n_rows = std::min(tile_rows, y.rows - row);
      const bool whole = n_rows == tile_rows && n_columns == kPanelChannels && piece.bias == nullptr;
      Int8Tile t;
      t.codes = input.codes.as<uint8_t>() + row * input.n_blocks * input.block;
      t.scales = input.scales.as<float>() + row * input.n_blocks;
      t.panel = piece.panels->bytes.data() + static_cast<size_t>(panel) * piece.panels->panel_bytes;
      t.n_blocks = input.n_blocks;
      t.block = input.block;
      t.y = whole ? y.row(row) + column : spare;
      t.stride = whole ? y.stride : kPanelChannels;
      ops_->multiply(t);
      if (whole) continue;
      for (int64_t r = 0; r < n_rows; ++r) {
        for (int64_t c = 0; c < n_columns; ++c) {
          const float add = piece.bias == nullptr ? 0.0F : piece.bias[column + c];
          y.row(row + r)[column + c] = spare[r * kPanelChannels + c] + add;
        }
      }
    }
  }
}

void ManyRows::multiply(std::span<const Weight* const> weights, Mat x, std::span<const Mat> ys, const float* bias) {
  const Input input = quantise(x, block_of(x.cols));
  const auto tile_bytes = static_cast<size_t>(ops_->tile_rows * x.cols);
  const auto tiles_at_once = std::max<int64_t>(1, static_cast<int64_t>(kPieceCodes / tile_bytes));
  std::vector<Piece> pieces;
  for (int64_t tile = 0; tile < input.n_tiles; tile += tiles_at_once) {
    for (size_t i = 0; i < weights.size(); ++i) {
      const std::shared_ptr<const Panels> panels = find(*weights[i]);
      WINNOW_ASSERT(panels != nullptr);
      for (int64_t panel = 0; panel < panels->n_panels; panel += kPiecePanels) {
        pieces.push_back({panels.get(), ys[i], bias, panel, std::min(panels->n_panels, panel + kPiecePanels), tile,
                          std::min(input.n_tiles, tile + tiles_at_once)});
      }
    }
  }
  context_->pool.parallel_for(static_cast<int64_t>(pieces.size()), [&](int64_t i, int /*thread*/) {
    multiply_piece(pieces[static_cast<size_t>(i)], input);
  });
}

}  // namespace winnow
