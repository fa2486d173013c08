#include "loader/family_spec.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cstdlib>
#include <map>
#include <tuple>
#include <utility>

#include "kernels/base/check.h"

// Names are taken apart at their dots and compared segment by segment with the family's patterns,
// which are compiled once. The same patterns print names.

namespace gantry {
namespace {

std::vector<std::string_view> split(std::string_view text) {
  std::vector<std::string_view> segments;
  size_t begin = 0;
  for (size_t dot = text.find('.'); dot != std::string_view::npos; dot = text.find('.', begin)) {
    segments.push_back(text.substr(begin, dot - begin));
    begin = dot + 1;
  }
  segments.push_back(text.substr(begin));
  return segments;
}

std::string substitute_block(std::string_view pattern, std::string_view block) {
  std::string text(pattern);
  const size_t at = text.find("{b}");
  if (at != std::string::npos) text.replace(at, 3, block);
  return text;
}

// Further tensors of quantized matrices, as modules name them ("<module>.<suffix>").
constexpr std::array<std::string_view, 24> kEncodedSuffixes = {
    "qweight",
    "qzeros",
    "scales",
    "g_idx",
    "weight_packed",
    "weight_scale",
    "weight_scale_inv",
    "weight_scale_2",
    "weight_shape",
    "weight_zero_point",
    "weight_g_idx",
    "weight_global_scale",
    "input_scale",
    "input_zero_point",
    "pre_quant_scale",
    "input_global_scale",
    "weight.absmax",
    "weight.quant_map",
    "weight.nested_absmax",
    "weight.nested_quant_map",
    "SCB",
    "weight_format",
    "weight.quant_state.bitsandbytes__nf4",
    "weight.quant_state.bitsandbytes__fp4"};

// The same where experts are parameters ("<parameter>_<word>").
struct ParameterSuffix {
  std::string_view word;
  std::string_view suffix;
};
constexpr std::array<ParameterSuffix, 3> kParameterSuffixes = {
    {{"_scale_inv", "weight_scale_inv"}, {"_blocks", "blocks"}, {"_scales", "scales"}}};

// Sets kind and suffix of a module's tensor, "weight" or what stands behind the module's name.
bool read_module_kind(std::string_view rest, TensorRef& ref) {
  if (rest == "weight" || rest == "bias") {
    ref.kind = rest == "weight" ? TensorKind::kWeight : TensorKind::kBias;
    return true;
  }
  if (std::find(kEncodedSuffixes.begin(), kEncodedSuffixes.end(), rest) == kEncodedSuffixes.end()) {
    return false;
  }
  ref.kind = TensorKind::kEncoded;
  ref.suffix = rest;
  return true;
}

// The same for a parameter; `segment` is the pattern's last segment.
bool read_parameter_kind(std::string_view found, std::string_view segment, Naming naming,
                         TensorRef& ref) {
  if (found == segment) return true;
  if (naming != Naming::kParameter || !found.starts_with(segment)) return false;
  const std::string_view rest = found.substr(segment.size());
  if (rest == "_bias") {
    ref.kind = TensorKind::kBias;
    return true;
  }
  for (const auto& [word, suffix] : kParameterSuffixes) {
    if (rest != word) continue;
    ref.kind = TensorKind::kEncoded;
    ref.suffix = suffix;
    return true;
  }
  return false;
}

// Modules that hold MoE layers of their own which are not part of the decoder stack.
bool is_auxiliary_segment(std::string_view segment) {
  constexpr std::array<std::string_view, 4> kNames = {"mtp", "mtp_layers", "mtp_block", "nextn"};
  return std::find(kNames.begin(), kNames.end(), segment) != kNames.end();
}

bool names_an_expert(const std::vector<std::string_view>& segments) {
  return std::any_of(segments.begin(), segments.end(), [](std::string_view s) {
    return s.ends_with("_exps") || (s.find("expert") != std::string_view::npos &&
                                    s.find("shared") == std::string_view::npos);
  });
}

}  // namespace

std::string_view to_string(Part part) noexcept {
  switch (part) {
    case Part::kW1:
      return "w1";
    case Part::kW3:
      return "w3";
    case Part::kW2:
      return "w2";
    case Part::kW13:
      return "w13";
    case Part::kRouter:
      return "router";
    case Part::kCorrectionBias:
      return "correction_bias";
    case Part::kPerExpertScale:
      return "per_expert_scale";
    case Part::kRouterScale:
      return "router_scale";
    case Part::kHashTable:
      return "hash_table";
    case Part::kSharedW1:
      return "shared_w1";
    case Part::kSharedW3:
      return "shared_w3";
    case Part::kSharedW2:
      return "shared_w2";
    case Part::kSharedW13:
      return "shared_w13";
    case Part::kSharedGate:
      return "shared_gate";
    case Part::kLatentIn:
      return "latent_in";
    case Part::kLatentOut:
      return "latent_out";
    case Part::kOutputNorm:
      return "output_norm";
    case Part::kOther:
      return "other";
  }
  return "unknown";
}

std::string_view to_string(TensorKind kind) noexcept {
  switch (kind) {
    case TensorKind::kWeight:
      return "weight";
    case TensorKind::kBias:
      return "bias";
    case TensorKind::kEncoded:
      return "encoded";
  }
  return "unknown";
}

std::optional<int> parse_index(std::string_view text) noexcept {
  if (text.empty() || text.size() > 6 || (text.size() > 1 && text[0] == '0')) return std::nullopt;
  int value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || text[0] == '-') {
    return std::nullopt;
  }
  return value;
}

