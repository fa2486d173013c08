#pragma once

#include <algorithm>
#include <cctype>
#include <cstring>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "loader/encodings/encoded_matrix.h"
#include "loader/encodings/quant_scheme.h"
#include "loader/safetensors.h"
#include "tests/support/golden_dirs.h"

namespace gantry::test {

/// A file of tests/golden/encodings: expert 0 of an exporter's checkpoint in memory, and its
/// scheme.
class EncodedFile {
 public:
  explicit EncodedFile(const std::filesystem::path& path) : file_(path) {
    for (const TensorInfo& info : file_.header().tensors) {
      std::vector<std::byte> bytes(static_cast<size_t>(info.num_bytes()));
      file_.read(info.begin, bytes.data(), info.num_bytes());
      bytes_.emplace(info.name, std::move(bytes));
    }
    const std::string config = file_.header().metadata.at("quantization_config");
    scheme = read_quant_scheme(config, path.filename().string()).value();
  }

  [[nodiscard]] const TensorInfo& info(const std::string& name) const { return *file_.find(name); }

  [[nodiscard]] std::vector<float> rows16(const std::string& projection) const {
    const std::vector<std::byte>& bytes = bytes_.at(projection + ".rows16");
    std::vector<float> values(bytes.size() / 4);
    std::memcpy(values.data(), bytes.data(), bytes.size());
    return values;
  }

  /// H 256 of every golden; the intermediate size is the input of down.
  [[nodiscard]] EncodedMatrix matrix(const std::string& projection) const {
    const int64_t intermediate = info("down.rows16").shape[1];
    const int64_t hidden = info("gate.rows16").shape[1];
    EncodedMatrix matrix;
    matrix.size =
        projection == "down" ? MatrixSize{hidden, intermediate} : MatrixSize{intermediate, hidden};
    for (const TensorInfo& tensor : file_.header().tensors) {
      if (!tensor.name.starts_with(projection + ".") || tensor.name.ends_with(".rows16")) continue;
      matrix.tensors.emplace(
          tensor.name.substr(projection.size() + 1),
          EncodedTensor{tensor.name, tensor.dtype, tensor.shape, bytes_.at(tensor.name).data()});
    }
    return matrix;
  }

  QuantScheme scheme;

 private:
  SafetensorsFile file_;
  std::map<std::string, std::vector<std::byte>> bytes_;
};

/// All files of tests/golden/encodings.
inline std::vector<std::filesystem::path> encoded_files() {
  std::vector<std::filesystem::path> files;
  for (const auto& entry : std::filesystem::directory_iterator(golden_root() / "encodings")) {
    if (entry.path().extension() == ".safetensors") files.push_back(entry.path());
  }
  std::sort(files.begin(), files.end());
  return files;
}

/// The file's name in letters that GoogleTest accepts in test names.
inline std::string test_name(const std::filesystem::path& file) {
  std::string name = file.stem().string();
  std::replace_if(
      name.begin(), name.end(), [](unsigned char c) { return std::isalnum(c) == 0; }, '_');
  return name;
}

}  // namespace gantry::test
