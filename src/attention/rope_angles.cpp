#include "attention/rope_angles.h"

#include <algorithm>
#include <cmath>

namespace winnow {

RopeAngles::RopeAngles(const RopeArgs& args) : frequency_(args.frequency, args.frequency + args.n_rot / 2) {
  cosine_.reserve(kStep * frequency_.size());
  sine_.reserve(kStep * frequency_.size());
  for (int32_t position = 0; position < kStep; ++position) {
    for (const float frequency : frequency_) {
      const double angle = static_cast<double>(position) * frequency;
      cosine_.push_back(std::cos(angle));
      sine_.push_back(std::sin(angle));
    }
  }
}

bool RopeAngles::serves(const RopeArgs& args) const {
  return std::equal(frequency_.begin(), frequency_.end(), args.frequency, args.frequency + args.n_rot / 2);
}

RopeAngles::Cursor RopeAngles::cursor() const {
  const size_t half = frequency_.size();
  return {-1, std::vector<double>(half), std::vector<double>(half), std::vector<float>(half), std::vector<float>(half)};
}

void RopeAngles::move(int32_t position, float magnitude, Cursor& cursor) const {
  const size_t half = frequency_.size();
  const int32_t anchor = position / kStep * kStep;
  if (cursor.anchor != anchor) {
    cursor.anchor = anchor;
    for (size_t i = 0; i < half; ++i) {
      const double angle = static_cast<double>(anchor) * frequency_[i];
      cursor.cosine[i] = std::cos(angle);
      cursor.sine[i] = std::sin(angle);
    }
  }
  const double* cosine = cosine_.data() + static_cast<size_t>(position - anchor) * half;
  const double* sine = sine_.data() + static_cast<size_t>(position - anchor) * half;
  for (size_t i = 0; i < half; ++i) {
    const double c = cursor.cosine[i] * cosine[i] - cursor.sine[i] * sine[i];
    const double s = cursor.sine[i] * cosine[i] + cursor.cosine[i] * sine[i];
    cursor.row_cosine[i] = static_cast<float>(c) * magnitude;
    cursor.row_sine[i] = static_cast<float>(s) * magnitude;
  }
}

const RopeAngles& RopeTables::of(const RopeArgs& args) {
  for (const RopeAngles& table : tables_) {
    if (table.serves(args)) return table;
  }
  return tables_.emplace_back(args);
}

Turn::Turn(const RopeArgs& rope, Way way)
    : rope_(rope),
      sign_(way == Way::forth ? 1.0F : -1.0F),
      magnitude_(way == Way::forth ? rope.magnitude : 1 / rope.magnitude),
      angles_(rope),
      row_(angles_.cursor()) {}

void Turn::operator()(float* values, int32_t position) {
  angles_.move(position, magnitude_, row_);
  const auto half = static_cast<int64_t>(rope_.n_rot / 2);
  const float* cosine = row_.row_cosine.data();
  const float* sine = row_.row_sine.data();
  const auto turn = [&](int64_t i, float& first, float& second) {
    const float a = first, b = second, s = sign_ * sine[i];
    first = a * cosine[i] - b * s;
    second = a * s + b * cosine[i];
  };
  if (rope_.neox) {
    for (int64_t i = 0; i < half; ++i) turn(i, values[i], values[i + half]);
  } else {
    for (int64_t i = 0; i < half; ++i) turn(i, values[2 * i], values[2 * i + 1]);
  }
}

}  // namespace winnow
