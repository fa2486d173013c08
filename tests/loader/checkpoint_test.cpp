#include "loader/checkpoint.h"

#include <gtest/gtest.h>

#include <string>
#include <utility>
#include <vector>

#include "kernels/base/log.h"
#include "tests/support/expect_error.h"
#include "tests/support/safetensors_bytes.h"
#include "tests/support/temp_dir.h"

namespace gantry::test {
namespace {

using Names = std::vector<std::string>;

/// A file with one byte for each name.
std::string shard(const Names& names) {
  std::string json;
  for (size_t i = 0; i < names.size(); ++i) {
    json += (i == 0 ? "{\"" : ",\"") + names[i] +
            R"(":{"dtype":"U8","shape":[1],"data_offsets":[)" + std::to_string(i) + "," +
            std::to_string(i + 1) + "]}";
  }
  return safetensors_bytes(names.empty() ? "{}" : json + "}", std::string(names.size(), 'x'));
}

/// An index of (tensor, shard) pairs.
std::string index_of(const std::vector<std::pair<std::string, std::string>>& weight_map,
                     int total_size = 0) {
  std::string json =
      R"({"metadata":{"total_size":)" + std::to_string(total_size) + R"(},"weight_map":{)";
  for (const auto& [tensor, file] : weight_map) {
    json += "\"" + tensor + "\":\"" + file + "\",";
  }
  json.back() = '}';
  return json + "}";
}

/// Log lines of the time it lives.
class CapturedLog {
 public:
  CapturedLog() {
    set_log_sink([this](LogLevel level, std::string_view message) {
      (level == LogLevel::kWarn ? warnings : notes).append(message).append("\n");
    });
  }
  CapturedLog(const CapturedLog&) = delete;
  CapturedLog& operator=(const CapturedLog&) = delete;
  ~CapturedLog() { set_log_sink({}); }

  std::string warnings;
  std::string notes;
};

class CheckpointTest : public testing::Test {
 protected:
  CheckpointTest() { dir.write("model/config.json", R"({"model_type":"mixtral"})"); }

  void write(std::string_view name, std::string_view bytes) {
    dir.write("model/" + std::string(name), bytes);
  }
  /// Two shards, [a b] and [c], and their index.
  void write_two_shards() {
    write("x-1.safetensors", shard({"a", "b"}));
    write("x-2.safetensors", shard({"c"}));
    write("model.safetensors.index.json",
          index_of({{"a", "x-1.safetensors"}, {"b", "x-1.safetensors"}, {"c", "x-2.safetensors"}},
                   3));
  }
  void link(const std::string& target, const std::string& name) {
    std::filesystem::create_symlink(target, model / name);
  }
  Checkpoint open() const { return Checkpoint::open(model); }
  void expect_open_error(ErrorCode code, std::initializer_list<std::string_view> parts) {
    expect_error([&] { open(); }, code, parts);
  }

  TempDir dir;
  std::filesystem::path model = dir / "model";
};

TEST_F(CheckpointTest, ReadsShardsOfAnIndex) {
  write_two_shards();
  const CapturedLog log;
  const Checkpoint checkpoint = open();
  ASSERT_EQ(checkpoint.files().size(), 2u);
  EXPECT_EQ(checkpoint.tensors().size(), 3u);
  const CheckpointTensor* c = checkpoint.find("c");
  ASSERT_NE(c, nullptr);
  EXPECT_EQ(c->file, 1);
  EXPECT_EQ(c->info.num_bytes(), 1);
  EXPECT_EQ(checkpoint.files()[1].path().filename(), "x-2.safetensors");
  EXPECT_EQ(checkpoint.find("d"), nullptr);
  EXPECT_EQ(checkpoint.total_bytes(), 3);
  EXPECT_EQ(checkpoint.config_text(), R"({"model_type":"mixtral"})");
  EXPECT_EQ(checkpoint.directory(), model);
  EXPECT_FALSE(checkpoint.names_only());
  EXPECT_EQ(log.warnings + log.notes, "");
}

TEST_F(CheckpointTest, ReadsAllFilesInOrderWithoutAnIndex) {
  write("b.safetensors", shard({"t2"}));
  write("a.safetensors", shard({"t1"}));
  const Checkpoint checkpoint = open();
  ASSERT_EQ(checkpoint.files().size(), 2u);
  EXPECT_EQ(checkpoint.files()[0].path().filename(), "a.safetensors");
  EXPECT_EQ(checkpoint.find("t2")->file, 1);
}

TEST_F(CheckpointTest, LeavesSidecarAndHiddenFilesAlone) {
  write("model.safetensors", shard({"a"}));
  write("moe_io.safetensors", "not read");
  write(".model.safetensors.tmp.1.safetensors", "not read");
  write("notes.txt", "not read");
  EXPECT_EQ(open().tensors().size(), 1u);
}

TEST_F(CheckpointTest, IgnoresAndNotesFilesThatTheIndexDoesNotName) {
  write_two_shards();
  write("consolidated.safetensors", "not read");
  write("moe_io.safetensors", "not read");
  const CapturedLog log;
  EXPECT_EQ(open().tensors().size(), 3u);
  EXPECT_NE(log.notes.find("ignored: \"consolidated.safetensors\"\n"), std::string::npos)
      << log.notes;
}

TEST_F(CheckpointTest, ReadsAnIndexOfAnotherName) {
  write("w-1.safetensors", shard({"a"}));
  write("consolidated.safetensors.index.json", index_of({{"a", "w-1.safetensors"}}, 1));
  EXPECT_EQ(open().tensors().size(), 1u);
}

TEST_F(CheckpointTest, PrefersTheHuggingFaceIndex) {
  write_two_shards();
  write("consolidated.safetensors.index.json", "not read");
  const CapturedLog log;
  EXPECT_EQ(open().tensors().size(), 3u);
  EXPECT_NE(log.notes.find("consolidated.safetensors.index.json"), std::string::npos);
}

TEST_F(CheckpointTest, RefusesTwoIndexesOfOtherNames) {
  write("a.safetensors", shard({"a"}));
  write("p.safetensors.index.json", index_of({{"a", "a.safetensors"}}));
  write("q.safetensors.index.json", index_of({{"a", "a.safetensors"}}));
  expect_open_error(ErrorCode::kFormat, {"expected one index, found 2", "\"p.safe", "\"q.safe"});
}

TEST_F(CheckpointTest, WarnsOfAWrongTotalSize) {
  write("a.safetensors", shard({"a"}));
  write("model.safetensors.index.json", index_of({{"a", "a.safetensors"}}, 7));
  const CapturedLog log;
  EXPECT_EQ(open().total_bytes(), 1);
  EXPECT_NE(log.warnings.find("says 7 bytes, the tensors have 1"), std::string::npos)
      << log.warnings;
}

// ---- files that are missing or cannot be read ---------------------------------------------------

TEST_F(CheckpointTest, ReportsADirectoryThatDoesNotExist) {
  expect_error([&] { Checkpoint::open(dir / "none"); }, ErrorCode::kIo, {"none", "No such file"});
}

TEST_F(CheckpointTest, ReportsADirectoryThatIsAFile) {
  expect_error([&] { Checkpoint::open(dir.write("file", "x")); }, ErrorCode::kIo,
               {"file", "Not a directory"});
}

TEST_F(CheckpointTest, ReportsAMissingConfig) {
  write("model.safetensors", shard({"a"}));
  std::filesystem::remove(model / "config.json");
  expect_open_error(ErrorCode::kIo, {"config.json", "No such file"});
}

TEST_F(CheckpointTest, RefusesAConfigThatIsNoObject) {
  write("config.json", "[]");
  expect_open_error(ErrorCode::kFormat, {"config.json: expected an object, found array"});
}

TEST_F(CheckpointTest, RefusesAConfigWithADuplicateKey) {
  write("config.json", R"({"a":1,"a":2})");
  expect_open_error(ErrorCode::kFormat, {"config.json: byte ", "duplicate key \"a\""});
}

TEST_F(CheckpointTest, RefusesAConfigOfMoreThan64MiB) {
  std::filesystem::resize_file(model / "config.json", (64u << 20) + 1);
  expect_open_error(ErrorCode::kFormat, {"config.json: expected at most 67108864 bytes"});
}

TEST_F(CheckpointTest, ReportsAllMissingShards) {
  write("model.safetensors.index.json",
        index_of({{"a", "x-1.safetensors"}, {"b", "x-2.safetensors"}}));
  expect_open_error(ErrorCode::kIo, {"missing 2: \"x-1.safetensors\", \"x-2.safetensors\""});
}

TEST_F(CheckpointTest, RefusesADirectoryWithoutWeights) {
  expect_open_error(ErrorCode::kFormat, {"expected *.safetensors files, found none"});
}

TEST_F(CheckpointTest, NeverReadsPickles) {
  write("pytorch_model-00001.bin", "pickle");
  write("consolidated.00.pth", "pickle");
  expect_open_error(ErrorCode::kUnsupported,
                    {"never read", "convert them to safetensors", "\"consolidated.00.pth\""});
}

TEST_F(CheckpointTest, RefusesATruncatedShard) {
  write_two_shards();
  std::filesystem::resize_file(model / "x-1.safetensors",
                               std::filesystem::file_size(model / "x-1.safetensors") - 1);
  expect_open_error(ErrorCode::kFormat, {"x-1.safetensors", "1 bytes of data", "truncated"});
}

// ---- index against files ------------------------------------------------------------------------

TEST_F(CheckpointTest, RefusesATensorInTwoFiles) {
  write("x-1.safetensors", shard({"a", "b"}));
  write("x-2.safetensors", shard({"b", "c"}));
  expect_open_error(ErrorCode::kFormat,
                    {"1 tensors are in two files", "b in x-1.safetensors and x-2.safetensors"});
}

TEST_F(CheckpointTest, RefusesATensorInTwoFilesOfAnIndex) {
  write_two_shards();
  write("x-2.safetensors", shard({"b", "c"}));
  expect_open_error(ErrorCode::kFormat, {"b in x-1.safetensors and x-2.safetensors"});
}

TEST_F(CheckpointTest, ReportsTensorsMissingFromTheFiles) {
  write_two_shards();
  write("x-1.safetensors", shard({"a"}));
  expect_open_error(ErrorCode::kFormat, {"1 tensors of the index are in no file: \"b\""});
}

TEST_F(CheckpointTest, ReportsTensorsMissingFromTheIndex) {
  write_two_shards();
  write("x-2.safetensors", shard({"c", "d"}));
  expect_open_error(ErrorCode::kFormat, {"1 tensors of the files are not in the index: \"d\""});
}

TEST_F(CheckpointTest, ReportsTensorsInAnotherShard) {
  write_two_shards();
  write("x-1.safetensors", shard({"a"}));
  write("x-2.safetensors", shard({"b", "c"}));
  expect_open_error(ErrorCode::kFormat, {"b in x-2.safetensors, not x-1.safetensors"});
}

TEST_F(CheckpointTest, ListsTenNamesAndTheCount) {
  Names names;
  for (char c = 'a'; c < 'a' + 12; ++c)
    names.emplace_back(1, c);
  write("x.safetensors", shard(names));
  write("model.safetensors.index.json", index_of({{"z", "x.safetensors"}}));
  expect_open_error(ErrorCode::kFormat, {"1 tensors of the index are in no file: \"z\"",
                                         "12 tensors of the files are not in the index: \"a\"",
                                         "\"j\", ... (12 in all)"});
}

// ---- names that leave the directory -------------------------------------------------------------

TEST_F(CheckpointTest, RefusesAnIndexThatNamesAFileOutside) {
  dir.write("outside.safetensors", shard({"a"}));
  write("model.safetensors.index.json", index_of({{"a", "../outside.safetensors"}}));
  expect_open_error(ErrorCode::kFormat, {"\"../outside.safetensors\"", "path separator"});
}

TEST_F(CheckpointTest, RefusesALinkToAFileOutside) {
  const auto outside = dir.write("outside.safetensors", shard({"a"}));
  link(outside.string(), "model.safetensors");
  expect_open_error(ErrorCode::kFormat, {"model.safetensors", "symbolic link", outside.string()});
}

TEST_F(CheckpointTest, RefusesAConfigThatLinksOutside) {
  std::filesystem::remove(model / "config.json");
  link("/etc/passwd", "config.json");
  expect_open_error(ErrorCode::kFormat, {"config.json", "symbolic link to /etc/passwd"});
}

TEST_F(CheckpointTest, RefusesALinkThroughTheCacheToAFileOutside) {
  const auto outside = dir.write("outside.safetensors", shard({"a"}));
  const auto snapshot = dir.write("cache/snapshots/rev/config.json", "{}").parent_path();
  std::filesystem::create_directories(dir / "cache/blobs");
  std::filesystem::create_symlink(outside, dir / "cache/blobs/sha");
  std::filesystem::create_symlink("../../blobs/sha", snapshot / "model.safetensors");
  expect_error([&] { Checkpoint::open(snapshot); }, ErrorCode::kFormat, {"symbolic link"});
}

TEST_F(CheckpointTest, RefusesALinkToADirectoryWhoseNameOnlyBeginsLikeTheCache) {
  const auto snapshot = dir.write("cache/snapshots/rev/config.json", "{}").parent_path();
  dir.write("cache/blobs2/sha", shard({"a"}));
  std::filesystem::create_directories(dir / "cache/blobs");
  std::filesystem::create_symlink("../../blobs2/sha", snapshot / "model.safetensors");
  expect_error([&] { Checkpoint::open(snapshot); }, ErrorCode::kFormat, {"symbolic link"});
}

TEST_F(CheckpointTest, FollowsTheLinksOfTheHuggingFaceCache) {
  dir.write("cache/blobs/sha1", R"({"model_type":"mixtral"})");
  dir.write("cache/blobs/sha2", shard({"a"}));
  std::filesystem::create_directories(dir / "cache/snapshots/rev");
  const auto snapshot = dir / "cache/snapshots/rev";
  std::filesystem::create_symlink("../../blobs/sha1", snapshot / "config.json");
  std::filesystem::create_symlink("../../blobs/sha2", snapshot / "model.safetensors");
  const Checkpoint checkpoint = Checkpoint::open(snapshot);
  EXPECT_EQ(checkpoint.tensors().size(), 1u);
  EXPECT_EQ(checkpoint.files()[0].path().filename(), "model.safetensors");
}

TEST_F(CheckpointTest, FollowsTheLinksOfACacheThatIsItselfReachedByALink) {
  dir.write("cache/blobs/sha", shard({"a"}));
  dir.write("cache/snapshots/rev/config.json", "{}");
  std::filesystem::create_symlink("../../blobs/sha", dir / "cache/snapshots/rev/m.safetensors");
  std::filesystem::create_directory_symlink(dir / "cache/snapshots/rev", dir / "alias");
  EXPECT_EQ(Checkpoint::open(dir / "alias").tensors().size(), 1u);
}

TEST_F(CheckpointTest, FollowsALinkInsideTheDirectory) {
  write("real/weights", shard({"a"}));
  link("real/weights", "model.safetensors");
  EXPECT_EQ(open().tensors().size(), 1u);
}

TEST_F(CheckpointTest, ReportsALinkToNothing) {
  link("gone", "model.safetensors");
  expect_open_error(ErrorCode::kIo, {"model.safetensors", "No such file"});
}

// ---- names only ---------------------------------------------------------------------------------

TEST_F(CheckpointTest, NamesOnlyNeedsNoWeights) {
  write("model.safetensors.index.json",
        index_of({{"a", "x-1.safetensors"}, {"b", "x-2.safetensors"}}, 99));
  const Checkpoint checkpoint = Checkpoint::open_names_only(model);
  EXPECT_TRUE(checkpoint.names_only());
  EXPECT_TRUE(checkpoint.files().empty());
  ASSERT_EQ(checkpoint.tensors().size(), 2u);
  EXPECT_EQ(checkpoint.find("b")->file, -1);
  EXPECT_EQ(checkpoint.find("b")->info.name, "b");
  EXPECT_EQ(checkpoint.total_bytes(), 0);
}

TEST_F(CheckpointTest, NamesOnlyReadsHeadersWithoutAnIndex) {
  write("a.safetensors", shard({"a"}));
  write("b.safetensors", shard({"b"}));
  const Checkpoint checkpoint = Checkpoint::open_names_only(model);
  EXPECT_EQ(checkpoint.tensors().size(), 2u);
  EXPECT_EQ(checkpoint.find("b")->file, -1);
  EXPECT_TRUE(checkpoint.files().empty());
}

TEST_F(CheckpointTest, NamesOnlyRefusesAnIndexThatNamesAFileOutside) {
  write("model.safetensors.index.json", index_of({{"a", "../x.safetensors"}}));
  expect_error([&] { Checkpoint::open_names_only(model); }, ErrorCode::kFormat, {"path separator"});
}

}  // namespace
}  // namespace gantry::test
