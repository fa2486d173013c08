#include "loader/weight_file.h"

namespace gantry {

const std::filesystem::path& WeightFile::path() const noexcept {
  return std::visit([](const auto& file) -> const std::filesystem::path& { return file.path(); },
                    file_);
}

int64_t WeightFile::file_bytes() const noexcept {
  return std::visit([](const auto& file) { return file.file_bytes(); }, file_);
}

const std::vector<TensorInfo>& WeightFile::tensors() const noexcept {
  return std::visit(
      [](const auto& file) -> const std::vector<TensorInfo>& { return file.header().tensors; },
      file_);
}

void WeightFile::read(int64_t offset, void* destination, int64_t size) const {
  std::visit([&](const auto& file) { file.read(offset, destination, size); }, file_);
}

}  // namespace gantry
