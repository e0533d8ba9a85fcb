#include "density_trace.h"

#include <cctype>
#include <filesystem>

#include "base/error.h"
#include "files.h"
#include "methods/density.h"
#include "output.h"

namespace winnow {

DensityTrace::DensityTrace(Engine& engine, std::string folder) : engine_(engine), folder_(std::move(folder)) {
  if (folder_.empty()) return;
  std::error_code error;
  std::filesystem::create_directories(folder_, error);
  if (!std::filesystem::is_directory(folder_)) {
    fail("--trace {}: the folder cannot be made: {}", folder_, error ? error.message() : "a file is in its place");
  }
  clear();
  engine_.on_selection = [this](const Site& site, const Selection& selection) {
    const std::vector<AttnCounts> more = count_selected(site, selection);
    std::vector<AttnCounts>& layer = counts_.at(static_cast<size_t>(site.layer));
    for (size_t head = 0; head < more.size(); ++head) {
      layer[head].permitted += more[head].permitted;
      layer[head].computed += more[head].computed;
    }
  };
}

DensityTrace::~DensityTrace() {
  engine_.on_selection = nullptr;
}

void DensityTrace::clear() {
  const ModelShape& shape = engine_.model().shape();
  counts_.assign(static_cast<size_t>(shape.n_layer), std::vector<AttnCounts>(static_cast<size_t>(shape.n_head)));
}

void DensityTrace::write(const std::string& name, const std::string& method, int64_t n_prompt) const {
  if (folder_.empty()) return;
  Json density = Json::array(), permitted = Json::array();
  for (const std::vector<AttnCounts>& layer : counts_) {
    Json heads = Json::array();
    for (const AttnCounts& head : layer) {
      heads.push_back(head.permitted == 0 ? Json() : Json(std::stod(fmt::format("{:.5g}", head.density()))));
    }
    density.push_back(std::move(heads));
    permitted.push_back(layer.front().permitted);
  }
  std::string file_name;
  for (const char c : name) file_name += std::isalnum(static_cast<unsigned char>(c)) != 0 ? c : '_';
  PendingFile file(folder_ + "/" + file_name + ".json");
  const Json trace = {{"method", method}, {"n_prompt", n_prompt}, {"density", density}, {"permitted", permitted}};
  const std::string text = trace.dump() + "\n";
  file.write(text.data(), text.size());
  file.commit();
}

}  // namespace winnow
