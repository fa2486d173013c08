#include "loader/checkpoint_writer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <numeric>
#include <thread>

#include "loader/byte_sum.h"
#include "loader/checkpoint.h"
#include "tests/support/expect_error.h"
#include "tests/support/seeded_rng.h"
#include "tests/support/temp_dir.h"

namespace gantry::test {
namespace {

namespace fs = std::filesystem;

TensorInfo tensor(std::string name, DType dtype, std::vector<int64_t> shape) {
  return {.name = std::move(name), .dtype = dtype, .shape = std::move(shape)};
}

std::vector<TensorInfo> three_tensors() {
  return {tensor("a", DType::kBF16, {8, 16}), tensor("b", DType::kU8, {3}),
          tensor("c", DType::kF32, {5, 13})};
}

std::vector<std::byte> content(std::string_view name, int64_t bytes) {
  std::vector<std::byte> data(static_cast<size_t>(bytes));
  for (size_t i = 0; i < data.size(); ++i)
    data[i] = static_cast<std::byte>(i * 7 + static_cast<size_t>(name[0]));
  return data;
}

int64_t bytes_of(const TensorInfo& info) { return info.num_elements() * size_of(info.dtype); }

void write_whole(CheckpointWriter& writer, const TensorInfo& info) {
  writer.write(info.name, 0, content(info.name, bytes_of(info)));
}

void expect_content(const fs::path& directory, const std::vector<TensorInfo>& tensors) {
  const Checkpoint checkpoint = Checkpoint::open(directory);
  ASSERT_EQ(checkpoint.tensors().size(), tensors.size());
  for (const TensorInfo& info : tensors) {
    const CheckpointTensor* found = checkpoint.find(info.name);
    ASSERT_NE(found, nullptr) << info.name;
    EXPECT_EQ(describe(found->info), describe(info));
    std::vector<std::byte> bytes(static_cast<size_t>(found->info.num_bytes()));
    checkpoint.files()[static_cast<size_t>(found->file)].read(found->info.begin, bytes.data(),
                                                              found->info.num_bytes());
    EXPECT_EQ(bytes, content(info.name, bytes_of(info))) << info.name;
  }
}

std::vector<std::string> names_in(const fs::path& directory) {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(directory))
    names.push_back(entry.path().filename().string());
  std::sort(names.begin(), names.end());
  return names;
}

constexpr int64_t kOnePerFile = 1;
const std::vector<fs::path> kNoInputs;

TEST(PlanShardsTest, FillsFilesInOrderAndNamesThemAsTheReferenceWriter) {
  const auto shards = plan_shards(three_tensors(), 260);  // 256 + 3 fit, 260 do not
  ASSERT_EQ(shards.size(), 2U);
  EXPECT_EQ(shards[0].file, "model-00001-of-00002.safetensors");
  EXPECT_EQ(shards[0].tensors.size(), 2U);
  EXPECT_EQ(shards[1].tensors[0].name, "c");
}

TEST(PlanShardsTest, GivesATensorLargerThanTheLimitAFileOfItsOwn) {
  EXPECT_EQ(plan_shards(three_tensors(), kOnePerFile).size(), 3U);
}

TEST(PlanShardsTest, NamesASingleFileWithoutNumbers) {
  EXPECT_EQ(plan_shards(three_tensors(), 0)[0].file, "model.safetensors");
  EXPECT_EQ(plan_shards({}, 5)[0].file, "model.safetensors");
}

TEST(PlanShardsTest, RefusesSizesBeyond64Bits) {
  expect_error(
      [] {
        (void)plan_shards({tensor("a", DType::kF32, {1LL << 40, 1LL << 40})}, 0);
      },
      ErrorCode::kInvalidArgument, {"\"a\"", "64 bits"});
}

TEST(CheckpointWriterTest, ShowsNothingUntilItIsFinishedAndThenEverything) {
  const TempDir dir;
  CheckpointWriter writer(dir / "out", kNoInputs, plan_shards(three_tensors(), kOnePerFile), {});
  for (const TensorInfo& info : three_tensors())
    write_whole(writer, info);
  writer.write_text("config.json", R"({"model_type":"olmoe"})");
  EXPECT_FALSE(fs::exists(dir / "out"));
  writer.finish();
  expect_content(dir / "out", three_tensors());
  EXPECT_THAT(
      names_in(dir / "out"),
      testing::ElementsAre("config.json", "model-00001-of-00003.safetensors",
                           "model-00002-of-00003.safetensors", "model-00003-of-00003.safetensors",
                           "model.safetensors.index.json"));
}

TEST(CheckpointWriterTest, LeavesNothingBesideTheResult) {
  const TempDir dir;
  {
    CheckpointWriter writer(dir / "out", kNoInputs, plan_shards(three_tensors(), 0), {});
    for (const TensorInfo& info : three_tensors())
      write_whole(writer, info);
    writer.finish();
  }
  EXPECT_THAT(names_in(dir.path()), testing::ElementsAre("out"));
  EXPECT_THAT(names_in(dir / "out"), testing::ElementsAre("model.safetensors"));
}

TEST(CheckpointWriterTest, WithoutAWholeFileAnAbandonedRunLeavesNothing) {
  const TempDir dir;
  { const CheckpointWriter writer(dir / "out", kNoInputs, plan_shards(three_tensors(), 0), {}); }
  EXPECT_THAT(names_in(dir.path()), testing::IsEmpty());
}

TEST(CheckpointWriterTest, TakesPiecesInAnyOrderFromManyThreads) {
  const TempDir dir;
  std::vector<TensorInfo> tensors;
  for (int t = 0; t < 16; ++t)
    tensors.push_back(tensor(std::string(1, static_cast<char>('a' + t)), DType::kU8, {1001 + t}));
  {
    CheckpointWriter writer(dir / "out", kNoInputs, plan_shards(tensors, 4000), {});
    const auto write_every_fourth = [&](size_t first) {
      for (size_t t = first; t < tensors.size(); t += 4) {
        const auto bytes = content(tensors[t].name, bytes_of(tensors[t]));
        const std::span all(bytes);
        writer.write(tensors[t].name, 501, all.subspan(501));
        writer.write(tensors[t].name, 0, all.first(501));
      }
    };
    std::vector<std::jthread> threads;
    for (size_t first = 0; first < 4; ++first)
      threads.emplace_back(write_every_fourth, first);
    threads.clear();
    writer.write_text("config.json", "{}");
    writer.finish();
  }
  expect_content(dir / "out", tensors);
}

TEST(CheckpointWriterTest, ReplacesAnEmptyDirectory) {
  const TempDir dir;
  fs::create_directories(dir / "out");
  CheckpointWriter writer(dir / "out/", kNoInputs, plan_shards({}, 0), {});
  writer.finish();
  EXPECT_TRUE(fs::exists(dir / "out/model.safetensors"));
}

TEST(CheckpointWriterTest, RefusesADirectoryThatIsNotEmpty) {
  const TempDir dir;
  dir.write("out/notes.txt", "mine");
  expect_error([&] { CheckpointWriter(dir / "out", kNoInputs, plan_shards({}, 0), {}); },
               ErrorCode::kInvalidArgument, {"out", "not empty"});
  EXPECT_EQ(read_bytes(dir / "out/notes.txt"), "mine");
}

TEST(CheckpointWriterTest, RefusesItsInputAndPathsAroundAndInsideIt) {
  const TempDir dir;
  fs::create_directories(dir / "models/in");
  fs::create_directory_symlink(dir / "models/in", dir / "link");
  const std::vector<fs::path> inputs = {dir / "models/in"};
  for (const char* output :
       {"models/in", "models/in/out", "models", "link", "models/../models/in"}) {
    expect_error([&] { CheckpointWriter(dir / output, inputs, plan_shards({}, 0), {}); },
                 ErrorCode::kInvalidArgument, {"apart from the input"});
  }
}

TEST(CheckpointWriterTest, RefusesTwoWritersOfOneOutput) {
  const TempDir dir;
  const CheckpointWriter first(dir / "out", kNoInputs, plan_shards(three_tensors(), 0), {});
  expect_error([&] { CheckpointWriter(dir / "out", kNoInputs, plan_shards({}, 0), {}); },
               ErrorCode::kIo, {"another process"});
}

TEST(CheckpointWriterTest, RefusesToFinishWithAGap) {
  const TempDir dir;
  CheckpointWriter writer(dir / "out", kNoInputs, plan_shards(three_tensors(), 0), {});
  write_whole(writer, three_tensors()[0]);
  expect_error([&] { writer.finish(); }, ErrorCode::kInternal, {"256 of 519 bytes"});
  EXPECT_FALSE(fs::exists(dir / "out"));
}

TEST(CheckpointWriterTest, RefusesNamesThatLeaveTheOutput) {
  const TempDir dir;
  CheckpointWriter writer(dir / "out", kNoInputs, plan_shards(three_tensors(), 0), {});
  for (const char* name : {"../x", "/tmp/x", "a/../../x", ""}) {
    expect_error([&] { writer.write_text(name, "x"); }, ErrorCode::kInvalidArgument,
                 {"not a name inside"});
  }
}

TEST(CheckpointWriterTest, CopiesFilesIntoFolders) {
  const TempDir dir;
  dir.write("source.txt", "words");
  CheckpointWriter writer(dir / "out", kNoInputs, plan_shards({}, 0), {});
  writer.copy_file(dir / "source.txt", "deep/er/copy.txt");
  writer.finish();
  EXPECT_EQ(read_bytes(dir / "out/deep/er/copy.txt"), "words");
}

/// Leaves a run behind that has written the first two of three files.
class ResumeTest : public testing::Test {
 protected:
  void SetUp() override {
    CheckpointWriter writer(dir / "out", kNoInputs, shards(), {.resume = {}, .fingerprint = "f1"});
    write_whole(writer, three_tensors()[0]);
    write_whole(writer, three_tensors()[1]);
    const std::vector<std::byte> half(10);
    writer.write("c", 0, half);
  }
  static std::vector<ShardPlan> shards() { return plan_shards(three_tensors(), kOnePerFile); }
  fs::path left(std::string_view file) const { return dir / ".out.partial/data" / file; }

