#include "model/model.h"

#include "base/error.h"

namespace winnow {
namespace {

const ModelInfo& find_model(const Gguf& file) {
  const std::string& architecture = file.metadata().text("general.architecture");
  std::string known;
  for (const ModelInfo* info : model_roster()) {
    if (info->architecture == architecture) return *info;
    known += fmt::format("{}{}", known.empty() ? "" : ", ", info->architecture);
  }
  fail("{}: the model's architecture is \"{}\"; winnow runs {}", file.path(), architecture, known);
}

}  // namespace

std::unique_ptr<Model> load_model(std::shared_ptr<const Gguf> file) {
  const std::string path = file->path();
  try {
    const ModelInfo& info = find_model(*file);
    return info.load(std::move(file));
  } catch (const Error& error) {  // Metadata does not know which file it came from
    const std::string_view text = error.what();
    if (text.starts_with(path)) throw;
    fail("{}: {}", path, text);
  }
}

}  // namespace winnow
