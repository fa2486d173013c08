#include "loader/placement_file.h"

#include <gtest/gtest.h>

#include "loader/expert_counts_file.h"
#include "tests/support/expect_error.h"
#include "tests/support/random_maps.h"
#include "tests/support/temp_dir.h"

namespace gantry::test {
namespace {

using Ids = std::vector<int32_t>;

// Three layers, the first of them dense; 4 experts.
const PlacedModel kModel{.num_layers = 3, .layers = {{1, 4}, {2, 4}}};

Ids ids_of(const ExpertPlacement& placement, int layer) { return placement.layers().at(layer).ids; }

ExpertPlacement parse(std::string_view text) {
  return parse_placement_file(text, "p.json", kModel);
}

TEST(PlacementFileTest, ReadsSglangRowsOfAllLayers) {
  const ExpertPlacement placement =
      parse(R"({"physical_to_logical_map": [[0,1,2,3,0,1], [3,2,1,0,3,2], [0,2,1,3,1,1]]})");
  EXPECT_EQ(ids_of(placement, 1), (Ids{3, 2, 1, 0, 3, 2}));
  EXPECT_EQ(ids_of(placement, 2), (Ids{0, 2, 1, 3, 1, 1}));
}

// The two examples of vLLM's proposal: a map of all layers, and one a layer.
TEST(PlacementFileTest, ReadsVllmsListOfAllLayersOrOfMoeLayers) {
  const ExpertPlacement shared = parse("[0, 1, 2, 3, 0, 1]");
  EXPECT_EQ(ids_of(shared, 1), (Ids{0, 1, 2, 3, 0, 1}));
  EXPECT_EQ(ids_of(shared, 2), ids_of(shared, 1));
  const ExpertPlacement each = parse("[[0, 1, 2, 3, 0, 1],\n [3, 2, 1, 0, 3, 2]]");
  EXPECT_EQ(ids_of(each, 1), (Ids{0, 1, 2, 3, 0, 1}));
  EXPECT_EQ(ids_of(each, 2), (Ids{3, 2, 1, 0, 3, 2}));
}

TEST(PlacementFileTest, ReadsVllmsRanksOfExperts) {
  const ExpertPlacement placement = parse(R"({"expert_to_ep_rank": [2, 0, 2, 2]})");
  const ExpertMap map = placement.map_of(2, 4, 3);
  EXPECT_EQ(map, ExpertMap::from_slots(4, {{1}, {}, {0, 2, 3}}));
  expect_error([&] { static_cast<void>(placement.map_of(2, 4, 2)); }, ErrorCode::kInvalidArgument,
               {"p.json", "layer 2", "expert 0", "below 2", "found 2"});
}

TEST(PlacementFileTest, ReadsTensorRtLlmAssignments) {
  const ExpertPlacement placement =
      parse(R"({"num_slots": 5, "initial_global_assignments": {"2": [0,1,2,3,3], "1": [1,0,3,2,1]},
               "layer_updates_per_iter": 0})");
  EXPECT_EQ(ids_of(placement, 1), (Ids{1, 0, 3, 2, 1}));
  EXPECT_EQ(ids_of(placement, 2), (Ids{0, 1, 2, 3, 3}));
}

TEST(PlacementFileTest, GivesUnevenNumbersToTheFirstRanks) {
  const ExpertMap map = parse("[3, 2, 1, 0, 3]").map_of(1, 4, 2);
  EXPECT_EQ(map, ExpertMap::from_slots(4, {{3, 2, 1}, {0, 3}}));
}

TEST(PlacementFileTest, EveryFormatReadsWhatItWrote) {
  SeededRng rng;
  for (const PlacementFormat format :
       {PlacementFormat::kSglang, PlacementFormat::kVllm, PlacementFormat::kTensorRtLlm}) {
    for (int trial = 0; trial < 20; ++trial) {
      std::map<int, Ids> rows;
      for (const PlacedModel::Layer& layer : kModel.layers) {
        Ids& ids = rows[layer.layer] = {0, 1, 2, 3, 0, 2, 1};
        std::shuffle(ids.begin(), ids.end(), rng.engine());
      }
      const ExpertPlacement read = parse(placement_file_text(format, rows, kModel));
      for (const auto& [layer, ids] : rows)
        EXPECT_EQ(ids_of(read, layer), ids) << to_string(format);
    }
  }
}

TEST(PlacementFileTest, WritesTensorRtLlmsYamlWithWholeNumbersAsKeys) {
  EXPECT_EQ(placement_file_text(PlacementFormat::kTensorRtLlm,
                                {{1, {0, 1, 2, 3}}, {2, {3, 2, 1, 0}}}, kModel, /*yaml=*/true),
            "num_slots: 4\ninitial_global_assignments:\n  1: [0, 1, 2, 3]\n  2: [3, 2, 1, 0]\n"
            "layer_updates_per_iter: 0\n");
}

TEST(PlacementFileTest, RefusesToWriteMapsThatDoNotFit) {
  constexpr auto code = ErrorCode::kInvalidArgument;
  const auto write = [](const std::map<int, Ids>& rows, bool yaml = false) {
    return placement_file_text(PlacementFormat::kVllm, rows, kModel, yaml);
  };
  expect_error([&] { write({{1, {0, 1, 2, 3}}}); }, code, {"2 layers", "found 1"});
  expect_error([&] { write({{1, {0, 1, 2, 3}}, {5, {0, 1, 2, 3}}}); }, code, {"layer 2"});
  expect_error(
      [&] {
        write({{1, {0, 1, 2, 3}}, {2, {0, 1, 2, 3, 0}}});
      },
      code, {"layer 2", "expected 4", "found 5"});
  expect_error([&] { write({{1, {0, 1, 2, 3}}, {2, {0, 1, 2, 3}}}, true); }, code, {"YAML"});
}

struct BadFile {
  const char* text;
  std::initializer_list<std::string_view> message;
};

TEST(PlacementFileTest, RefusesWhatIsNoPlacementOfTheModel) {
  const BadFile files[] = {
      {"", {"p.json"}},
      {"{}", {"physical_to_logical_map", "expert_to_ep_rank"}},
      {"3", {"expected a list"}},
      {"[]", {"rows"}},
      {R"({"physical_to_logical_map": [0,1,2,3]})", {"3 layers", "2 MoE layers", "found 4"}},
      {R"({"physical_to_logical_map": 7})", {"rows"}},
      {"[[0,1,2,3]]", {"found 1"}},
      {"[0,1,2]", {"layer 1", "at least 4", "found 3"}},
      {"[0,1,2,2]", {"layer 1", "logical expert 3 has no copy"}},
      {"[0,1,2,4]", {"element 3", "below 4", "found 4"}},
      {"[0,1,2,-1]", {"element 3", "found -1"}},
      {"[0,1,2,3.0]", {"element 3", "found 3.0"}},
      {"[0,1,2,\"3\"]", {"element 3"}},
      {"[0,1,2,18446744073709551615]", {"element 3"}},
      {"[[0,1,2,3],[0,1,2,3,0]]", {"layer 2 has 5", "layer 1 has 4"}},
      {"[[0,1,2,3],7]", {"layer 2", "number"}},
      {R"({"expert_to_ep_rank": [0,1,0,1,0]})", {"exactly 4", "found 5"}},
      {R"({"expert_to_ep_rank": [0,1,0,-2]})", {"an EP rank", "-2"}},
      {R"({"initial_global_assignments": {"1": [0,1,2,3]}})", {"layer 2 is missing"}},
      {R"({"initial_global_assignments": {"0": [0,1,2,3]}})", {"'0' is not a MoE layer"}},
      {R"({"initial_global_assignments": {"x": [0,1,2,3]}})", {"'x'"}},
      {R"({"initial_global_assignments": []})", {"object"}},
      {R"({"num_slots": 8, "initial_global_assignments": {"1": [0,1,2,3], "2": [0,1,2,3]}})",
       {"num_slots is 8", "4 slots"}},
      {R"({"expert_to_ep_rank": [0], "expert_to_ep_rank": [0]})", {"duplicate key"}},
  };
  for (const BadFile& file : files) {
    SCOPED_TRACE(file.text);
    expect_error([&] { parse(file.text); }, ErrorCode::kFormat, file.message);
  }
}

// Any cut of a right file is noticed or means the same.
TEST(PlacementFileTest, RefusesEveryTruncatedFile) {
  const std::string text =
      R"({"num_slots": 4, "initial_global_assignments": {"2": [0,1,2,3], "1": [1,0,3,2]}})";
  for (size_t length = 0; length < text.size(); ++length) {
    EXPECT_THROW(parse(std::string_view(text).substr(0, length)), Error) << length;
  }
}

TEST(PlacementFileTest, NamesTheFileThatCannotBeRead) {
  expect_error([] { read_placement_file("/nonexistent/p.json", kModel); }, ErrorCode::kIo,
               {"/nonexistent/p.json"});
}

TEST(ExpertCountsFileTest, ReadsAndAddsUpJsonLines) {
  const ExpertCounts counts = parse_expert_counts(
      "{\"event\":\"note\",\"message\":\"x\"}\n"
      "{\"event\":\"layer\",\"layer\":3,\"tokens_per_expert\":[1,2],\"forward_ms\":0.1}\n"
      "\n"
      "{\"event\":\"layer\",\"layer\":1,\"tokens_per_expert\":[0,0]}\r\n"
      "{\"event\":\"layer\",\"layer\":3,\"tokens_per_expert\":[10,20],"
      "\"tokens_per_rank\":[20,13],\"rebalances\":2,\"bytes_moved\":99}",
      "load");
  EXPECT_EQ(counts, (ExpertCounts{{1, {.tokens_per_expert = {0, 0}}},
                                  {3,
                                   {.tokens_per_expert = {11, 22},
                                    .tokens_per_rank = {20, 13},
                                    .rebalances = 2,
                                    .bytes_moved = 99}}}));
}

TEST(ExpertCountsFileTest, ReadsSglangCountsAndPlainRows) {
  const ExpertCounts expected = {{1, {.tokens_per_expert = {5, 6}}},
                                 {2, {.tokens_per_expert = {7, 0}}}};
  EXPECT_EQ(parse_expert_counts(R"({"logical_count": [[0,0],[5,6],[7.0,0]]})", "load"), expected);
  EXPECT_EQ(parse_expert_counts("[[0,0],\n[5,6],\n[7,0]]", "load"), expected);
  EXPECT_EQ(parse_expert_counts(R"({"logical_count": [[[0,0],[2,6],[7,0]], [[0,0],[3,0],[0,0]]]})",
                                "load"),
            expected);
}

TEST(ExpertCountsFileTest, RefusesWhatCountsNothing) {
  const BadFile files[] = {
      {"", {"load"}},
      {"[]", {"rows"}},
      {R"({"event":"note"})", {"no layer"}},
      {"[[0,0]]", {"no layer"}},
      {R"({"logical_count": [[1,-1]]})", {"layer 0, expert 1", "-1"}},
      {R"({"logical_count": [[1,1e300]]})", {"layer 0, expert 1"}},
      {R"({"logical_count": [[[1,2]],[[1]]]})", {"1 experts", "2"}},
      {"{\"layer\":1,\"tokens_per_expert\":[1]}\n{\"layer\":1,\"tokens_per_expert\":[1,2]}",
       {"load:2", "2 experts"}},
      {"{\"layer\":1,\"tokens_per_expert\":[1]}\n{\"layer\":", {"load:2"}},
      {R"({"layer":-1,"tokens_per_expert":[1]})", {"load:1", "-1"}},
      {R"({"layer":1,"tokens_per_expert":7})", {"load:1", "list of counts"}},
  };
  for (const BadFile& file : files) {
    SCOPED_TRACE(file.text);
    expect_error([&] { parse_expert_counts(file.text, "load"); }, ErrorCode::kFormat, file.message);
  }
}

}  // namespace
}  // namespace gantry::test
