#include "kernels/cpu/many_rows.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "base/error.h"
#include "kernels/cpu/decode.h"
#include "kernels/rows.h"

namespace winnow {
namespace {

constexpr int64_t kPieceChannels = 256;
// Of a feed-forward part: channels of gate and up in a piece, a multiple of all panels and groups; and bytes of their
// weights that are used again and again from the outer cache.
constexpr int64_t kGatedChannels = 128;
constexpr int64_t kGatedBytes = int64_t{8} << 20;

}  // namespace

struct ManyRows::Piece {
  const Panels* panels;
  Mat y;
  const float* bias;
  int64_t first_panel, last_panel;
  int64_t first_tile, last_tile;
  int64_t row = 0, column = 0;  // of the product, where y begins
  bool adds = false;            // to what y holds
};

/// One call of the kernel: a panel, a tile, a span of groups of inputs.
struct ManyRows::Place {
  int64_t panel, tile, begin, end;
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
    panels->layout = ops_->layout(weight->type, weight->n_in);
    if (panels->layout.group == 0) continue;
    panels->n_panels = (weight->n_out + ops_->panel_channels - 1) / ops_->panel_channels;
    panels->panel_bytes = static_cast<size_t>(weight->n_in / panels->layout.group) * panels->layout.group_bytes;
    panels->bytes = scratch_->lend(panels->panel_bytes * static_cast<size_t>(panels->n_panels));
    jobs.push_back({weight, panels.get(), n_panels});
    n_panels += panels->n_panels;
    unpacked_[weight] = panels;
    guard->held.push_back(std::move(panels));
  }
  context_->pool.parallel_for(n_panels, [&](int64_t panel, int /*thread*/) {
    size_t j = jobs.size() - 1;
    while (jobs[j].first_panel > panel) --j;
    pack_panel(*jobs[j].weight, *jobs[j].panels, panel - jobs[j].first_panel);
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

void ManyRows::pack_panel(const Weight& weight, const Panels& panels, int64_t panel) const {
  const int64_t channels = ops_->panel_channels;
  Int8Source from;
  from.type = weight.type;
  from.row_bytes = type_bytes(weight.type, weight.n_in);
  from.rows = weight.data + static_cast<size_t>(panel * channels) * from.row_bytes;
  from.n_channels = static_cast<int>(std::min(channels, weight.n_out - panel * channels));
  from.n_in = weight.n_in;
  from.decode = choose_decoder(context_->features);
  ops_->pack(from, panels.layout, panels.bytes.get() + static_cast<size_t>(panel) * panels.panel_bytes);
}

ManyRows::Input ManyRows::room(int64_t n_rows, int64_t n_in, int group) const {
  const int64_t tile_rows = ops_->tile_rows;
  Input input;
  input.group = group;
  input.n_groups = n_in / group;
  input.n_tiles = (n_rows + tile_rows - 1) / tile_rows;
  const int64_t n = input.n_tiles * tile_rows;
  input.codes = scratch_->lend(static_cast<size_t>(n * n_in));
  input.scales = scratch_->lend(static_cast<size_t>(n * input.n_groups * ops_->scale_floats) * sizeof(float));
  return input;
}

ManyRows::Input ManyRows::quantise(Mat x, int group) const {
  Input input = room(x.rows, x.cols, group);
  context_->pool.parallel_for(input.n_tiles, [&](int64_t tile, int /*thread*/) {
    for (int r = 0; r < ops_->tile_rows; ++r) {
      // The last tile repeats the last row; what comes of it is thrown away.
      const int64_t row = std::min(x.rows - 1, tile * ops_->tile_rows + r);
      quantise_row(input, tile, r, {x.row(row), static_cast<size_t>(x.cols)}, 0);
    }
  });
  return input;
}

// Some inputs of a row, from group `first_group` on.
void ManyRows::quantise_row(const Input& to, int64_t tile, int row, std::span<const float> x,
                            int64_t first_group) const {
  const int64_t at = (tile * to.n_groups + first_group) * ops_->tile_rows;  // groups of single rows before these
  ops_->quantise({x.data(), std::ssize(x), to.group, row, reinterpret_cast<uint8_t*>(to.codes.get()) + at * to.group,
                  reinterpret_cast<float*>(to.scales.get()) + at * ops_->scale_floats});
}

const std::byte* ManyRows::panel_at(const Piece& piece, const Place& at) {
  return piece.panels->bytes.get() + static_cast<size_t>(at.panel) * piece.panels->panel_bytes +
         static_cast<size_t>(at.begin) * piece.panels->layout.group_bytes;
}

// Each tile fetches its share of the next panel, so that the panel's first tile need not wait for memory.
void ManyRows::share_ahead(const Piece& piece, const Place& at, Int8Tile& tile) {
  constexpr size_t kLine = 64;
  const auto n_tiles = static_cast<size_t>(piece.last_tile - piece.first_tile);
  const auto index = static_cast<size_t>(at.tile - piece.first_tile);
  const size_t span = static_cast<size_t>(at.end - at.begin) * piece.panels->layout.group_bytes;
  const size_t share = (span / n_tiles / kLine + 1) * kLine;
  const size_t begin = std::min(span, index * share);
  const bool more = at.panel + 1 < piece.last_panel;
  tile.ahead = panel_at(piece, {more ? at.panel + 1 : at.panel, at.tile, at.begin, at.end}) + begin;
  tile.ahead_bytes = more ? std::min(share, span - begin) : 0;
}

void ManyRows::multiply_piece(const Piece& piece, const Input& input) const {
  const int64_t span_groups = std::max<int64_t>(1, ops_->span_inputs / input.group);
  for (int64_t begin = 0; begin < input.n_groups; begin += span_groups) {
    const int64_t end = std::min(input.n_groups, begin + span_groups);
    for (int64_t panel = piece.first_panel; panel < piece.last_panel; ++panel) {
      for (int64_t tile = piece.first_tile; tile < piece.last_tile; ++tile) {
        multiply_tile(piece, input, {panel, tile, begin, end});
      }
    }
  }
}

void ManyRows::multiply_tile(const Piece& piece, const Input& input, const Place& at) const {
  alignas(64) float spare[kMaxTileRows * kMaxPanelChannels];
  const int64_t tile_rows = ops_->tile_rows;
  const int64_t channels = ops_->panel_channels;
  const int64_t row = at.tile * tile_rows - piece.row;
  const int64_t column = at.panel * channels - piece.column;
  const int64_t n_rows = std::min(tile_rows, piece.y.rows - row);
  const int64_t n_columns = std::min(channels, piece.y.cols - column);
  float* y = piece.y.row(row) + column;
  const bool whole = n_rows == tile_rows && n_columns == channels;
  Int8Tile tile;
  const int64_t before = (at.tile * input.n_groups + at.begin) * tile_rows;  // groups of single rows
  tile.codes = reinterpret_cast<const uint8_t*>(input.codes.get()) + before * input.group;
  tile.scales = reinterpret_cast<const float*>(input.scales.get()) + before * ops_->scale_floats;
  tile.panel = panel_at(piece, at);
  tile.n_groups = at.end - at.begin;
  tile.layout = piece.panels->layout;
  tile.y = whole ? y : spare;
  tile.stride = whole ? piece.y.stride : channels;
  const bool adds = piece.adds || at.begin > 0;
  tile.add = whole && adds;
  share_ahead(piece, at, tile);
  ops_->multiply(tile);
  if (!whole) {
    for (int64_t r = 0; r < n_rows; ++r) {
      for (int64_t c = 0; c < n_columns; ++c) {
        y[r * piece.y.stride + c] = spare[r * channels + c] + (adds ? y[r * piece.y.stride + c] : 0.0F);
      }
    }
  }
  if (piece.bias == nullptr || at.end < input.n_groups) return;
  for (int64_t r = 0; r < n_rows; ++r) {
    for (int64_t c = 0; c < n_columns; ++c) y[r * piece.y.stride + c] += piece.bias[column + c];
  }
}

void ManyRows::multiply(std::span<const Weight* const> weights, Mat x, std::span<const Mat> ys, const ProductEnd& end) {
  // The group is the same for every type.
  multiply_input(weights, quantise(x, ops_->layout(weights[0]->type, x.cols).group), ys, end);
}

void ManyRows::multiply_input(std::span<const Weight* const> weights, const Input& input, std::span<const Mat> ys,
                              const ProductEnd& end) const {
  const int64_t tile_span = ops_->tile_rows * std::min(ops_->span_inputs, input.n_groups * input.group);
  const int64_t tiles_at_once = std::max<int64_t>(1, ops_->piece_codes / tile_span);
  const int64_t piece_panels = kPieceChannels / ops_->panel_channels;
  std::vector<Piece> pieces;
  for (int64_t tile = 0; tile < input.n_tiles; tile += tiles_at_once) {
    for (size_t i = 0; i < weights.size(); ++i) {
      const std::shared_ptr<const Panels> panels = find(*weights[i]);
      WINNOW_ASSERT(panels != nullptr);
      for (int64_t panel = 0; panel < panels->n_panels; panel += piece_panels) {
        pieces.push_back({.panels = panels.get(),
                          .y = ys[i],
                          .bias = end.biases.empty() ? nullptr : end.biases[i],
                          .first_panel = panel,
                          .last_panel = std::min(panels->n_panels, panel + piece_panels),
                          .first_tile = tile,
                          .last_tile = std::min(input.n_tiles, tile + tiles_at_once),
                          .adds = end.adds});
      }
    }
  }
  context_->pool.parallel_for(static_cast<int64_t>(pieces.size()), [&](int64_t i, int /*thread*/) {
    multiply_piece(pieces[static_cast<size_t>(i)], input);
  });
}

/// Some tiles of rows, some channels between gate and down.
struct ManyRows::GatedPiece {
  const Panels* gate;
  const Panels* up;
  GateOp* act;
  int64_t first_tile, last_tile;
  int64_t first_channel, last_channel;
};

void ManyRows::feed_forward(const GatedWeights& weights, GateOp* act, Mat x, Mat y, const ProductEnd& end) {
  const std::shared_ptr<const Panels> gate = find(*weights.gate), up = find(*weights.up);
  WINNOW_ASSERT(gate != nullptr && up != nullptr);
  const Input input = quantise(x, gate->layout.group);
  const int64_t n_hidden = weights.down->n_in;
  const Input hidden = room(x.rows, n_hidden, ops_->layout(weights.down->type, n_hidden).group);
  const int64_t channels = std::max<int64_t>(kGatedChannels, hidden.group);
  const int64_t tile_bytes =
      ops_->tile_rows * (std::min(ops_->span_inputs, x.cols) + 2 * channels * int64_t{sizeof(float)});
  const int64_t tiles = std::clamp<int64_t>(ops_->piece_codes / tile_bytes, 1, input.n_tiles);
  // Channels whose weights the outer cache holds are done for all rows before the next ones.
  const auto panel_bytes = static_cast<int64_t>(gate->panel_bytes + up->panel_bytes);
  const int64_t set = std::max<int64_t>(1, kGatedBytes * ops_->panel_channels / (panel_bytes * channels)) * channels;
  std::vector<GatedPiece> pieces;
  for (int64_t begin = 0; begin < n_hidden; begin += set) {
    for (int64_t tile = 0; tile < input.n_tiles; tile += tiles) {
      for (int64_t channel = begin; channel < std::min(n_hidden, begin + set); channel += channels) {
        pieces.push_back({gate.get(), up.get(), act, tile, std::min(input.n_tiles, tile + tiles), channel,
                          std::min(n_hidden, channel + channels)});
      }
    }
  }
  const int64_t floats = 2 * tiles * ops_->tile_rows * channels;  // gate's and up's outputs of one piece
  const std::shared_ptr<std::byte> spare =
      scratch_->lend(static_cast<size_t>(floats * context_->pool.size()) * sizeof(float));
  context_->pool.parallel_for(std::ssize(pieces), [&](int64_t i, int thread) {
    gated_piece(pieces[static_cast<size_t>(i)], input, hidden, reinterpret_cast<float*>(spare.get()) + thread * floats);
  });
  const Weight* const down[] = {weights.down};
  const Mat ys[] = {y};
  multiply_input(down, hidden, ys, end);
}

void ManyRows::gated_piece(const GatedPiece& piece, const Input& input, const Input& hidden, float* spare) const {
  const int64_t tile_rows = ops_->tile_rows, panel_channels = ops_->panel_channels;
  const int64_t n_rows = (piece.last_tile - piece.first_tile) * tile_rows;
  const int64_t n = piece.last_channel - piece.first_channel;
  const Mat gate = {spare, n_rows, n, n};
  const Mat up = {spare + n_rows * n, n_rows, n, n};
  for (const auto& [panels, y] : {std::pair(piece.gate, gate), std::pair(piece.up, up)}) {
    multiply_piece({panels, y, nullptr, piece.first_channel / panel_channels,
                    (piece.last_channel + panel_channels - 1) / panel_channels, piece.first_tile, piece.last_tile,
                    piece.first_tile * tile_rows, piece.first_channel},
                   input);
  }
  for (int64_t row = 0; row < n_rows; ++row) {
    piece.act(gate.row(row), up.row(row), n, gate.row(row));
    quantise_row(hidden, piece.first_tile + row / tile_rows, static_cast<int>(row % tile_rows),
                 {gate.row(row), static_cast<size_t>(n)}, piece.first_channel / hidden.group);
  }
}

}  // namespace winnow
