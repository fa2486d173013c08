#include "loader/family_spec.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "tests/support/seeded_rng.h"

namespace gantry::test {
namespace {

using Names = std::vector<std::string>;

const FamilySpec& family_of(std::string_view model_type) {
  const FamilySpec* family = find_family(model_type);
  if (family == nullptr) ADD_FAILURE() << "no family serves " << model_type;
  return family == nullptr ? family_specs()[0] : *family;
}

/// Every ref that the family's rows can name, at layer 3 and expert 17.
std::vector<TensorRef> all_refs(const FamilySpec& family) {
  std::vector<TensorRef> refs;
  for (size_t p = 0; p < family.tensors.size(); ++p) {
    const TensorPattern& pattern = family.tensors[p];
    const bool has_block = pattern.name.find("{b}") != std::string_view::npos;
    const bool exact = pattern.naming == Naming::kExact;
    for (size_t b = 0; b < (has_block ? family.blocks.size() : 1); ++b) {
      for (const TensorKind kind : {TensorKind::kWeight, TensorKind::kBias}) {
        for (const bool base_layer : {false, true}) {
          if (exact && (kind == TensorKind::kBias || base_layer)) continue;
          TensorRef ref;
          ref.layer = 3;
          ref.expert = pattern.name.find("{e}") == std::string_view::npos ? -1 : 17;
          ref.part = pattern.part;
          ref.kind = kind;
          ref.pattern = static_cast<int>(p);
          ref.block = static_cast<int>(b);
          ref.base_layer = base_layer;
          refs.push_back(ref);
        }
      }
    }
  }
  return refs;
}

std::string without_base_layer(std::string name) {
  const std::string infix = ".base_layer.";
  for (size_t at = name.find(infix); at != std::string::npos; at = name.find(infix)) {
    name.erase(at, infix.size() - 1);
  }
  return name;
}

class FamilyTest : public testing::TestWithParam<const FamilySpec*> {
 protected:
  const FamilySpec& family = *GetParam();
};

TEST_P(FamilyTest, ParsesEveryNameThatItFormats) {
  for (const char* prefix : {"model.", "language_model.model.", "model.language_model.", ""}) {
    const NameMap names(family, prefix);
    for (const TensorRef& ref : all_refs(family)) {
      const std::string name = names.format(ref);
      const ParsedName parsed = names.parse(name);
      ASSERT_EQ(parsed.name_class, NameClass::kMoe) << name;
      if (parsed.ref == ref) continue;
      // Two rows with one name: the first speaks for both. FamilySpecTest lists where that is
      // meant.
      EXPECT_LT(parsed.ref.pattern, ref.pattern) << name;
      EXPECT_EQ(without_base_layer(names.format(parsed.ref)), without_base_layer(name));
      EXPECT_EQ(std::pair(parsed.ref.layer, parsed.ref.expert), std::pair(ref.layer, ref.expert));
    }
  }
}

TEST_P(FamilyTest, DoesNotReadNamesOfAnotherPrefix) {
  const NameMap names(family, "model.");
  const NameMap other(family, "other.");
  for (const TensorRef& ref : all_refs(family)) {
    EXPECT_NE(names.parse(other.format(ref)).name_class, NameClass::kMoe) << other.format(ref);
  }
}

TEST_P(FamilyTest, FindsThePrefixOfItsExperts) {
  for (const char* prefix : {"model.", "language_model.model.", "model.language_model.", ""}) {
    const NameMap map(family, prefix);
    Names names = {"lm_head.weight", std::string(prefix) + "embed_tokens.weight"};
    for (const TensorRef& ref : all_refs(family))
      names.push_back(map.format(ref));
    EXPECT_EQ(NameMap::find_prefixes(family, names), Names{prefix});
  }
}

TEST_P(FamilyTest, CallsExpertsOfMtpModulesAuxiliary) {
  const NameMap names(family, "model.");
  for (const char* module : {"mtp.", "mtp_layers.", "model.mtp_block.", "nextn."}) {
    const NameMap mtp(family, module);
    for (const TensorRef& ref : all_refs(family)) {
      const std::string name = mtp.format(ref);
      const NameClass found = names.parse(name).name_class;
      EXPECT_TRUE(found == NameClass::kAuxiliary || found == NameClass::kModel) << name;
      EXPECT_TRUE(ref.expert < 0 || found == NameClass::kAuxiliary) << name;
    }
    Names one = {mtp.format(all_refs(family)[0])};
    EXPECT_TRUE(NameMap::find_prefixes(family, one).empty()) << one[0];
  }
}

TEST_P(FamilyTest, CallsAnUnreadTensorOfTheBlockUnknown) {
  const NameMap names(family, "model.");
  for (const TensorRef& ref : all_refs(family)) {
    const std::string name = names.format(ref) + "_scale_other";
    const ParsedName parsed = names.parse(name);
    const bool in_scope = parsed.name_class == NameClass::kUnknown;
    // What stands beside the block (norms) is the model's.
    const bool beside = ref.part == Part::kOutputNorm;
    EXPECT_TRUE(in_scope || beside) << name;
    EXPECT_EQ(parsed.ref.layer, 3) << name;
  }
}

TEST_P(FamilyTest, ParsesTheTensorsOfQuantizedExperts) {
  const NameMap names(family, "model.");
  for (const TensorRef& plain : all_refs(family)) {
    if (plain.kind != TensorKind::kWeight) continue;
    const Naming naming = family.tensors[static_cast<size_t>(plain.pattern)].naming;
    if (naming == Naming::kExact) continue;
    const bool is_module = naming == Naming::kModule;
    for (const char* suffix : {"weight_scale_inv", is_module ? "qweight" : "blocks",
                               is_module ? "weight.absmax" : "scales"}) {
      TensorRef ref = plain;
      ref.kind = TensorKind::kEncoded;
      ref.suffix = suffix;
      const ParsedName parsed = names.parse(names.format(ref));
      ASSERT_EQ(parsed.name_class, NameClass::kMoe) << names.format(ref);
      EXPECT_EQ(parsed.ref.kind, TensorKind::kEncoded);
      EXPECT_EQ(parsed.ref.suffix, suffix);
      EXPECT_EQ(parsed.ref.expert, ref.expert);
    }
  }
}

TEST_P(FamilyTest, NeverMistakesAMutatedNameForAnotherTensor) {
  SeededRng rng(7);
  const NameMap names(family, "model.");
  Names valid;
  for (const TensorRef& ref : all_refs(family))
    valid.push_back(names.format(ref));
  const auto below = [&](size_t n) {
    return static_cast<size_t>(rng.integer(0, static_cast<int64_t>(n) - 1));
  };
  const std::string letters("0123456789.{}e-+ _abw\0\xff", 23);
  for (int i = 0; i < 4000; ++i) {
    std::string name = valid[below(valid.size())];
    for (size_t changes = 1 + below(3); changes > 0; --changes) {
      const size_t at = below(name.size());
      if (below(3) == 0) {
        name.erase(at, 1 + below(4));
      } else if (below(2) == 0) {
        name.insert(at, 1, letters[below(letters.size())]);
      } else {
        name[at] = letters[below(letters.size())];
      }
      if (name.empty()) name.push_back('.');
    }
    const ParsedName parsed = names.parse(name);
    if (parsed.name_class != NameClass::kMoe) continue;
    // Whatever is accepted means what it says: printing the meaning gives the name back.
    TensorRef plain = parsed.ref;
    plain.base_layer = false;
    EXPECT_EQ(names.format(plain), without_base_layer(name)) << "seed " << rng.seed();
  }
}

TEST_P(FamilyTest, NamesWhatIsMissingInItsOwnSpelling) {
  const NameMap names(family, "model.");
  for (size_t p = 0; p < family.tensors.size(); ++p) {
    const TensorPattern& pattern = family.tensors[p];
    const std::string name = names.expected_name(5, 2, pattern.part, TensorKind::kWeight, p);
    const ParsedName parsed = names.parse(name);
    ASSERT_EQ(parsed.name_class, NameClass::kMoe) << name;
    EXPECT_EQ(parsed.ref.layer, 5);
    EXPECT_EQ(parsed.ref.part, pattern.part) << name;
    EXPECT_EQ(family.tensors[static_cast<size_t>(parsed.ref.pattern)].name, pattern.name);
  }
}

INSTANTIATE_TEST_SUITE_P(AllFamilies, FamilyTest, testing::ValuesIn([] {
                           std::vector<const FamilySpec*> all;
                           for (const FamilySpec& family : family_specs())
                             all.push_back(&family);
                           return all;
                         }()),
                         [](const auto& test) { return std::string(test.param->name); });

TEST(FamilySpecTest, GivesEachModelTypeToOneFamily) {
  std::set<std::string_view> seen;
  for (const FamilySpec& family : family_specs()) {
    EXPECT_FALSE(family.model_types.empty()) << family.name;
    for (const std::string_view type : family.model_types) {
      EXPECT_TRUE(seen.insert(type).second) << type << " is served by two rows";
      EXPECT_EQ(find_family(type), &family);
    }
  }
  EXPECT_EQ(find_family("llama"), nullptr);
  EXPECT_EQ(find_family(""), nullptr);
}

TEST(FamilySpecTest, HasAReaderRouterAndAllExpertPartsInEveryRow) {
  for (const FamilySpec& family : family_specs()) {
    EXPECT_NE(family.read, nullptr) << family.name;
    std::set<Part> parts;
    for (const TensorPattern& pattern : family.tensors)
      parts.insert(pattern.part);
    EXPECT_TRUE(parts.contains(Part::kRouter)) << family.name;
    EXPECT_TRUE(parts.contains(Part::kW2)) << family.name;
    EXPECT_TRUE(parts.contains(Part::kW1) || parts.contains(Part::kW13)) << family.name;
  }
}

TEST(FamilySpecTest, SharesANameBetweenTwoRowsOnlyWhereListed) {
  std::set<std::string> shared;
  for (const FamilySpec& family : family_specs()) {
    const NameMap names(family, "model.");
    for (const TensorRef& ref : all_refs(family)) {
      const TensorRef found = names.parse(names.format(ref)).ref;
      if (found.pattern == ref.pattern) continue;
      shared.insert(std::string(family.name) + " " +
                    std::string(family.tensors[static_cast<size_t>(ref.pattern)].name) + " " +
                    std::string(to_string(ref.kind)));
    }
  }
  EXPECT_EQ(shared, (std::set<std::string>{
                        // gate.bias is the correction bias of this family, not the router's.
                        "deepseek_v4 {b}.gate bias",
                        // Two orientations under one name; TensorMap tells them by shape.
                        "qwen3_vl_moe {b}.experts.gate_up_proj weight",
                        "qwen3_vl_moe {b}.experts.gate_up_proj bias",
                        "qwen3_vl_moe {b}.experts.down_proj weight",
                        "qwen3_vl_moe {b}.experts.down_proj bias"}));
}

TEST(ParseIndexTest, ReadsCanonicalDecimals) {
  EXPECT_EQ(parse_index("0"), 0);
  EXPECT_EQ(parse_index("7"), 7);
  EXPECT_EQ(parse_index("10"), 10);
  EXPECT_EQ(parse_index("999999"), 999999);
}

TEST(ParseIndexTest, RefusesEverythingElse) {
  for (const std::string_view text :
       {"", "00", "01", "+1", "-1", "-0", "-", " 1", "1 ", "1.0", "1e3", "0x1", "1a", "a",
        "1000000", "9999999", "99999999999999999999", "\xd9\xa3"}) {
    EXPECT_EQ(parse_index(text), std::nullopt) << "'" << text << "'";
  }
  EXPECT_EQ(parse_index(std::string_view("1\0", 2)), std::nullopt);
}

TEST(NameMapTest, DoesNotTakeIdsThatAreNotCanonical) {
  const NameMap names(family_of("qwen3_moe"), "model.");
  for (const char* name : {"model.layers.03.mlp.experts.1.up_proj.weight",
                           "model.layers.3.mlp.experts.01.up_proj.weight",
                           "model.layers.3.mlp.experts.-1.up_proj.weight",
                           "model.layers.+3.mlp.experts.1.up_proj.weight",
                           "model.layers.3.mlp.experts..up_proj.weight",
                           "model.layers.3.mlp.experts.1000000.up_proj.weight",
                           "model.layers.3.mlp.experts.1.up_proj.weight.",
                           "model.layers.3.mlp.experts.1.up_proj.weight.weight"}) {
    EXPECT_EQ(names.parse(name).name_class, NameClass::kUnknown) << name;
  }
}

TEST(NameMapTest, LeavesTheRestOfTheModelAlone) {
  const NameMap names(family_of("qwen3_moe"), "model.");
  for (const char* name :
       {"", ".", "..", "model", "model.", "model.layers.", "model.layers.1", "model.layers.1.",
        "model.norm.weight", "lm_head.weight", "model.layers.1.self_attn.q_proj.weight",
        "model.layers.x.self_attn.q_proj.weight", "model.layers.1.mlpx.weight",
        "model.visual.blocks.0.mlp.fc1.weight"}) {
    EXPECT_EQ(names.parse(name).name_class, NameClass::kModel) << name;
  }
}

TEST(NameMapTest, SaysTheLayerOfADenseMlpAndThatItIsNoExpert) {
  const NameMap names(family_of("deepseek_v3"), "model.");
  const ParsedName parsed = names.parse("model.layers.0.mlp.gate_proj.weight");
  // Only the caller knows that layer 0 is dense: the name is the block's, but no row reads it.
  EXPECT_EQ(parsed.name_class, NameClass::kUnknown);
  EXPECT_EQ(parsed.ref.layer, 0);
  EXPECT_EQ(parsed.ref.expert, -1);
  EXPECT_EQ(parsed.ref.part, Part::kOther);
}

TEST(NameMapTest, TakesTheAdaptersInfixAnywhereInALayer) {
  const NameMap names(family_of("qwen3_moe"), "model.");
  const ParsedName parsed = names.parse("model.layers.2.mlp.experts.4.base_layer.w.weight");
  EXPECT_EQ(parsed.name_class, NameClass::kUnknown);
  const ParsedName expert = names.parse("model.layers.2.mlp.experts.4.down_proj.base_layer.weight");
  EXPECT_EQ(expert.name_class, NameClass::kMoe);
  EXPECT_TRUE(expert.ref.base_layer);
  EXPECT_EQ(expert.ref.expert, 4);
  EXPECT_EQ(expert.ref.part, Part::kW2);
}

TEST(NameMapTest, OrdersPrefixesByTheirNumberOfExperts) {
  const FamilySpec& family = family_of("qwen3_moe");
  const Names names = {"talker.model.layers.0.mlp.experts.0.up_proj.weight",
                       "thinker.model.layers.0.mlp.experts.0.up_proj.weight",
                       "thinker.model.layers.0.mlp.experts.1.up_proj.weight",
                       "mtp.layers.0.mlp.experts.1.up_proj.weight",
                       "other.layers.0.mlp.gate.weight",
                       "layers",
                       "layers.0",
                       ""};
  EXPECT_EQ(NameMap::find_prefixes(family, names), (Names{"thinker.model.", "talker.model."}));
  EXPECT_TRUE(NameMap::find_prefixes(family, Names{}).empty());
}

TEST(NameMapTest, NamesAnExpertOutsideTheStackUnknown) {
  const NameMap names(family_of("qwen3_moe"), "model.");
  EXPECT_EQ(names.parse("layers.0.mlp.experts.0.up_proj.weight").name_class, NameClass::kUnknown);
  EXPECT_EQ(names.parse("model.layers.x.mlp.experts.0.up_proj.weight").name_class,
            NameClass::kUnknown);
}

}  // namespace
}  // namespace gantry::test
