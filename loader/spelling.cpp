#include "loader/spelling.h"

#include <algorithm>
#include <optional>

#include "kernels/base/check.h"
#include "loader/expected_tensors.h"
#include "loader/tensor_map.h"

namespace gantry {
namespace {

struct NamedChoice {
  std::string_view name;
  SpellingChoice choice;
};
constexpr std::array<NamedChoice, 5> kChoices = {{{"original", SpellingChoice::kOriginal},
                                                  {"per-expert", SpellingChoice::kPerExpert},
                                                  {"fused", SpellingChoice::kFused},
                                                  {"transformers", SpellingChoice::kTransformers},
                                                  {"vllm", SpellingChoice::kVllm}}};

bool wants_stacked(const FamilySpec& family, SpellingChoice choice) {
  switch (choice) {
    case SpellingChoice::kPerExpert:
      return false;
    case SpellingChoice::kFused:
    case SpellingChoice::kTransformers:
      return true;
    case SpellingChoice::kOriginal:
      return is_stacked(usual_stacking(family));
    case SpellingChoice::kVllm:
      return family.vllm_reads_stacked;
  }
  return false;
}

bool gives(const TensorPattern& pattern, Part part) {
  const std::vector<Part> parts = provided_parts(pattern.part);
  return std::find(parts.begin(), parts.end(), part) != parts.end();
}

}  // namespace

std::string_view to_string(SpellingChoice choice) noexcept {
  for (const NamedChoice& named : kChoices) {
    if (named.choice == choice) return named.name;
  }
  return "unknown";
}

SpellingChoice parse_spelling(std::string_view name) {
  std::string known;
  for (const NamedChoice& named : kChoices) {
    if (named.name == name) return named.choice;
    known += fmt::format("{}{}", known.empty() ? "" : ", ", named.name);
  }
  fail(ErrorCode::kInvalidArgument, "expected a spelling ({}), found '{}'", known, name);
}

Spelling::Spelling(const FamilySpec& family, SpellingChoice choice, bool gated) : family_(&family) {
  const bool stacked = wants_stacked(family, choice);
  // One by one, the experts have the files' own names; together, those of Transformers 5.
  transformers_ = choice == SpellingChoice::kTransformers || choice == SpellingChoice::kFused;
  block_ = transformers_ ? family.transformers_block : 0;
  for (const Part part : kExpertParts) {
    if (part == Part::kW3 && !gated) continue;
    int& found = experts_[expert_part_index(part)];
    for (int p = 0; p < static_cast<int>(family.tensors.size()); ++p) {
      const TensorPattern& candidate = pattern(p);
      if (!gives(candidate, part) || is_stacked(candidate.stacking) != stacked) continue;
      const bool better =
          found < 0 || (transformers_ && candidate.transformers && !pattern(found).transformers);
      if (better) found = p;
    }
    GANTRY_CHECK(found >= 0, ErrorCode::kUnsupported,
                 "family {} has no {} spelling of its experts' {}", family.name,
                 stacked ? "stacked" : "per-expert", to_string(part));
  }
}

int Spelling::expert_pattern(Part part) const { return experts_[expert_part_index(part)]; }

bool Spelling::has_single(Part part) const {
  return std::any_of(family_->tensors.begin(), family_->tensors.end(),
                     [&](const TensorPattern& candidate) {
                       return candidate.part == part && candidate.stacking == Stacking::kSingle;
                     });
}

TensorRef Spelling::respell_single(TensorRef ref) const {
  std::optional<int> found;
  for (int p = 0; p < static_cast<int>(family_->tensors.size()); ++p) {
    const TensorPattern& candidate = pattern(p);
    // The part itself: shared experts' gate and up are neither joined nor taken apart.
    if (candidate.part != ref.part || candidate.stacking != Stacking::kSingle) continue;
    if (candidate.transformers && !transformers_) continue;
    if (!found || (candidate.transformers && !pattern(*found).transformers)) found = p;
  }
  if (found) ref.pattern = *found;
  ref.block = block_;
  // Names without a block have one spelling: index 0 (see NameMap).
  if (pattern(ref.pattern).name.find("{b}") == std::string_view::npos) ref.block = 0;
  return ref;
}

std::string Spelling::respell_other(std::string_view name, std::string_view stem) const {
  std::string result(name);
  if (!name.starts_with(stem)) return result;
  const size_t dot = name.find('.', stem.size());
  if (dot == std::string_view::npos) return result;
  const std::string_view rest = name.substr(dot + 1);
  for (const std::string_view block : family_->blocks) {
    if (rest.starts_with(block) && rest.size() > block.size() && rest[block.size()] == '.') {
      result.replace(dot + 1, block.size(), family_->blocks[static_cast<size_t>(block_)]);
      return result;
    }
  }
  return result;
}

std::string ForeignNames::operator()(const std::string& name) const {
  const ParsedName parsed = from->parse(name);
  if (parsed.name_class != NameClass::kMoe || config->find_layer(parsed.ref.layer) == nullptr)
    return other ? other(name) : name;
  GANTRY_CHECK(spelling->has_single(parsed.ref.part) && !parsed.ref.base_layer &&
                   parsed.ref.kind != TensorKind::kEncoded,
               ErrorCode::kUnsupported, "{}: {} has no name for it", name, spelling->family().name);
  return to->format(spelling->respell_single(parsed.ref));
}

}  // namespace gantry