  TempDir dir;
};

TEST_F(ResumeTest, KeepsWholeFilesAndGivesTheSameResult) {
  CheckpointWriter writer(dir / "out", kNoInputs, shards(), {.resume = true, .fingerprint = "f1"});
  EXPECT_TRUE(writer.is_kept("a"));
  EXPECT_TRUE(writer.is_kept("b"));
  EXPECT_FALSE(writer.is_kept("c"));
  EXPECT_EQ(writer.kept_bytes(), 259);
  write_whole(writer, three_tensors()[2]);
  writer.write_text("config.json", "{}");
  writer.finish();
  expect_content(dir / "out", three_tensors());
}

TEST_F(ResumeTest, WritesAFileAgainOfWhichAByteChanged) {
  std::string bytes = read_bytes(left("model-00001-of-00003.safetensors"));
  bytes.back() = static_cast<char>(bytes.back() ^ 1);
  dir.write(".out.partial/data/model-00001-of-00003.safetensors", bytes);
  const CheckpointWriter writer(dir / "out", kNoInputs, shards(),
                                {.resume = true, .fingerprint = "f1"});
  EXPECT_FALSE(writer.is_kept("a"));
  EXPECT_TRUE(writer.is_kept("b"));
}

TEST_F(ResumeTest, StartsOverForAnotherInput) {
  const CheckpointWriter writer(dir / "out", kNoInputs, shards(),
                                {.resume = true, .fingerprint = "f2"});
  EXPECT_FALSE(writer.is_kept("a"));
  EXPECT_FALSE(fs::exists(left("model-00002-of-00003.safetensors")));
}

TEST_F(ResumeTest, StartsOverWithoutTheFlag) {
  const CheckpointWriter writer(dir / "out", kNoInputs, shards(),
                                {.resume = false, .fingerprint = "f1"});
  EXPECT_FALSE(writer.is_kept("a"));
}

TEST_F(ResumeTest, CountsARecordCutShortAsNotWritten) {
  const std::string record = read_bytes(dir / ".out.partial/state.jsonl");
  dir.write(".out.partial/state.jsonl", record.substr(0, record.size() - 5));
  const CheckpointWriter writer(dir / "out", kNoInputs, shards(),
                                {.resume = true, .fingerprint = "f1"});
  EXPECT_TRUE(writer.is_kept("a"));
  EXPECT_FALSE(writer.is_kept("b"));
}

TEST_F(ResumeTest, DoesNotTakeAKeptTensorAgain) {
  CheckpointWriter writer(dir / "out", kNoInputs, shards(), {.resume = true, .fingerprint = "f1"});
  expect_error([&] { write_whole(writer, three_tensors()[0]); }, ErrorCode::kInvalidArgument,
               {"whole already"});
}

TEST(ByteSumTest, IsTheFormulaForWholeWords) {
  const std::vector<uint64_t> words = {3, 5, ~uint64_t{0}};
  ByteSum sum;
  sum.add(0, std::as_bytes(std::span(words)));
  EXPECT_EQ(sum.low, 3 + 5 + ~uint64_t{0});
  EXPECT_EQ(sum.high, 3 + 2 * 5 + 3 * ~uint64_t{0});
}

TEST(ByteSumTest, DoesNotDependOnPiecesOrOrder) {
  SeededRng rng;
  std::vector<std::byte> bytes(1003);
  for (std::byte& b : bytes)
    b = static_cast<std::byte>(rng.integer(0, 255));
  ByteSum whole;
  whole.add(5, bytes);
  for (int trial = 0; trial < 100; ++trial) {
    std::vector<size_t> cuts = {0, bytes.size()};
    for (int c = 0; c < 7; ++c)
      cuts.push_back(static_cast<size_t>(rng.integer(0, 1003)));
    std::sort(cuts.begin(), cuts.end());
    ByteSum pieces;
    for (size_t c = cuts.size() - 1; c > 0; --c) {
      pieces.add(5 + static_cast<int64_t>(cuts[c - 1]),
                 std::span(bytes).subspan(cuts[c - 1], cuts[c] - cuts[c - 1]));
    }
    ASSERT_EQ(pieces, whole);
  }
}

TEST(ByteSumTest, NoticesExchangedWords) {
  const std::vector<uint64_t> one = {1, 2};
  const std::vector<uint64_t> other = {2, 1};
  ByteSum a;
  ByteSum b;
  a.add(0, std::as_bytes(std::span(one)));
  b.add(0, std::as_bytes(std::span(other)));
  EXPECT_FALSE(a == b);
}

}  // namespace
}  // namespace gantry::test
