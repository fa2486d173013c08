// A calibration set that reaches some experts only: every format, by every method.

#include <fmt/ranges.h>
#include <gtest/gtest.h>

#include "kernels/base/float_convert.h"
#include "kernels/quant/element_formats.h"
#include "tests/cli/calibrated_case.h"

namespace gantry::test {
namespace {

std::vector<std::string> formats() {
  std::vector<std::string> names;
  for (const std::string_view name : cli::export_format_names()) {
    if (name != "bf16") names.emplace_back(name);
  }
  return names;
}

// The scales of a tensor, whatever they are stored as; bytes that are not e4m3 are exponents.
std::vector<float> scales_of(const MutableCheckpoint::Tensor& tensor) {
  std::vector<float> values(tensor.bytes.size() / static_cast<size_t>(size_of(tensor.dtype)));
  for (size_t i = 0; i < values.size(); ++i) {
    const auto byte = static_cast<uint8_t>(tensor.bytes[i]);
    if (tensor.dtype == DType::kF8E4M3) values[i] = e4m3_to_f32(byte);
    if (tensor.dtype == DType::kU8) values[i] = e8m0_to_f32(byte);
  }
  if (is_plain_float(tensor.dtype)) {
    convert_to_f32(tensor.bytes.data(), tensor.dtype, static_cast<int64_t>(values.size()),
                   values.data());
  }
  return values;
}

class QuantizeHolesTest : public testing::TestWithParam<std::string> {
 protected:
  // One token: two of four experts see it.
  static const Calibrated& one_token() {
    static const Calibrated calibrated(source_dir("qwen3_moe"), /*route_all=*/false, 1);
    return calibrated;
  }

  static std::vector<int> holes() {
    MoeModel model(source_dir("qwen3_moe"), /*names_only=*/false);
    return cli::InputRanges::read(one_token().stats(), model.config()).uncalibrated(0);
  }
};

TEST_P(QuantizeHolesTest, HaveFiniteScalesAndAreNamed) {
  const std::vector<int> experts = holes();
  ASSERT_EQ(experts.size(), 2U);
  using Method = Calibrated::Method;
  const cli::ExportFormat format = cli::find_export_format(GetParam(), "qwen3_moe");
  for (const Method method : {Method::kRtn, Method::kGptq, Method::kAwq}) {
    SCOPED_TRACE(static_cast<int>(method));
    const CapturedLog log;
    const auto done = one_token().quantize({.format = GetParam()}, method);
    // Nothing is taken from statistics where codes are rounded and inputs have no scale.
    const bool uses = method != Method::kRtn || format.static_inputs();
    const std::string warning =
        fmt::format("experts without calibration tokens: {};", fmt::join(experts, ", "));
    EXPECT_EQ(log.warnings().find(warning) != std::string::npos, uses) << log.warnings();

    int64_t num_scales = 0;
    for (const auto& [name, tensor] : MutableCheckpoint::read(done->out).tensors) {
      const bool second = name.ends_with("scale_2") || name.ends_with("scale_inv");
      if (!name.ends_with("scale") && !name.ends_with("scales") && !second) continue;
      ++num_scales;
      for (const float scale : scales_of(tensor))
        ASSERT_TRUE(std::isfinite(scale) && scale > 0.0F) << name << ": " << scale;
    }
    const auto per_matrix = std::count_if(
        format.matrix.tensors.begin(), format.matrix.tensors.end(), [](const auto& t) {
          return t.role == ExportRole::kScales || t.role == ExportRole::kSecondScale ||
                 t.role == ExportRole::kInputScale || t.role == ExportRole::kInputFactors;
        });
    EXPECT_EQ(num_scales, 12 * per_matrix);  // none is missing

    MoeModel model(done->out, /*names_only=*/false);
    const VerifySettings settings;
    EXPECT_GT(verify_model(model, nullptr, settings, {}).load.bytes_read, 0);
    EXPECT_TRUE(model.report().ok()) << summarize(model.report(), 10);
  }
}

INSTANTIATE_TEST_SUITE_P(Formats, QuantizeHolesTest, testing::ValuesIn(formats()),
                         [](const auto& p) { return readable(p.param); });

}  // namespace
}  // namespace gantry::test