bool can_name(Naming naming, std::string_view suffix) noexcept {
  switch (naming) {
    case Naming::kModule:
      return std::find(kEncodedSuffixes.begin(), kEncodedSuffixes.end(), suffix) !=
             kEncodedSuffixes.end();
    case Naming::kParameter:
      return std::any_of(kParameterSuffixes.begin(), kParameterSuffixes.end(),
                         [&](const ParameterSuffix& known) { return known.suffix == suffix; });
    case Naming::kExact:
      break;
  }
  return false;
}

std::string module_name(std::string_view name, const TensorRef& ref) {
  const std::string_view kind =
      ref.kind == TensorKind::kEncoded ? std::string_view(ref.suffix) : to_string(ref.kind);
  if (name.ends_with(kind) && name.size() > kind.size() &&
      name[name.size() - kind.size() - 1] == '.') {
    name.remove_suffix(kind.size() + 1);
  } else if (ref.kind == TensorKind::kEncoded) {
    for (const auto& [word, suffix] : kParameterSuffixes) {
      if (suffix == ref.suffix && name.ends_with(word)) name.remove_suffix(word.size());
    }
  }
  std::string module(name);
  constexpr std::string_view kAdapter = ".base_layer";
  const size_t at = ref.base_layer ? module.find(kAdapter) : std::string::npos;
  if (at != std::string::npos) module.erase(at, kAdapter.size());
  return module;
}

const FamilySpec* find_family(std::string_view model_type) {
  for (const FamilySpec& family : family_specs()) {
    const auto& types = family.model_types;
    if (std::find(types.begin(), types.end(), model_type) != types.end()) return &family;
  }
  return nullptr;
}

NameMap::NameMap(const FamilySpec& family, std::string prefix)
    : family_(&family), prefix_(std::move(prefix)) {
  for (size_t p = 0; p < family.tensors.size(); ++p) {
    const std::string_view name = family.tensors[p].name;
    const size_t num_blocks = name.find("{b}") == std::string_view::npos ? 1 : family.blocks.size();
    for (size_t b = 0; b < num_blocks; ++b) {
      Compiled compiled{{}, static_cast<int>(p), static_cast<int>(b)};
      for (const std::string_view segment : split(name)) {
        compiled.segments.push_back(substitute_block(segment, family.blocks[b]));
      }
      compiled_.push_back(std::move(compiled));
    }
  }
  for (const std::string_view scope : family.scope) {
    for (const std::string_view block : family.blocks) {
      std::string text = substitute_block(scope, block);
      if (std::find(scopes_.begin(), scopes_.end(), text) == scopes_.end()) {
        scopes_.push_back(std::move(text));
      }
    }
  }
}

