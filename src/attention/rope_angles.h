// Sines and cosines of rows' angles. Trigonometry for every row would take longer than the rotation of its heads; it is
// done for every 64th position, and a product of complex numbers turns from there to the row's own.
#pragma once

#include <cstdint>
#include <deque>
#include <vector>

#include "attention/types.h"

namespace winnow {

/// For one set of frequencies. In double, so that a float32 result is off by its rounding alone, and does not depend on
/// the rows beside it.
class RopeAngles {
 public:
  explicit RopeAngles(const RopeArgs& args);

  bool serves(const RopeArgs& args) const;

  /// One thread's place: the last anchor, and the row that was asked for.
  struct Cursor {
    int32_t anchor = -1;
    std::vector<double> cosine, sine;         // [n_rot / 2] of the anchor
    std::vector<float> row_cosine, row_sine;  // [n_rot / 2] of the row, times the magnitude
  };
  Cursor cursor() const;
  void move(int32_t position, float magnitude, Cursor& cursor) const;

 private:
  static constexpr int32_t kStep = 64;  // positions from one anchor to the next
  std::vector<float> frequency_;
  std::vector<double> cosine_, sine_;  // [kStep, n_rot / 2] of the first positions
};

/// Those that were used so far: a model has one or two.
class RopeTables {
 public:
  const RopeAngles& of(const RopeArgs& args);

 private:
  std::deque<RopeAngles> tables_;
};

/// Turns heads by the positions of their rows as RoPE does, or back to what they were before. One thread's.
class Turn {
 public:
  enum class Way { forth, back };
  /// `rope.n_rot` may be 0: nothing turns.
  Turn(const RopeArgs& rope, Way way);
  /// values: [head_dim]
  void operator()(float* values, int32_t position);

 private:
  RopeArgs rope_;
  float sign_, magnitude_;
  RopeAngles angles_;
  RopeAngles::Cursor row_;
};

}  // namespace winnow
