// What the exporters' configs say about the inputs of quantized matrices.

#include "loader/encodings/activation_scheme.h"

#include <gtest/gtest.h>

#include "loader/encodings/quant_scheme.h"
#include "tests/support/expect_error.h"

namespace gantry::test {
namespace {

ActivationScheme read(const std::string& quantization) {
  const std::string text = R"({"quantization_config": )" + quantization + "}";
  return read_quant_scheme(text, "config.json")->activations;
}

// A compressed-tensors config with these input_activations.
ActivationScheme read_inputs(const std::string& inputs, const std::string& format = "x") {
  return read(R"({"quant_method": "compressed-tensors", "format": ")" + format +
              R"(", "config_groups": {"group_0": {"weights": {"num_bits": 8, "type": "float"},
              "input_activations": )" +
              inputs + "}}}");
}

RowFormat format(RowQuantization kind, int64_t group_size = 0) { return {kind, group_size}; }

void expect_static(const ActivationScheme& scheme, RowFormat wanted, const std::string& suffix,
                   bool inverse = false) {
  EXPECT_EQ(scheme.format, wanted) << describe(scheme);
  EXPECT_EQ(scheme.scale_suffix, suffix);
  EXPECT_EQ(scheme.scale_is_inverse, inverse);
  EXPECT_TRUE(scheme.format.is_static());
}

void expect_dynamic(const ActivationScheme& scheme, RowFormat wanted) {
  EXPECT_EQ(scheme.format, wanted) << describe(scheme);
  EXPECT_EQ(scheme.scale_suffix, "");
  EXPECT_EQ(scheme.note, "");
  EXPECT_FALSE(scheme.format.is_static());
}

void expect_none(const ActivationScheme& scheme) {
  EXPECT_FALSE(scheme.declared()) << describe(scheme);
  EXPECT_EQ(describe(scheme), "none");
}

void expect_refused(const ActivationScheme& scheme, const std::string& reason) {
  EXPECT_FALSE(scheme.format.quantizes());
  EXPECT_NE(scheme.refusal.find(reason), std::string::npos) << scheme.refusal;
  EXPECT_NE(describe(scheme).find(reason), std::string::npos);
}

using Kind = RowQuantization;

TEST(CompressedTensorsActivationsTest, Null) { expect_none(read_inputs("null")); }

TEST(CompressedTensorsActivationsTest, Fp8) {
  expect_static(
      read_inputs(R"({"num_bits": 8, "type": "float", "strategy": "tensor", "dynamic": false})"),
      format(Kind::kFp8Static), "input_scale");
  expect_dynamic(
      read_inputs(R"({"num_bits": 8, "type": "float", "strategy": "token", "dynamic": true})"),
      format(Kind::kFp8Token));
  expect_dynamic(read_inputs(R"({"num_bits": 8, "type": "float", "strategy": "group",
                                 "group_size": 128, "dynamic": true})"),
                 format(Kind::kFp8Group, 128));
}

TEST(CompressedTensorsActivationsTest, ADynamicScaleOfTheBatchBecomesOneAToken) {
  const ActivationScheme scheme =
      read_inputs(R"({"num_bits": 8, "type": "float", "strategy": "tensor", "dynamic": true})");
  EXPECT_EQ(scheme.format, format(Kind::kFp8Token));
  EXPECT_NE(scheme.note, "");
}

TEST(CompressedTensorsActivationsTest, Int8) {
  expect_dynamic(
      read_inputs(R"({"num_bits": 8, "type": "int", "strategy": "token", "dynamic": true})"),
      format(Kind::kInt8Token));
  expect_static(
      read_inputs(R"({"num_bits": 8, "type": "int", "strategy": "tensor", "dynamic": false})"),
      format(Kind::kInt8Static), "input_scale");
}

TEST(CompressedTensorsActivationsTest, MicroscalingByTheScaleOrByTheFormat) {
  const std::string group = R"("type": "float", "strategy": "group", "group_size": 32,)";
  expect_dynamic(read_inputs(R"({"num_bits": 8, )" + group +
                             R"("scale_dtype": "torch.uint8", "dynamic": true})"),
                 format(Kind::kMxFp8, 32));
  expect_dynamic(
      read_inputs(R"({"num_bits": 4, )" + group + R"("dynamic": true})", "mxfp4-pack-quantized"),
      format(Kind::kMxFp4, 32));
}

TEST(CompressedTensorsActivationsTest, Nvfp4WithADynamicOrAStaticGlobalScale) {
  const std::string group = R"({"num_bits": 4, "type": "float", "strategy": "tensor_group",
                                "group_size": 16, "dynamic": )";
  expect_static(read_inputs(group + R"("local"})"), format(Kind::kNvFp4Static, 16),
                "input_global_scale");
  const ActivationScheme dynamic = read_inputs(group + "true}");
  EXPECT_EQ(dynamic.format, format(Kind::kNvFp4Token, 16));
  EXPECT_NE(dynamic.note, "");
}

