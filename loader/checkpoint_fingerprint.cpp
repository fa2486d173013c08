#include "loader/checkpoint_fingerprint.h"

#include "kernels/base/check.h"
#include "parallel/fingerprint.h"

namespace gantry {

std::vector<AgreementItem> checkpoint_items(const Checkpoint& checkpoint) {
  Fingerprint files;
  int64_t bytes = 0;
  for (const WeightFile& file : checkpoint.files()) {
    files.add(file.path().filename().string());
    files.add(file.file_bytes());
    bytes += file.file_bytes();
  }
  Fingerprint config;
  config.add(checkpoint.config_text());
  for (const QuantSidecar& sidecar : checkpoint.quant_sidecars()) {
    config.add(sidecar.name);
    config.add(sidecar.text);
  }
  Fingerprint tensors;
  for (const auto& [name, tensor] : checkpoint.tensors()) {
    tensors.add(name);
    tensors.add(to_string(tensor.info.dtype));
    for (const int64_t extent : tensor.info.shape)
      tensors.add(extent);
    tensors.add(tensor.info.begin);
    tensors.add(tensor.file);
  }
  return {{"checkpoint files",
           fmt::format("{} file(s), {} bytes, {}", checkpoint.files().size(), bytes, files.hex())},
          {"checkpoint config", config.hex()},
          {"checkpoint tensors",
           fmt::format("{} tensor(s), {}", checkpoint.tensors().size(), tensors.hex())}};
}

}  // namespace gantry
