#include "tests/support/mutable_checkpoint.h"

#include "loader/checkpoint.h"
#include "loader/safetensors_writer.h"

namespace gantry::test {

MutableCheckpoint MutableCheckpoint::read(const std::filesystem::path& directory) {
  const Checkpoint checkpoint = Checkpoint::open(directory);
  MutableCheckpoint copy;
  copy.config = checkpoint.config_text();
  for (const auto& [name, tensor] : checkpoint.tensors()) {
    Tensor& target = copy.tensors[name];
    target.dtype = tensor.info.dtype;
    target.shape = tensor.info.shape;
    target.bytes.resize(static_cast<size_t>(tensor.info.num_bytes()));
    checkpoint.files()[static_cast<size_t>(tensor.file)].read(
        tensor.info.begin, target.bytes.data(), tensor.info.num_bytes());
  }
  return copy;
}

void MutableCheckpoint::write(const std::filesystem::path& directory) const {
  std::filesystem::create_directories(directory);
  std::vector<TensorInfo> infos;
  for (const auto& [name, tensor] : tensors) {
    TensorInfo info;
    info.name = name;
    info.dtype = tensor.dtype;
    info.shape = tensor.shape;
    infos.push_back(std::move(info));
  }
  SafetensorsWriter writer(directory / "model.safetensors", std::move(infos), {{"format", "pt"}});
  for (const auto& [name, tensor] : tensors)
    writer.write(name, 0, tensor.bytes);
  writer.finish();
  write_text_file(directory / "config.json", config);
}

}  // namespace gantry::test
