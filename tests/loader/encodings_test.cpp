// Every encoding against what real exporters wrote: expert 0 of each checkpoint, whose first 16
// rows the reference gives as its format defines them in float32 (tests/golden/README.md).

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <limits>
#include <string>
#include <vector>

#include "loader/encodings/decoders.h"
#include "loader/encodings/encoded_matrix.h"
#include "loader/encodings/quant_scheme.h"
#include "tests/support/encoded_file.h"
#include "tests/support/expect_error.h"

namespace gantry::test {
namespace {

// Neighbours in f32 count as equal: formulas of two products round once or twice.
bool within_one_ulp(float a, float b) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  return a == b || std::nextafter(a, kInfinity) == b || std::nextafter(a, -kInfinity) == b;
}

class EncodingGoldenTest : public testing::TestWithParam<std::filesystem::path> {};

TEST_P(EncodingGoldenTest, DequantizesTheFirstRowsToWithinOneUlp) {
  const EncodedFile file(GetParam());
  for (const std::string projection : {"gate", "up", "down"}) {
    const EncodedMatrix matrix = file.matrix(projection);
    SCOPED_TRACE(projection + " by " + std::string(find_encoding(file.scheme, matrix).name));
    const std::vector<float> decoded = decode_matrix(file.scheme, matrix);
    const std::vector<float> expected = file.rows16(projection);
    ASSERT_EQ(decoded.size(), static_cast<size_t>(matrix.size.out * matrix.size.in));
    size_t wrong = 0;
    for (size_t i = 0; i < expected.size(); ++i) {
      if (within_one_ulp(decoded[i], expected[i])) continue;
      if (++wrong <= 3) {
        ADD_FAILURE() << "element " << i << ": found " << decoded[i] << ", expected "
                      << expected[i];
      }
    }
    EXPECT_EQ(wrong, 0U) << "of " << expected.size();
  }
}

// Whatever is cut off or has another type is refused, never decoded into something.
TEST_P(EncodingGoldenTest, RefusesAMatrixWithoutOneOfItsTensors) {
  const EncodedFile file(GetParam());
  const EncodedMatrix whole = file.matrix("gate");
  const std::vector<float> intact = decode_matrix(file.scheme, whole);
  for (const auto& [suffix, tensor] : whole.tensors) {
    EncodedMatrix damaged = whole;
    damaged.tensors.erase(suffix);
    try {
      // Tensors that the weights do not need: shapes, input scales, an order of groups that is the
      // natural one.
      EXPECT_EQ(decode_matrix(file.scheme, damaged), intact) << suffix;
    } catch (const Error& error) {
      EXPECT_TRUE(error.code() == ErrorCode::kFormat || error.code() == ErrorCode::kUnsupported)
          << suffix << ": " << error.what();
    }
  }
}

TEST_P(EncodingGoldenTest, RefusesASizeThatTheTensorsDoNotHave) {
  const EncodedFile file(GetParam());
  for (const bool wider : {false, true}) {
    EncodedMatrix matrix = file.matrix("down");
    (wider ? matrix.size.in : matrix.size.out) += 128;
    EXPECT_THROW((void)decode_matrix(file.scheme, matrix), Error) << "wider: " << wider;
  }
}

INSTANTIATE_TEST_SUITE_P(Exporters, EncodingGoldenTest, testing::ValuesIn(encoded_files()),
                         [](const auto& tested) { return test_name(tested.param); });

// The gate matrix of a double-quantized golden with another quant_state.
void decode_with_state(const std::string& kind, const std::string& from, const std::string& to) {
  const EncodedFile file(golden_root() / "encodings" /
                         ("bitsandbytes-" + kind + "-nested.safetensors"));
  EncodedMatrix matrix = file.matrix("gate");
  EncodedTensor& state = matrix.tensors.at("weight.quant_state.bitsandbytes__" + kind);
  std::string text(reinterpret_cast<const char*>(state.data),
                   static_cast<size_t>(state.num_elements()));
  const size_t at = text.find(from);
  ASSERT_NE(at, std::string::npos) << text;
  text.replace(at, from.size(), to);
  state.shape = {static_cast<int64_t>(text.size())};
  state.data = reinterpret_cast<const std::byte*>(text.data());
  (void)decode_matrix(file.scheme, matrix);
}

TEST(DecodeBitsandbytesTest, TheQuantStateMustFitTheTensors) {
  const auto decode = [](const std::string& from, const std::string& to) {
    return [=] { decode_with_state("nf4", from, to); };
  };
  expect_error(decode("[320, 64]", "[64, 320]"), ErrorCode::kFormat, {"shape", "[64, 320]"});
  expect_error(decode("\"blocksize\": 64", "\"blocksize\": 32"), ErrorCode::kFormat,
               {"absmax", "32", "320"});
  expect_error(decode("\"blocksize\": 64", "\"blocksize\": 0"), ErrorCode::kFormat, {"blocksize"});
  expect_error(decode("\"nested_blocksize\": 256", "\"nested_blocksize\": 128"), ErrorCode::kFormat,
               {"nested_absmax", "[3]", "[2]"});
  expect_error(decode("nested_blocksize", "other_blocksize"), ErrorCode::kFormat,
               {"absmax", "nested_blocksize"});
  expect_error(decode("nested_offset", "other_offset"), ErrorCode::kFormat, {"nested_offset"});
  expect_error(decode("\"nf4\"", "\"fp4\""), ErrorCode::kFormat, {"quant_type", "nf4", "fp4"});
  expect_error(decode("{", "["), ErrorCode::kFormat, {"quant_state"});
}

TEST(DecodeBitsandbytesTest, TheOffsetIsAdded) {
  const EncodedFile file(golden_root() / "encodings" / "bitsandbytes-nf4-nested.safetensors");
  const EncodedMatrix intact = file.matrix("gate");
  EncodedMatrix matrix = intact;
  EncodedTensor& state = matrix.tensors.at("weight.quant_state.bitsandbytes__nf4");
  std::string text(reinterpret_cast<const char*>(state.data),
                   static_cast<size_t>(state.num_elements()));
  const size_t at = text.find("\"nested_offset\": ");
  ASSERT_NE(at, std::string::npos);
  text.insert(at + 17, "1");  // ten or more larger
  state.shape = {static_cast<int64_t>(text.size())};
  state.data = reinterpret_cast<const std::byte*>(text.data());
  EXPECT_NE(decode_matrix(file.scheme, matrix), decode_matrix(file.scheme, intact));
}

TEST(QuantSchemeTest, AnUnquantizedConfigHasNone) {
  EXPECT_FALSE(read_quant_scheme(R"({"model_type": "mixtral"})", "config.json").has_value());
}

TEST(QuantSchemeTest, RefusesWhatItDoesNotKnow) {
  const auto read = [](const char* quant) {
    return [=] {
      (void)read_quant_scheme(std::string(R"({"quantization_config": )") + quant + "}", "c.json");
    };
  };
  expect_error(read(R"({"quant_method": "hqq"})"), ErrorCode::kUnsupported, {"hqq"});
  expect_error(read(R"({"quant_method": "modelopt", "quant_algo": "X"})"), ErrorCode::kUnsupported,
               {"quant_algo", "X"});
  expect_error(read(R"({"quant_method": "gptq", "bits": 9})"), ErrorCode::kFormat, {"bits", "9"});
  expect_error(read(R"({"quant_method": "fp8", "weight_block_size": [128]})"), ErrorCode::kFormat,
               {"block size"});
  expect_error(read(R"({"quant_method": "fp8", "weight_block_size": [128, 0]})"),
               ErrorCode::kFormat, {"block size", "0"});
  expect_error(read(R"({"quant_method": "compressed-tensors"})"), ErrorCode::kFormat,
               {"config_groups"});
  expect_error(read(R"({"quant_method": "awq", "bits": 4, "version": "gemv"})"),
               ErrorCode::kUnsupported, {"GEMV", "gemm"});
  expect_error(read("[]"), ErrorCode::kFormat, {"object"});
}

TEST(DecodeMatrixTest, TheHighestZeroPointOfGptqsFirstFormatIsSixteen) {
  // One output, 32 inputs, 4 bits: all codes 15, stored zero point 15: q - (15 + 1) = -1.
  const std::vector<uint32_t> codes(4 * 8, 0xffffffffu);
  const std::vector<uint32_t> zeros(1, 0xffffffffu);
  const std::vector<float> scales(8, 0.5F);
  QuantScheme scheme;
  scheme.bits = 4;
  scheme.symmetric = false;
  scheme.grid = ScaleGrid::kGroup;
  scheme.group_size = 32;
  EncodedMatrix matrix;
  matrix.size = {8, 32};
  const auto add = [&](const char* suffix, DType dtype, std::vector<int64_t> shape,
                       const void* data) {
    matrix.tensors[suffix] = {suffix, dtype, std::move(shape), static_cast<const std::byte*>(data)};
  };
  add("qweight", DType::kI32, {4, 8}, codes.data());
  add("qzeros", DType::kI32, {1, 1}, zeros.data());
  add("scales", DType::kF32, {1, 8}, scales.data());
  EXPECT_EQ(decode_matrix(scheme, matrix), std::vector<float>(8 * 32, -0.5F));
  scheme.zero_minus_one = false;
  EXPECT_EQ(decode_matrix(scheme, matrix), std::vector<float>(8 * 32, 0.0F));
}

TEST(DecodeMatrixTest, CodesOfFourBitsInBytesAreWhatTheySayAndNoMore) {
  std::vector<int8_t> codes(3 * 33);
  for (size_t i = 0; i < codes.size(); ++i)
    codes[i] = static_cast<int8_t>(static_cast<int>(i % 16) - 8);
  const std::vector<float> scales = {0.5F, -2.0F, 3.0F};
  QuantScheme scheme;
  scheme.bits = 4;
  scheme.grid = ScaleGrid::kChannel;
  EncodedMatrix matrix;
  matrix.size = {3, 33};
  matrix.tensors["weight"] = {
      "weight", DType::kI8, {3, 33}, reinterpret_cast<const std::byte*>(codes.data())};
  matrix.tensors["weight_scale"] = {
      "weight_scale", DType::kF32, {3, 1}, reinterpret_cast<const std::byte*>(scales.data())};
  const std::vector<float> found = decode_matrix(scheme, matrix);
  ASSERT_EQ(found.size(), codes.size());
  for (size_t i = 0; i < codes.size(); ++i)
    EXPECT_EQ(found[i], static_cast<float>(codes[i]) * scales[i / 33]) << i;
  for (const int bad : {8, -9, 127}) {
    codes[70] = static_cast<int8_t>(bad);
    expect_error([&] { (void)decode_matrix(scheme, matrix); }, ErrorCode::kFormat,
                 {"weight", "element 70", "4 bits", std::to_string(bad)});
  }
  scheme.bits = 8;
  EXPECT_EQ(decode_matrix(scheme, matrix)[70], 127.0F * 3.0F);
}

TEST(DecodeMatrixTest, RefusesAGroupIndexOutOfRange) {
  const std::vector<uint32_t> codes(4 * 8, 0);
  const std::vector<uint32_t> zeros(1, 0);
  const std::vector<float> scales(8, 1.0F);
  std::vector<int32_t> groups(32, 0);
  groups[7] = 1;
  QuantScheme scheme;
  scheme.bits = 4;
  scheme.group_size = 32;
  EncodedMatrix matrix;
  matrix.size = {8, 32};
  const auto bytes = [](const auto& values) {
    return reinterpret_cast<const std::byte*>(values.data());
  };
  matrix.tensors["qweight"] = {"qweight", DType::kI32, {4, 8}, bytes(codes)};
  matrix.tensors["qzeros"] = {"qzeros", DType::kI32, {1, 1}, bytes(zeros)};
  matrix.tensors["scales"] = {"scales", DType::kF32, {1, 8}, bytes(scales)};
  matrix.tensors["g_idx"] = {"g_idx", DType::kI32, {32}, bytes(groups)};
  expect_error([&] { (void)decode_matrix(scheme, matrix); }, ErrorCode::kFormat,
               {"g_idx", "element 7", "found 1"});
}

TEST(DecodeMatrixTest, RefusesFp4ScalesBeyondTheKernelsRoom) {
  const std::vector<uint8_t> codes(2 * 3 * 16, 0x21);
  std::vector<uint8_t> scales = {127, 0, 227, 255, 100, 127};  // 255: NaN, a finding of its own
  EncodedMatrix matrix;
  matrix.size = {2, 96};
  matrix.tensors["weight_packed"] = {
      "weight_packed", DType::kU8, {2, 48}, reinterpret_cast<const std::byte*>(codes.data())};
  matrix.tensors["weight_scale"] = {
      "weight_scale", DType::kU8, {2, 3}, reinterpret_cast<const std::byte*>(scales.data())};
  QuantScheme scheme;
  scheme.group_size = 32;
  EXPECT_EQ(code_mxfp4(scheme, matrix).file_scales,
            reinterpret_cast<const std::byte*>(scales.data()));
  for (const uint8_t code : {uint8_t{228}, uint8_t{254}}) {
    scales[4] = code;
    expect_error([&] { (void)code_mxfp4(scheme, matrix); }, ErrorCode::kUnsupported,
                 {"weight_scale", "element 4", fmt::format("2^{}", code - 127)});
  }
}

}  // namespace
}  // namespace gantry::test
