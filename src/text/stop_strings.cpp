#include <algorithm>

#include "base/error.h"
#include "text/sampler.h"

namespace winnow {
namespace {

/// Length of the longest end of `text` with which `stop` could begin.
size_t begun(const std::string& text, const std::string& stop) {
  for (size_t length = std::min(text.size(), stop.size() - 1); length > 0; --length) {
    if (text.compare(text.size() - length, length, stop, 0, length) == 0) return length;
  }
  return 0;
}

}  // namespace

StopStrings::StopStrings(std::vector<std::string> stops) : stops_(std::move(stops)) {
  for (const std::string& stop : stops_) {
    if (stop.empty()) fail("a stop string is empty; it must hold at least one character");
  }
}

std::string StopStrings::push(const std::string& text) {
  if (stopped_) return {};
  held_ += text;
  // The stop string that is complete first ends the text; of those that end together the longest. So the cut is the
  // same however the text was portioned.
  size_t begin = std::string::npos;
  size_t end = std::string::npos;
  size_t kept = 0;
  for (const std::string& stop : stops_) {
    const size_t at = held_.find(stop);
    if (at == std::string::npos) {
      kept = std::max(kept, begun(held_, stop));
    } else if (at + stop.size() < end || (at + stop.size() == end && at < begin)) {
      begin = at;
      end = at + stop.size();
    }
  }
  stopped_ = begin != std::string::npos;
  const size_t shown = stopped_ ? begin : held_.size() - kept;
  std::string result = held_.substr(0, shown);
  held_.erase(0, stopped_ ? held_.size() : shown);
  return result;
}

std::string StopStrings::finish() {
  return std::exchange(held_, {});
}

}  // namespace winnow