std::optional<TensorRef> NameMap::match(const std::vector<std::string_view>& segments) const {
  for (const Compiled& candidate : compiled_) {
    const TensorPattern& pattern = family_->tensors[static_cast<size_t>(candidate.pattern)];
    const size_t length = candidate.segments.size();
    const bool is_module = pattern.naming == Naming::kModule;
    if (is_module ? segments.size() <= length : segments.size() != length) continue;

    TensorRef ref;
    ref.part = pattern.part;
    ref.pattern = candidate.pattern;
    ref.block = candidate.block;
    bool same = true;
    for (size_t i = 0; i < length && same; ++i) {
      const bool is_last = i + 1 == length;
      if (candidate.segments[i] == "{e}") {
        const std::optional<int> id = parse_index(segments[i]);
        same = id.has_value();
        ref.expert = id.value_or(-1);
      } else if (is_last && pattern.naming != Naming::kModule) {
        same = read_parameter_kind(segments[i], candidate.segments[i], pattern.naming, ref);
      } else {
        same = segments[i] == candidate.segments[i];
      }
    }
    if (same && is_module) {
      // All segments are views into one name, so what follows the module is one piece of it.
      const char* rest = segments[length].data();
      const char* end = segments.back().data() + segments.back().size();
      same = read_module_kind({rest, static_cast<size_t>(end - rest)}, ref);
    }
    if (same) return ref;
  }
  return std::nullopt;
}

std::vector<std::string> NameMap::find_prefixes(const FamilySpec& family,
                                                std::span<const std::string> names) {
  const NameMap any(family, "");
  std::map<std::string, size_t> counts;
  for (const std::string& name : names) {
    std::vector<std::string_view> segments = split(name);
    for (size_t i = 0; i + 2 < segments.size(); ++i) {
      if (is_auxiliary_segment(segments[i])) break;
      if (segments[i] != family.container || !parse_index(segments[i + 1])) continue;
      std::vector<std::string_view> rest(segments.begin() + static_cast<ptrdiff_t>(i) + 2,
                                         segments.end());
      std::erase(rest, std::string_view("base_layer"));
      const std::optional<TensorRef> ref = any.match(rest);
      const bool is_expert = ref && (ref->part == Part::kW1 || ref->part == Part::kW2 ||
                                     ref->part == Part::kW3 || ref->part == Part::kW13);
      if (!is_expert) continue;
      std::string prefix;
      for (size_t k = 0; k < i; ++k)
        prefix.append(segments[k]).append(".");
      ++counts[prefix];
      break;
    }
  }
  std::vector<std::pair<std::string, size_t>> order(counts.begin(), counts.end());
  std::stable_sort(order.begin(), order.end(),
                   [](const auto& a, const auto& b) { return a.second > b.second; });
  std::vector<std::string> prefixes;
  prefixes.reserve(order.size());
  for (auto& [prefix, count] : order)
    prefixes.push_back(std::move(prefix));
  return prefixes;
}

