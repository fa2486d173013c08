#include <algorithm>
#include <set>
#include <utility>

#include "kernels/base/check.h"
#include "kernels/base/float_convert.h"
#include "loader/encoded_job.h"
#include "loader/encodings/encoded_matrix.h"
#include "runtime/model_diff.h"

// Tensors that stand in no MoE layer. Names are compared without the prefix of the expert tensors
// ("model." or "model.language_model."); a linear layer that one model quantizes is a module whose
// tensors are decoded together.

namespace gantry {
namespace {

constexpr int64_t kChunkElements = int64_t{1} << 20;

// The tensors of one module by suffix: "weight", "bias", "weight_scale" ...
using Module = std::map<std::string, const CheckpointTensor*>;

std::map<std::string, Module> modules_of(const MoeModel& model) {
  std::map<std::string, Module> modules;
  const std::string& prefix = model.tensors().names().prefix();
  for (const auto& [name, tensor] : model.checkpoint().tensors()) {
    if (model.tensors().names().parse(name).name_class == NameClass::kMoe) continue;
    std::string rest = name.starts_with(prefix) ? name.substr(prefix.size()) : name;
    const size_t dot = rest.rfind('.');
    const std::string suffix = dot == std::string::npos ? "" : rest.substr(dot + 1);
    modules[rest.substr(0, dot)][suffix] = &tensor;
  }
  return modules;
}

void read_raw(const MoeModel& model, const CheckpointTensor& tensor, int64_t offset, void* to,
              int64_t bytes) {
  model.checkpoint().files()[static_cast<size_t>(tensor.file)].read(tensor.info.begin + offset, to,
                                                                    bytes);
}

bool is_plain(const CheckpointTensor* tensor) {
  return tensor != nullptr && is_plain_float(tensor->info.dtype) && tensor->info.block_type.empty();
}

std::vector<float> read_piece(const MoeModel& model, const CheckpointTensor& tensor, int64_t first,
                              int64_t count) {
  const int64_t element = size_of(tensor.info.dtype);
  std::vector<uint32_t> raw(static_cast<size_t>((count * element + 3) / 4));
  read_raw(model, tensor, first * element, raw.data(), count * element);
  std::vector<float> values(static_cast<size_t>(count));
  convert_to_f32(raw.data(), tensor.info.dtype, count, values.data());
  return values;
}

class TensorDiffer {
 public:
  TensorDiffer(const MoeModel& a, const MoeModel& b, const DiffSettings& settings)
      : a_(a), b_(b), settings_(settings) {}

  ModelTensorDifference run() {
    const auto modules_a = modules_of(a_);
    const auto modules_b = modules_of(b_);
    for (const auto& [name, module] : modules_a) {
      const auto other = modules_b.find(name);
      if (other == modules_b.end()) {
        list(module, {}, result_.only_in_a);
      } else {
        compare(name, module, other->second);
      }
    }
    for (const auto& [name, module] : modules_b) {
      if (!modules_a.contains(name)) list(module, {}, result_.only_in_b);
    }
    return std::move(result_);
  }

 private:
  static void list(const Module& module, const std::set<std::string>& without,
                   std::vector<std::string>& names) {
    for (const auto& [suffix, tensor] : module) {
      if (!without.contains(suffix)) names.push_back(tensor->info.name);
    }
  }

  void compare(const std::string& name, const Module& a, const Module& b) {
    const auto find = [](const Module& module, const std::string& suffix) {
      const auto found = module.find(suffix);
      return found == module.end() ? nullptr : found->second;
    };
    std::set<std::string> done;
    // One of them quantized: the plain one says what shape the matrix has.
    const bool plain_a = is_plain(find(a, "weight"));
    const bool plain_b = is_plain(find(b, "weight"));
    if (plain_a != plain_b) {
      const bool decoded = compare_decoded(name, plain_a ? a : b, plain_a ? b : a, plain_a);
      // The tensors beside the codes are part of the weight.
      if (decoded) {
        if (a.contains("bias") != b.contains("bias")) list_bias(a, b);
        if (a.contains("bias") && b.contains("bias")) compare_plain(*a.at("bias"), *b.at("bias"));
        return;
      }
      list(a, {}, result_.only_in_a);
      list(b, {}, result_.only_in_b);
      return;
    }
    for (const auto& [suffix, tensor] : a) {
      const CheckpointTensor* other = find(b, suffix);
      if (other == nullptr) continue;
      done.insert(suffix);
      compare_plain(*tensor, *other);
    }
    list(a, done, result_.only_in_a);
    list(b, done, result_.only_in_b);
  }

  void list_bias(const Module& a, const Module& b) {
    auto& names = a.contains("bias") ? result_.only_in_a : result_.only_in_b;
    names.push_back((a.contains("bias") ? a : b).at("bias")->info.name);
  }

