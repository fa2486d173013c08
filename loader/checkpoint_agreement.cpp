#include "loader/checkpoint_agreement.h"

#include "kernels/base/check.h"
#include "parallel/digest.h"

namespace gantry {

std::vector<AgreementItem> checkpoint_items(const Checkpoint& checkpoint) {
  DigestBuilder files;
  int64_t bytes = 0;
  for (const WeightFile& file : checkpoint.files()) {
    files.add(file.path().filename().string());
    files.add(file.file_bytes());
    bytes += file.file_bytes();
  }
  DigestBuilder config;
  config.add(checkpoint.config_text());
  for (const QuantSidecar& sidecar : checkpoint.quant_sidecars()) {
    config.add(sidecar.name);
    config.add(sidecar.text);
  }
  DigestBuilder tensors;
  for (const auto& [name, tensor] : checkpoint.tensors()) {
    tensors.add(name);
    tensors.add(to_string(tensor.info.dtype));
    for (const int64_t extent : tensor.info.shape)
      tensors.add(extent);
    tensors.add(tensor.info.begin);
    tensors.add(tensor.file);
  }
  return {{"checkpoint files", fmt::format("{} file(s), {} bytes, {}", checkpoint.files().size(),
                                           bytes, to_string(files.digest()))},
          {"checkpoint config", to_string(config.digest())},
          {"checkpoint tensors", fmt::format("{} tensor(s), {}", checkpoint.tensors().size(),
                                             to_string(tensors.digest()))}};
}

}  // namespace gantry
