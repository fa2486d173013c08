#include "tools/diff_report.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/base/check.h"
#include "loader/expected_tensors.h"

namespace gantry::cli {
namespace {

// JSON has no infinity: equal arrays have no SNR to print.
nlohmann::ordered_json number(double value) {
  return std::isfinite(value) ? nlohmann::ordered_json(value) : nlohmann::ordered_json();
}

nlohmann::ordered_json fields_of(const Difference& difference) {
  return {{"rel", number(difference.relative())},
          {"snr_db", number(difference.snr_db())},
          {"max_abs", number(difference.max_abs)},
          {"cosine", number(difference.cosine())},
          {"factor", number(difference.factor())},
          {"elements", difference.count},
          {"equal", difference.equal()}};
}

std::string expert_text(int expert) {
  return expert < 0 ? std::string("shared") : fmt::format("expert {}", expert);
}

bool is_part(const MatrixDifference& matrix, Part part) {
  return matrix.expert >= 0 && matrix.part == part;
}

std::string format_of(const MoeModel& model) {
  if (model.config().quant) return model.config().quant->methods();
  return model.config().declared_dtype ? std::string(to_string(*model.config().declared_dtype))
                                       : std::string("unquantized");
}

}  // namespace

std::string snr_text(const Difference& difference) {
  return difference.equal() ? "equal" : fmt::format("{:.1f} dB", difference.snr_db());
}

std::string limit_text(const DiffSettings& settings) {
  std::vector<std::string> limits;
  if (std::isfinite(settings.max_relative)) {
    limits.push_back(fmt::format("rel {}", settings.max_relative));
  }
  if (std::isfinite(settings.min_snr_db)) {
    limits.push_back(fmt::format("SNR {} dB", settings.min_snr_db));
  }
  if (std::isfinite(settings.max_output_relative)) {
    limits.push_back(fmt::format("output rel {}", settings.max_output_relative));
  }
  return fmt::format("{}", fmt::join(limits, ", "));
}

void DiffPrinter::print_head(const std::string& name_a, const MoeModel& a,
                             const std::string& name_b, const MoeModel& b,
                             const DiffSettings& settings) const {
  const auto describe = [&](std::string_view letter, const std::string& name,
                            const MoeModel& model) {
    output_.text(fmt::format("{}: {}: family {}, {}", letter, name, model.config().family->name,
                             format_of(model)));
  };
  describe("A", name_a, a);
  describe("B", name_b, b);
  output_.event("diff", {{"a", name_a},
                         {"b", name_b},
                         {"max_rel", number(settings.max_relative)},
                         {"min_snr_db", number(settings.min_snr_db)},
                         {"max_output_rel", number(settings.max_output_relative)},
                         {"tokens", settings.num_tokens},
                         {"seed", settings.seed}});
}

void DiffPrinter::print_layer(const LayerDifference& layer) const {
  for (const Part part : kExpertParts) {
    std::vector<const MatrixDifference*> found;
    for (const MatrixDifference& matrix : layer.matrices) {
      if (is_part(matrix, part)) found.push_back(&matrix);
    }
    if (found.empty()) continue;
    std::sort(found.begin(), found.end(), [](const auto* x, const auto* y) {
      return x->weight.relative() > y->weight.relative();
    });
    const Difference total = layer.total(part);
    output_.text(fmt::format(
        "  layer {:<3} {}: rel {:.5f}, SNR {}; experts {} (expert {}) to {} (expert {}), median {}",
        layer.layer, to_string(part), total.relative(), snr_text(total),
        snr_text(found.front()->weight), found.front()->expert, snr_text(found.back()->weight),
        found.back()->expert, snr_text(found[found.size() / 2]->weight)));
  }
  print_experts(layer);
  for (const TensorDifference& tensor : layer.tensors)
    print_tensor(tensor);
  print_origins(layer);
  if (!layer.output) return;
  const OutputDifference& output = *layer.output;
  output_.text(fmt::format("  layer {:<3} output of {} tokens: rel {:.5f}, SNR {}{}", layer.layer,
                           output.num_tokens, output.output.relative(), snr_text(output.output),
                           output.too_large ? "  TOO LARGE" : ""));
  auto fields = fields_of(output.output);
  fields["layer"] = layer.layer;
  fields["tokens"] = output.num_tokens;
  fields["ok"] = !output.too_large;
  output_.event("output", fields);
}

void DiffPrinter::print_experts(const LayerDifference& layer) const {
  size_t lines = 0;
  size_t left_out = 0;
  for (const MatrixDifference& matrix : layer.matrices) {
    auto fields = fields_of(matrix.weight);
    fields["layer"] = matrix.layer;
    fields["expert"] = matrix.expert;
    fields["part"] = to_string(matrix.part);
    fields["a"] = matrix.name_a;
    fields["b"] = matrix.name_b;
    fields["ok"] = !matrix.too_large;
    if (matrix.bias) fields["bias"] = fields_of(*matrix.bias);
    output_.event("matrix", fields);
    if (!settings_.all_experts && !matrix.too_large && matrix.expert >= 0) continue;
    if (!settings_.all_experts && ++lines > settings_.max_lines) {
      ++left_out;
      continue;
    }
    std::string line = fmt::format("  layer {:<3} {} {}: rel {:.5f}, SNR {}", matrix.layer,
                                   expert_text(matrix.expert), to_string(matrix.part),
                                   matrix.weight.relative(), snr_text(matrix.weight));
    if (matrix.bias && !matrix.bias->equal()) {
      line += fmt::format(", bias rel {:.5f}", matrix.bias->relative());
    }
    if (matrix.too_large) {
      line += fmt::format(", cosine {:.3f}  TOO LARGE ({})", matrix.weight.cosine(), matrix.name_b);
    }
    output_.text(line);
  }
  if (left_out > 0) output_.text(fmt::format("  ... and {} more", left_out));
}

void DiffPrinter::print_origins(const LayerDifference& layer) const {
  size_t lines = 0;
  for (const MatrixOrigin& origin : layer.origins) {
    nlohmann::ordered_json fields = {{"layer", origin.layer},
                                     {"expert", origin.expert},
                                     {"part", to_string(origin.part)},
                                     {"found", origin.found}};
    std::string line = fmt::format("  layer {:<3} expert {} of B ({}): ", origin.layer,
                                   origin.expert, to_string(origin.part));
    if (!origin.found) {
      line += "like no expert of A";
    } else {
      fields["from_expert"] = origin.from_expert;
      fields["from_part"] = to_string(origin.from_part);
      fields["rel"] = number(origin.weight.relative());
      fields["factor"] = number(origin.weight.factor());
      const bool itself = origin.from_expert == origin.expert && origin.from_part == origin.part;
      if (itself) {
        line += "comes from the same expert of A";
      } else if (origin.from_part == origin.part) {
        line += fmt::format("matches expert {} of A", origin.from_expert);
      } else {
        line += fmt::format("matches {} of expert {} of A", to_string(origin.from_part),
                            origin.from_expert);
      }
      line += fmt::format(" (rel {:.5f}", origin.weight.relative());
      // Twice or half the weights: a scale that was lost or applied twice.
      if (std::abs(origin.weight.factor() - 1.0) > 0.1) {
        line += fmt::format(", {:.4g} times as large", origin.weight.factor());
      }
      line += ")";
    }
    output_.event("origin", fields);
    if (++lines <= settings_.max_lines) output_.text(line);
  }
  if (lines > settings_.max_lines) {
    output_.text(fmt::format("  ... and {} more", lines - settings_.max_lines));
  }
}

void DiffPrinter::print_tensor(const TensorDifference& tensor) const {
  auto fields = fields_of(tensor.values);
  fields["a"] = tensor.name_a;
  fields["b"] = tensor.name_b;
  if (tensor.layer >= 0) fields["layer"] = tensor.layer;
  fields["ok"] = !tensor.too_large;
  output_.event("tensor", fields);
  if (tensor.values.equal()) return;
  output_.text(fmt::format("  {}: rel {:.5f}, SNR {}{}", tensor.name_a, tensor.values.relative(),
                           snr_text(tensor.values), tensor.too_large ? "  TOO LARGE" : ""));
}

void DiffPrinter::print_list(std::string_view what, std::string_view event,
                             const std::vector<std::string>& names) const {
  for (const std::string& name : names)
    output_.event(event, {{"name", name}});
  if (names.empty()) return;
  output_.text(fmt::format("{} tensor(s) {}:", names.size(), what));
  const size_t shown = std::min(names.size(), settings_.max_lines);
  for (size_t i = 0; i < shown; ++i)
    output_.text(fmt::format("  {}", names[i]));
  if (shown < names.size()) output_.text(fmt::format("  ... and {} more", names.size() - shown));
}

void DiffPrinter::print_rest(const ModelTensorDifference& rest) const {
  const auto equal =
      std::count_if(rest.tensors.begin(), rest.tensors.end(),
                    [](const TensorDifference& tensor) { return tensor.values.equal(); });
  output_.text(fmt::format("outside of MoE layers: {} tensor(s) compared, {} of them equal",
                           rest.tensors.size(), equal));
  for (const TensorDifference& tensor : rest.tensors)
    print_tensor(tensor);
  print_list("only in A", "only_in_a", rest.only_in_a);
  print_list("only in B", "only_in_b", rest.only_in_b);
  print_list("not compared", "not_compared", rest.not_compared);
}

}  // namespace gantry::cli
