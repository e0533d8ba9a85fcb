#include "engine/attend_layer.h"

#include <algorithm>
#include <vector>

#include "methods/density.h"

namespace winnow {
namespace {

// Rows of one attention call, and where they stand among the rows of the selection's lists.
struct Piece {
  HeadsView q, o;
  const int32_t* limit = nullptr;
  int64_t first_row = 0;
};

void attend_piece(Device& device, const Site& site, const Selection& selection, const LayerCall& call,
                  const Piece& piece) {
  const bool full = piece.first_row >= selection.full_from;
  device.attend({.q = piece.q,
                 .kv = site.kv,
                 .limit = piece.limit,
                 .selection = selection.everything() || full ? nullptr : &selection,
                 .first_row = piece.first_row,
                 .scale = site.scale,
                 .softcap = site.softcap,
                 .window = site.window,
                 .skip = call.skip,
                 .o = piece.o,
                 .lse = nullptr,
                 .counts = call.counts});
  if (call.after_piece) call.after_piece();
}

// How many rows from the attending row `begin` on one call may take: at most `most`, and none that the lists serve
// together with some that see everything.
int64_t rows_of_call(const Selection& selection, int64_t begin, int64_t n_rows, int64_t most) {
  const int64_t end = begin < selection.full_from ? std::min(n_rows, selection.full_from) : n_rows;
  return std::min(most, end - begin);
}

Mat rows_of(const HeadsView& heads) {
  return {heads.data, heads.n_rows, int64_t{heads.n_head} * heads.head_dim, heads.stride, heads.type};
}

// (row, slot, head) triples that rows might see which do not attend: no attention call counts them.
int64_t triples_left_out(const Site& site, std::span<const int32_t> rows) {
  const auto group = static_cast<int64_t>(site.q.n_head) / std::ssize(site.kv.heads);
  int64_t pairs = 0;
  auto next = rows.begin();
  for (size_t row = 0; row < site.limit.size(); ++row) {
    if (next != rows.end() && *next == static_cast<int32_t>(row)) {
      ++next;
      continue;
    }
    for (const KvHead& head : site.kv.heads) pairs += permitted_slots(site, head, site.limit[row]);
  }
  return pairs * group;
}

// The selection's rows are gathered, attend, and are put back between rows of zeros. One more gathered row holds the
// zeros, so that a gather puts them back, too.
void attend_some_rows(Device& device, const Site& site, const Selection& selection, const LayerCall& call) {
  const Mat q = rows_of(site.q), o = rows_of(call.o);
  const auto n_selected = std::ssize(selection.rows);
  const int64_t most = std::min(device.rows_at_once().attend, n_selected);
  const Scratch gathered = device.activations(most + 1, q.cols);
  device.upload(gathered->slice(most, 1), std::vector<float>(static_cast<size_t>(q.cols)).data());
  std::vector<int32_t> limit, source;
  if (call.counts != nullptr) call.counts->permitted += triples_left_out(site, selection.rows);
  int64_t done = 0;  // rows of the site that have their output; where o is q, later ones are still queries
  int64_t n = 0;
  for (int64_t begin = 0; begin < n_selected; begin += n) {
    n = rows_of_call(selection, begin, n_selected, most);
    const auto rows = std::span(selection.rows).subspan(static_cast<size_t>(begin), static_cast<size_t>(n));
    device.gather_rows(q, rows, gathered->slice(0, n));
    limit.clear();
    for (const int32_t row : rows) limit.push_back(site.limit[static_cast<size_t>(row)]);
    const HeadsView piece = gathered->slice(0, n).heads(site.q.head_dim);
    attend_piece(device, site, selection, call, {piece, piece, limit.data(), begin});
    const int64_t end = begin + n == n_selected ? site.q.n_rows : rows.back() + 1;
    source.assign(static_cast<size_t>(end - done), static_cast<int32_t>(most));
    for (int64_t i = 0; i < n; ++i) {
      source[static_cast<size_t>(rows[static_cast<size_t>(i)] - done)] = static_cast<int32_t>(i);
    }
    device.gather_rows(gathered, source, o.slice(done, end - done));
    done = end;
  }
}

}  // namespace

void attend_layer(Device& device, const Site& site, const Selection& selection, const LayerCall& call) {
  if (!selection.rows.empty()) {
    attend_some_rows(device, site, selection, call);
    return;
  }
  const int64_t most = device.rows_at_once().attend;
  int64_t n = 0;
  for (int64_t begin = 0; begin < site.q.n_rows; begin += n) {
    n = rows_of_call(selection, begin, site.q.n_rows, most);
    attend_piece(device, site, selection, call,
                 {site.q.rows(begin, n), call.o.rows(begin, n), site.limit.data() + begin, begin});
  }
}

}  // namespace winnow
