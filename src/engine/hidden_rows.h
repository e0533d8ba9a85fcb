// Hidden states of tokens that a layer dropped, kept so that a later step can take them up again where they stopped
// (LazyLLM's auxiliary cache, arXiv 2407.14057, section 3.2): one store for each layer of a sequence.
#pragma once

#include <span>
#include <vector>

#include "attention/device.h"

namespace winnow {

/// A row that is to be copied to a new place.
struct RowSource {
  Mat from;
  int32_t row = 0;
};

class HiddenRows {
 public:
  bool has(int32_t position) const { return find(position) != rows_.end(); }
  /// The token's state [n_embd]; it must be there.
  RowSource row(int32_t position) const;
  /// Takes `rows` [n, n_embd], whose tokens stand at these ascending positions and are not there yet.
  void add(const Scratch& rows, std::span<const int32_t> position);
  void erase(std::span<const int32_t> position);  // ascending
  /// Drops what stands at n_positions or later.
  void truncate(int32_t n_positions);
  /// Of the buffers that are held. A buffer is let go when the last of its rows is.
  size_t bytes() const;
  size_t size() const { return rows_.size(); }

 private:
  struct Row {
    int32_t position;
    int32_t index;   // row of the buffer
    Scratch buffer;  // never written again: copies of a sequence share it
  };
  std::vector<Row>::const_iterator find(int32_t position) const;
  std::vector<Row> rows_;  // by position
};

/// -> [sources.size(), n_cols] float32, row by row from its source.
Scratch collect_rows(Device& device, std::span<const RowSource> sources, int64_t n_cols);

}  // namespace winnow