ParsedName NameMap::parse(std::string_view name) const {
  ParsedName parsed;
  std::vector<std::string_view> all = split(name);
  const bool auxiliary = std::any_of(all.begin(), all.end(), is_auxiliary_segment);
  const auto outside = [&] {
    if (!names_an_expert(all)) return NameClass::kModel;
    return auxiliary ? NameClass::kAuxiliary : NameClass::kUnknown;
  };

  const std::string stem = prefix_ + std::string(family_->container) + ".";
  if (!name.starts_with(stem)) {
    parsed.name_class = outside();
    return parsed;
  }
  std::vector<std::string_view> segments = split(name.substr(stem.size()));
  const std::optional<int> layer = parse_index(segments[0]);
  if (!layer || segments.size() < 2) {
    parsed.name_class = outside();
    return parsed;
  }
  segments.erase(segments.begin());
  const bool base_layer = std::erase(segments, std::string_view("base_layer")) > 0;

  if (std::optional<TensorRef> ref = match(segments)) {
    ref->layer = *layer;
    ref->base_layer = base_layer;
    parsed.ref = *ref;
    parsed.name_class = NameClass::kMoe;
    return parsed;
  }
  parsed.ref.layer = *layer;
  const std::string_view in_layer =
      name.substr(static_cast<size_t>(segments[0].data() - name.data()));
  const bool in_scope = std::any_of(scopes_.begin(), scopes_.end(), [&](const std::string& scope) {
    return in_layer.starts_with(scope);
  });
  // A dense layer keeps its MLP under the block's own name: only the caller, who knows which layers
  // are MoE, can tell. It asks with ref.layer set.
  parsed.name_class =
      in_scope || names_an_expert(segments) ? NameClass::kUnknown : NameClass::kModel;
  return parsed;
}

std::string NameMap::format(const TensorRef& ref) const {
  GANTRY_CHECK(ref.pattern >= 0 && ref.pattern < static_cast<int>(family_->tensors.size()),
               ErrorCode::kInvalidArgument,
               "NameMap::format: pattern {} of family {} does not exist", ref.pattern,
               family_->name);
  const TensorPattern& pattern = family_->tensors[static_cast<size_t>(ref.pattern)];
  std::string name =
      prefix_ + std::string(family_->container) + "." + std::to_string(ref.layer) + "." +
      substitute_block(pattern.name, family_->blocks[static_cast<size_t>(ref.block)]);
  const size_t at = name.find("{e}");
  if (at != std::string::npos) name.replace(at, 3, std::to_string(ref.expert));
  switch (pattern.naming) {
    case Naming::kModule:
      if (ref.base_layer) name += ".base_layer";
      name += '.';
      name += ref.kind == TensorKind::kEncoded ? std::string_view(ref.suffix) : to_string(ref.kind);
      break;
    case Naming::kParameter:
      if (ref.base_layer) name.insert(name.rfind('.'), ".base_layer");
      if (ref.kind == TensorKind::kBias) name += "_bias";
      for (const auto& [word, suffix] : kParameterSuffixes) {
        if (ref.kind == TensorKind::kEncoded && suffix == ref.suffix) name += word;
      }
      break;
    case Naming::kExact:
      break;
  }
  return name;
}

std::string NameMap::expected_name(int layer, int expert, Part part, TensorKind kind,
                                   std::optional<int> like_pattern) const {
  // The spelling that the rest of the checkpoint uses, if we know a pattern of it: the same
  // stacking, then gate and up apart unless they are fused there too, then the nearest row of the
  // table (the patterns of one spelling stand together).
  const auto& tensors = family_->tensors;
  const TensorPattern* like = like_pattern ? &tensors[static_cast<size_t>(*like_pattern)] : nullptr;
  const bool is_gate_or_up = part == Part::kW1 || part == Part::kW3;
  int best = -1;
  std::tuple<bool, bool, int> best_rank;
  for (int p = 0; p < static_cast<int>(tensors.size()); ++p) {
    const TensorPattern& pattern = tensors[static_cast<size_t>(p)];
    if (pattern.part != part && !(is_gate_or_up && pattern.part == Part::kW13)) continue;
    const std::tuple rank(like != nullptr && pattern.stacking != like->stacking,
                          pattern.part != part && !(like != nullptr && like->part == Part::kW13),
                          like_pattern ? std::abs(p - *like_pattern) : p);
    if (best < 0 || rank < best_rank) {
      best = p;
      best_rank = rank;
    }
  }
  if (best < 0) return std::string(to_string(part));
  TensorRef ref;
  ref.layer = layer;
  ref.expert = expert;
  ref.part = tensors[static_cast<size_t>(best)].part;
  ref.kind = kind;
  ref.pattern = best;
  return format(ref);
}

}  // namespace gantry