  void compare_plain(const CheckpointTensor& a, const CheckpointTensor& b) {
    if (a.info.shape != b.info.shape) {
      result_.not_compared.push_back(fmt::format(
          "{}: {} in A, {} in B", a.info.name, shape_text(a.info.shape), shape_text(b.info.shape)));
      return;
    }
    TensorDifference difference{a.info.name, b.info.name, -1, {}, false};
    const int64_t count = a.info.num_elements();
    if (is_plain(&a) && is_plain(&b)) {
      for (int64_t first = 0; first < count; first += kChunkElements) {
        const int64_t piece = std::min(kChunkElements, count - first);
        difference.values.add(read_piece(a_, a, first, piece), read_piece(b_, b, first, piece));
      }
      difference.too_large = settings_.too_large(difference.values);
    } else if (!same_bytes(a, b)) {
      result_.not_compared.push_back(
          fmt::format("{}: other bytes ({} in A, {} in B), quantized in both", a.info.name,
                      to_string(a.info.dtype), to_string(b.info.dtype)));
      return;
    }
    result_.tensors.push_back(difference);
  }

  [[nodiscard]] bool same_bytes(const CheckpointTensor& a, const CheckpointTensor& b) const {
    const int64_t size = a.info.num_bytes();
    if (a.info.dtype != b.info.dtype || size != b.info.num_bytes()) return false;
    std::vector<std::byte> x;
    std::vector<std::byte> y;
    for (int64_t offset = 0; offset < size; offset += kChunkElements) {
      const int64_t piece = std::min(kChunkElements, size - offset);
      x.resize(static_cast<size_t>(piece));
      y.resize(static_cast<size_t>(piece));
      read_raw(a_, a, offset, x.data(), piece);
      read_raw(b_, b, offset, y.data(), piece);
      if (x != y) return false;
    }
    return true;
  }

  // @param plain_is_a whether the plain one is A's
  // @return false if the config does not say how to read the other, and nothing was compared
  bool compare_decoded(const std::string& name, const Module& plain, const Module& quantized,
                       bool plain_is_a) {
    const MoeModel& plain_model = plain_is_a ? a_ : b_;
    const MoeModel& model = plain_is_a ? b_ : a_;
    const auto weight = plain.find("weight");
    if (weight == plain.end() || weight->second->info.shape.size() != 2) return false;
    const TensorInfo& info = weight->second->info;
    if (!model.config().quant) return false;
    const std::string& prefix = model.tensors().names().prefix();
    const bool prefixed = quantized.begin()->second->info.name.starts_with(prefix);
    try {
      const QuantScheme* scheme = model.config().quant->scheme_for(prefixed ? prefix + name : name);
      if (scheme == nullptr) return false;
      EncodedMatrix matrix{{info.shape[0], info.shape[1]}, {}};
      std::vector<std::vector<uint64_t>> raw;  // aligned for every element type
      for (const auto& [suffix, tensor] : quantized) {
        if (suffix == "bias") continue;
        const int64_t bytes = tensor->info.num_bytes();
        raw.emplace_back(static_cast<size_t>((bytes + 7) / 8));
        read_raw(model, *tensor, 0, raw.back().data(), bytes);
        matrix.tensors.emplace(
            suffix, EncodedTensor{tensor->info.name, tensor->info.dtype, tensor->info.shape,
                                  reinterpret_cast<const std::byte*>(raw.back().data()),
                                  tensor->info.block_type});
      }
      std::vector<float> decoded = decode_matrix(*scheme, matrix);
      fold_input_scale(matrix, decoded);
      const std::vector<float> values =
          read_piece(plain_model, *weight->second, 0, info.num_elements());
      const std::string& other = quantized.begin()->second->info.name;
      TensorDifference difference{
          plain_is_a ? info.name : other, plain_is_a ? other : info.name, -1, {}, false};
      difference.values.add(plain_is_a ? values : decoded, plain_is_a ? decoded : values);
      difference.too_large = settings_.too_large(difference.values);
      result_.tensors.push_back(difference);
    } catch (const Error& error) {
      if (error.code() == ErrorCode::kIo) throw;
      result_.not_compared.push_back(fmt::format("{}: {}", info.name, error.what()));
    }
    return true;
  }

  const MoeModel& a_;
  const MoeModel& b_;
  const DiffSettings& settings_;
  ModelTensorDifference result_;
};

}  // namespace

ModelTensorDifference diff_model_tensors(const MoeModel& a, const MoeModel& b,
                                         const DiffSettings& settings) {
  return TensorDiffer(a, b, settings).run();
}

}  // namespace gantry
