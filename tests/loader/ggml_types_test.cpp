// The block formats of ggml against the values that ggml's own Python package gives for the same
// blocks (tests/golden/README.md), bit by bit.

#include "loader/encodings/ggml_types.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <functional>
#include <set>

#include "loader/encodings/encoded_matrix.h"
#include "loader/safetensors.h"
#include "tests/support/expect_error.h"
#include "tests/support/golden_dirs.h"
#include "tests/support/seeded_rng.h"

namespace gantry::test {
namespace {

const SafetensorsFile& blocks_file() {
  static const SafetensorsFile file(golden_root() / "ggml" / "blocks.safetensors");
  return file;
}

std::vector<std::byte> read_tensor(const std::string& name) {
  const TensorInfo* info = blocks_file().find(name);
  EXPECT_NE(info, nullptr) << name;
  if (info == nullptr) return {};
  std::vector<std::byte> bytes(static_cast<size_t>(info->num_bytes()));
  blocks_file().read(info->begin, bytes.data(), info->num_bytes());
  return bytes;
}

class GgmlTypeTest : public testing::TestWithParam<std::string> {};

TEST_P(GgmlTypeTest, DecodesBlocksToTheSameBitsAsGgml) {
  const GgmlType* type = find_ggml_type(GetParam());
  ASSERT_NE(type, nullptr);
  const std::vector<std::byte> blocks = read_tensor(GetParam() + ".blocks");
  const std::vector<std::byte> expected = read_tensor(GetParam() + ".values");
  ASSERT_GT(blocks.size(), 0U);
  ASSERT_EQ(blocks.size() % static_cast<size_t>(type->block_bytes), 0U);
  const auto count = static_cast<int64_t>(blocks.size()) / type->block_bytes;
  std::vector<float> values(static_cast<size_t>(count * type->block_elements));
  ASSERT_EQ(values.size() * sizeof(float), expected.size());
  decode_ggml_blocks(*type, blocks.data(), count, values.data());
  size_t wrong = 0;
  for (size_t i = 0; i < values.size(); ++i) {
    float wanted = 0;
    std::memcpy(&wanted, expected.data() + i * sizeof(float), sizeof(float));
    if (std::memcmp(&values[i], &wanted, sizeof(float)) == 0) continue;
    if (++wrong <= 3) ADD_FAILURE() << "element " << i << ": " << values[i] << " != " << wanted;
  }
  EXPECT_EQ(wrong, 0U) << "of " << values.size();
}

TEST_P(GgmlTypeTest, DecodesBlocksThatAreNotAligned) {
  const GgmlType& type = *find_ggml_type(GetParam());
  const std::vector<std::byte> blocks = read_tensor(GetParam() + ".blocks");
  std::vector<std::byte> shifted(blocks.size() + 1);
  std::copy(blocks.begin(), blocks.end(), shifted.begin() + 1);
  std::vector<float> aligned(static_cast<size_t>(type.block_elements));
  std::vector<float> unaligned(aligned.size());
  decode_ggml_blocks(type, blocks.data(), 1, aligned.data());
  decode_ggml_blocks(type, shifted.data() + 1, 1, unaligned.data());
  EXPECT_EQ(std::memcmp(aligned.data(), unaligned.data(), aligned.size() * sizeof(float)), 0);
}

// The formula of the kernels over what a block is taken apart into: the decoder's values.
TEST_P(GgmlTypeTest, CodesScalesAndMinimumsGiveTheDecodersValues) {
  const GgmlType& type = *find_ggml_type(GetParam());
  ASSERT_TRUE(type.format.coded());
  const MatrixSize size{24, 3 * type.block_elements};
  SeededRng rng;
  std::vector<std::byte> random(static_cast<size_t>(size.out * 3 * type.block_bytes));
  for (std::byte& byte : random)
    byte = static_cast<std::byte>(rng.integer(0, 255));
  // Kernels have room for scales of up to 2^100.
  for (size_t b = 0; type.name == "mxfp4" && b < random.size(); b += 17)
    random[b] &= std::byte{0x7f};
  EncodedMatrix matrix;
  matrix.size = size;
  matrix.tensors["weight"] = {
      "w", DType::kU8, {size.out, size.in}, random.data(), std::string(type.name)};
  const CodedMatrix coded = find_encoding({}, matrix).code({}, matrix);
  EXPECT_TRUE(coded.format == type.format);
  const std::vector<float> found = dequantize(coded);
  std::vector<float> expected(found.size());
  decode_ggml_blocks(type, random.data(), size.out * 3, expected.data());
  for (size_t i = 0; i < expected.size(); ++i) {
    // The same but for the sign of zeros: ggml counts FP4 in integers.
    ASSERT_TRUE(found[i] == expected[i] || (std::isnan(found[i]) && std::isnan(expected[i])))
        << i << ": expected " << expected[i] << ", found " << found[i] << ", seed " << rng.seed();
  }
}

INSTANTIATE_TEST_SUITE_P(BlockTypes, GgmlTypeTest,
                         testing::Values("q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q2_k", "q3_k",
                                         "q4_k", "q5_k", "q6_k", "iq4_nl", "iq4_xs", "mxfp4"),
                         [](const auto& type) { return type.param; });

// The oracle's file and the table know the same types: a new decoder needs new blocks.
TEST(GgmlTypesTest, HasBlocksToTestEveryDecoder) {
  std::set<std::string> tested;
  for (const TensorInfo& info : blocks_file().header().tensors)
    tested.insert(info.name.substr(0, info.name.find('.')));
  std::set<std::string> decoded;
  for (uint32_t id = 0; id < 64; ++id) {
    const GgmlType* type = find_ggml_type(id);
    if (type != nullptr && type->decode != nullptr) decoded.insert(std::string(type->name));
  }
  EXPECT_EQ(decoded, tested);
}

TEST(GgmlTypesTest, FindsARowByItsNumberAndItsName) {
  std::set<std::string_view> names;
  for (uint32_t id = 0; id < 64; ++id) {
    const GgmlType* type = find_ggml_type(id);
    if (type == nullptr) continue;
    EXPECT_EQ(type->id, id);
    EXPECT_TRUE(names.insert(type->name).second) << type->name;
    EXPECT_EQ(find_ggml_type(type->name), type);
    EXPECT_GT(type->block_bytes, 0);
    EXPECT_FALSE(type->dtype && size_of(*type->dtype) != type->block_bytes) << type->name;
  }
  EXPECT_EQ(names.size(), 33U);
  EXPECT_EQ(find_ggml_type(77U), nullptr);
  EXPECT_EQ(find_ggml_type(""), nullptr);
  EXPECT_EQ(ggml_type_name(12), "q4_k");
  EXPECT_EQ(ggml_type_name(77), "type 77");
}

TEST(GgmlTypesTest, RefusesATypeWithoutADecoderByName) {
  float value = 0;
  expect_error([&] { decode_ggml_blocks(*find_ggml_type("iq2_xxs"), nullptr, 1, &value); },
               ErrorCode::kUnsupported, {"iq2_xxs"});
}

// ---- as a row of the table of encodings ----------------------------------------------------

EncodedMatrix q8_0_matrix(const std::vector<std::byte>& bytes, MatrixSize size) {
  EncodedMatrix matrix;
  matrix.size = size;
  matrix.tensors["weight"] = {
      "blk.0.ffn_up_exps.weight", DType::kU8, {size.out, size.in}, bytes.data(), "q8_0"};
  return matrix;
}

TEST(GgufEncodingTest, DecodesRowByRow) {
  // Two rows of one block: scales 1 and 2 (f16 0x3c00, 0x4000), codes 0, 1, 2 ...
  std::vector<std::byte> bytes(2 * 34);
  for (size_t row = 0; row < 2; ++row) {
    bytes[row * 34 + 1] = row == 0 ? std::byte{0x3c} : std::byte{0x40};
    for (size_t i = 0; i < 32; ++i)
      bytes[row * 34 + 2 + i] = static_cast<std::byte>(i - 16);
  }
  const EncodedMatrix matrix = q8_0_matrix(bytes, {2, 32});
  EXPECT_EQ(find_encoding({}, matrix).name, "gguf");
  const std::vector<float> values = decode_matrix({}, matrix);
  ASSERT_EQ(values.size(), 64U);
  for (size_t i = 0; i < 32; ++i) {
    EXPECT_EQ(values[i], static_cast<float>(i) - 16.0F);
    EXPECT_EQ(values[32 + i], 2.0F * (static_cast<float>(i) - 16.0F));
  }
}

TEST(GgufEncodingTest, RefusesWhatDoesNotFit) {
  const std::vector<std::byte> bytes(4 * 34);
  const auto decode = [&](const std::function<void(EncodedMatrix&)>& change) {
    return [&bytes, change] {
      EncodedMatrix matrix = q8_0_matrix(bytes, {2, 32});
      change(matrix);
      (void)decode_matrix({}, matrix);
    };
  };
  expect_error(decode([](EncodedMatrix& m) {
                 m.size = {2, 64};
               }),
               ErrorCode::kFormat, {"ffn_up_exps", "expected [2, 64] q8_0", "[2, 32]"});
  expect_error(decode([](EncodedMatrix& m) { m.size = {4, 32}; }), ErrorCode::kFormat, {"[4, 32]"});
  expect_error(decode([](EncodedMatrix& m) {
                 m.size = {2, 48};
                 m.tensors["weight"].shape = {2, 48};
               }),
               ErrorCode::kFormat, {"whole q8_0 blocks of 32", "48"});
  expect_error(decode([](EncodedMatrix& m) { m.tensors["weight"].block_type = "iq1_s"; }),
               ErrorCode::kUnsupported, {"ffn_up_exps", "iq1_s"});
  expect_error(decode([](EncodedMatrix& m) { m.tensors["weight"].block_type = "type 77"; }),
               ErrorCode::kUnsupported, {"type 77"});
}

}  // namespace
}  // namespace gantry::test