TEST(CompressedTensorsActivationsTest, RefusesWhatIsNotSimulated) {
  expect_refused(read_inputs(R"({"num_bits": 8, "type": "int", "strategy": "token",
                                 "dynamic": true, "symmetric": false})"),
                 "asymmetric");
  expect_refused(read_inputs(R"({"num_bits": 4, "type": "int", "strategy": "token",
                                 "dynamic": true})"),
                 "integer inputs of 4 bits");
  expect_refused(read_inputs(R"({"num_bits": 8, "type": "int", "strategy": "group",
                                 "group_size": 64, "dynamic": true})"),
                 "int8 inputs in groups");
  expect_refused(read_inputs(R"({"num_bits": 8, "type": "float", "strategy": "channel"})"),
                 "'channel'");
  expect_refused(read_inputs(R"({"num_bits": 8, "type": "float", "strategy": "group"})"),
                 "without group_size");
  expect_refused(read_inputs(R"({"num_bits": 8, "type": "float", "strategy": "token"})"),
                 "not per tensor");
  expect_refused(read_inputs(R"({"num_bits": 4, "type": "float", "strategy": "tensor_group",
                                 "group_size": 32, "dynamic": "local"})"),
                 "groups of 32");
  expect_refused(read_inputs(R"({"num_bits": 4, "type": "float", "strategy": "group",
                                 "group_size": 64, "dynamic": true})",
                             "mxfp4-pack-quantized"),
                 "groups of 64");
}

TEST(CompressedTensorsActivationsTest, RefusesValuesOfAnotherType) {
  const auto expect_format_error = [](const std::string& inputs, const std::string& key) {
    expect_error([&] { read_inputs(inputs); }, ErrorCode::kFormat, {key});
  };
  expect_format_error(R"({"num_bits": "8", "type": "float"})", "num_bits");
  expect_format_error(R"({"type": "float"})", "num_bits");
  expect_format_error(R"({"num_bits": 8, "type": 3})", "type");
  expect_format_error(R"({"num_bits": 8, "type": "float", "dynamic": 1})", "dynamic");
  expect_format_error(R"({"num_bits": 8, "type": "float", "group_size": 99999999})", "group_size");
}

TEST(Fp8ActivationsTest, StaticDynamicAndBlocks) {
  expect_static(read(R"({"quant_method": "fp8", "activation_scheme": "static"})"),
                format(Kind::kFp8Static), "input_scale");
  const ActivationScheme token = read(R"({"quant_method": "fp8", "activation_scheme": "dynamic"})");
  EXPECT_EQ(token.format, format(Kind::kFp8Token));
  EXPECT_NE(token.note, "");
  expect_dynamic(read(R"({"quant_method": "fp8", "activation_scheme": "dynamic",
                          "weight_block_size": [64, 128]})"),
                 format(Kind::kFp8Group, 128));
  const ActivationScheme powers =
      read(R"({"quant_method": "fp8", "scale_fmt": "ue8m0", "weight_block_size": [128, 128]})");
  EXPECT_TRUE(powers.format.power_of_two_scales);
  EXPECT_EQ(powers.format.kind, Kind::kFp8Group);
  expect_refused(read(R"({"quant_method": "fp8", "activation_scheme": "static",
                          "weight_block_size": [128, 128]})"),
                 "static inputs");
  expect_refused(read(R"({"quant_method": "fp8", "activation_scheme": "sometimes"})"),
                 "'sometimes'");
}

TEST(ModeloptActivationsTest, FollowTheAlgorithm) {
  const auto algorithm = [](const std::string& name) {
    return read(R"({"quant_method": "modelopt", "quant_algo": ")" + name + "\"}");
  };
  expect_static(algorithm("FP8"), format(Kind::kFp8Static), "input_scale");
  expect_static(algorithm("W8A8_SQ_PER_CHANNEL"), format(Kind::kInt8Static), "input_scale");
  expect_static(algorithm("NVFP4"), format(Kind::kNvFp4Static, 16), "input_scale", true);
  expect_static(algorithm("NVFP4_AWQ"), format(Kind::kNvFp4Static, 16), "input_scale", true);
  expect_dynamic(algorithm("FP8_PER_CHANNEL_PER_TOKEN"), format(Kind::kFp8Token));
  expect_dynamic(algorithm("mxfp4"), format(Kind::kMxFp4, 32));
  expect_dynamic(algorithm("MXFP8"), format(Kind::kMxFp8, 32));
  expect_none(algorithm("FP8_PB_WO"));
  expect_none(algorithm("W4A16_NVFP4"));
  expect_none(algorithm("W4A16_AWQ"));
  expect_refused(algorithm("W4A8_MXFP4_FP8"), "no scale");
}

