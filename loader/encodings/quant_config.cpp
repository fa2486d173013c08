// Looks up what a config says about one module: names first, then patterns, then what it says about
// all linear layers.

#include "loader/encodings/quant_config.h"

#include <algorithm>

#include "kernels/base/check.h"
#include "loader/encodings/quant_rules.h"
#include "loader/untrusted_name.h"

namespace gantry {

int QuantConfig::Rules::find_rule(std::string_view module) const {
  for (std::string_view name = module; !by_name.empty() && !name.empty();) {
    const auto found = by_name.find(name);
    if (found != by_name.end()) return found->second;
    const size_t dot = name.rfind('.');
    name = name.substr(0, dot == std::string_view::npos ? 0 : dot);
  }
  const PatternRule* chosen = nullptr;
  for (const PatternRule& rule : by_pattern) {
    const bool may_differ = chosen == nullptr || rule.scheme != chosen->scheme;
    if (!may_differ || !rule.pattern.matches(module)) continue;
    if (first_pattern_counts) return rule.scheme;
    // Whether a matrix is quantized, its tensors say, so "left out" yields to any scheme.
    if (chosen == nullptr || chosen->scheme == kLeftOut) {
      chosen = &rule;
    } else if (rule.scheme != kLeftOut) {
      const Scheme& first = schemes[static_cast<size_t>(chosen->scheme)];
      const Scheme& second = schemes[static_cast<size_t>(rule.scheme)];
      GANTRY_CHECK(first.problem.empty() && second.problem.empty() &&
                       reads_weights_alike(first.scheme, second.scheme),
                   ErrorCode::kFormat, "{}: module {} is meant by {} and by {}, which differ",
                   source, quote_name(module), quote_name(chosen->text), quote_name(rule.text));
    }
  }
  return chosen == nullptr ? kNothing : chosen->scheme;
}

const QuantScheme* QuantConfig::scheme_for(std::string_view module) const {
  int index = rules_->find_rule(module);
  if (index < 0) index = rules_->fallback;
  if (index < 0) return nullptr;
  const Rules::Scheme& found = rules_->schemes[static_cast<size_t>(index)];
  GANTRY_CHECK(found.problem.empty(), ErrorCode::kUnsupported, "module {}: {}", quote_name(module),
               found.problem);
  return &found.scheme;
}

bool QuantConfig::leaves_out(std::string_view module) const {
  const int rule = rules_->find_rule(module);
  if (rule == Rules::kLeftOut || (rule < 0 && rules_->fallback < 0)) return true;
  for (size_t begin = 0; !rules_->left_out_names.empty();) {
    for (size_t end = begin; end != std::string_view::npos;) {
      end = module.find('.', end + 1);
      if (rules_->left_out_names.contains(module.substr(begin, end - begin))) return true;
    }
    begin = module.find('.', begin);
    if (begin++ == std::string_view::npos) break;
  }
  const auto& patterns = rules_->left_out_patterns;
  return std::any_of(patterns.begin(), patterns.end(),
                     [&](const ModulePattern& pattern) { return pattern.matches(module); });
}

std::string QuantConfig::methods() const {
  std::vector<std::string> methods;
  for (const Rules::Scheme& scheme : rules_->schemes) {
    const std::string& method = scheme.scheme.method;
    if (!scheme.problem.empty() ||
        std::find(methods.begin(), methods.end(), method) != methods.end())
      continue;
    methods.push_back(method);
  }
  return fmt::format("{}", fmt::join(methods, " + "));
}

const std::string& QuantConfig::source() const noexcept { return rules_->source; }
const std::vector<std::string>& QuantConfig::notes() const noexcept { return rules_->notes; }

}  // namespace gantry
