// Calibration files: JSON that opens with the method's name and the model's shape, so that a file made for another
// model is refused instead of being misread.
//
//   {"method": "blasst", "model": {"n_layer": 24, "n_head": 14, "n_head_kv": 2, "head_dim": 64}, ...}
#pragma once

#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "methods/method.h"

namespace winnow {

/// The opening of a file; the method adds its own keys.
nlohmann::ordered_json open_calibration(std::string_view method, const MethodShape& shape);

/// Reads the file at `path` and hands it to `parse`. Throws Error, naming the path, where it cannot be read, belongs to
/// another method or model, or lacks what `parse` asks of it (whose JSON exceptions and Errors are told as such).
void read_calibration(const std::string& path, std::string_view method, const MethodShape& shape,
                      const std::function<void(const nlohmann::json&)>& parse);

/// The file's "layers": for each layer an array of its heads. -> [n_layer * n_head] what stands for each head. Throws
/// Error where the counts differ from `shape`'s layers and `n_head`.
std::vector<nlohmann::json> calibrated_heads(const nlohmann::json& file, const MethodShape& shape, int32_t n_head);

}  // namespace winnow