TEST(ModeloptActivationsTest, Nvfp4WithoutInputActivationsIsWeightOnly) {
  const auto groups = [](const std::string& inputs) {
    return read(R"({"quant_method": "modelopt", "quant_algo": "NVFP4", "config_groups":
                    {"group_0": {"input_activations": )" +
                inputs + "}}}");
  };
  expect_none(groups("null"));
  expect_static(groups(R"({"num_bits": 4})"), format(Kind::kNvFp4Static, 16), "input_scale", true);
}

TEST(QuarkActivationsTest, FollowInputTensors) {
  const auto inputs = [](const std::string& text) {
    return read(R"({"quant_method": "quark", "global_quant_config":
                    {"weight": {"qscheme": "per_tensor"}, "input_tensors": )" +
                text + "}}");
  };
  expect_none(inputs("null"));
  expect_static(inputs(R"({"dtype": "fp8_e4m3", "qscheme": "per_tensor", "is_dynamic": false})"),
                format(Kind::kFp8Static), "input_scale");
  expect_static(inputs(R"({"dtype": "int8", "qscheme": "per_tensor", "is_dynamic": false})"),
                format(Kind::kInt8Static), "input_scale");
  expect_dynamic(inputs(R"({"dtype": "fp8_e4m3", "qscheme": "per_channel", "is_dynamic": true})"),
                 format(Kind::kFp8Token));
  expect_dynamic(inputs(R"({"dtype": "fp4", "qscheme": "per_group", "is_dynamic": true,
                            "group_size": 32, "scale_format": "e8m0"})"),
                 format(Kind::kMxFp4, 32));
  expect_refused(inputs(R"({"dtype": "fp6_e3m2", "qscheme": "per_group"})"), "fp6_e3m2");
  expect_refused(inputs(R"({"dtype": "int8", "qscheme": "per_tensor", "symmetric": false})"),
                 "asymmetric");
  expect_refused(inputs(R"({"dtype": "int8", "qscheme": "per_row"})"), "'per_row'");
}

TEST(AutoRoundActivationsTest, FollowActWords) {
  const auto words = [](const std::string& text) {
    return read(R"({"quant_method": "auto-round", "bits": 4, "group_size": 32)" + text + "}");
  };
  expect_none(words(""));
  expect_none(words(R"(, "act_bits": 16, "act_data_type": "int")"));
  expect_static(words(R"(, "act_bits": 8, "act_data_type": "fp", "act_dynamic": false,
                         "act_group_size": 0)"),
                format(Kind::kFp8Static), "input_scale");
  expect_static(words(R"(, "act_bits": 8, "act_data_type": "fp", "act_dynamic": false,
                         "act_group_size": -1)"),
                format(Kind::kFp8Static), "input_scale");
  expect_dynamic(words(R"(, "act_bits": 8, "act_data_type": "fp", "act_group_size": 128)"),
                 format(Kind::kFp8Group, 128));
  expect_dynamic(words(R"(, "act_bits": 8, "data_type": "int", "act_group_size": -1)"),
                 format(Kind::kInt8Token));
  expect_dynamic(words(R"(, "act_bits": 4, "act_data_type": "mx_fp", "act_group_size": 32)"),
                 format(Kind::kMxFp4, 32));
  expect_dynamic(words(R"(, "act_bits": 8, "act_data_type": "mx_fp", "act_group_size": 32)"),
                 format(Kind::kMxFp8, 32));
  expect_static(words(R"(, "act_bits": 4, "act_data_type": "nv_fp4_with_static_gs",
                         "act_group_size": 16)"),
                format(Kind::kNvFp4Static, 16), "input_global_scale");
}

TEST(OtherActivationsTest, WeightOnlyMethodsDeclareNone) {
  expect_none(read(R"({"quant_method": "gptq", "bits": 4, "group_size": 128})"));
  expect_none(read(R"({"quant_method": "awq", "bits": 4, "group_size": 128})"));
  expect_none(read(R"({"quant_method": "mxfp4"})"));
  expect_none(read(R"({"quant_method": "bitsandbytes", "load_in_8bit": true})"));
  expect_dynamic(read(R"({"quant_method": "mxfp8"})"), format(Kind::kMxFp8, 32));
}

}  // namespace
}  // namespace gantry::test
