// Embeds Gantry as a serving engine would, from installed headers and libraries alone: it owns the
// log sink, the threads and the workspaces, routes tokens itself, runs ragged batches through two
// layers from two threads, and reloads the weights in between.
//   consumer CHECKPOINT_WITH_REFERENCE [BATCHES]
#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "allocation_count.h"
#include "kernels/base/error.h"
#include "kernels/base/log.h"
#include "runtime/fused_moe_layer.h"
#include "runtime/moe_model.h"
#include "runtime/reference.h"
#include "worker_pool.h"

namespace {

constexpr int64_t kMaxTokens = 64;

// What a forward of the reference's tokens gave: the ids and weights of each, and their outputs.
struct Layer {
  std::unique_ptr<gantry::FusedMoeLayer> moe;
  int64_t hidden_size = 0;
  int64_t top_k = 0;
  std::vector<float> x;         // [T, H] of the reference
  std::vector<float> expected;  // [T, H]
  std::vector<int32_t> ids;     // [T, K]
  std::vector<float> weights;   // [T, K]
};

class Engine {
 public:
  explicit Engine(const std::string& directory) : model_(directory, /*names_only=*/false) {
    if (!model_.report().ok()) throw std::runtime_error("the checkpoint has findings");
    const auto reference =
        gantry::read_reference(directory + "/moe_io.safetensors", model_.config());
    for (const auto& [number, block] : reference.blocks) {
      if (layers_.size() == 2) break;
      add_layer(number, block);
    }
    if (layers_.size() != 2) throw std::runtime_error("two MoE layers are needed");
  }

  [[nodiscard]] const std::vector<Layer>& layers() const { return layers_; }

  // Loads all weights again and swaps them in, while other threads may be running the layers.
  void reload() {
    for (size_t i = 0; i < layers_.size(); ++i)
      layers_[i].moe->replace_weights(load(numbers_[i]));
  }

 private:
  gantry::MoeLayerWeights load(int number) {
    const auto& spec = *model_.config().find_layer(number);
    const gantry::WeightLoader loader(model_.checkpoint(), model_.config(), model_.tensors());
    gantry::LoadOptions options;
    options.threads = threads(pool_);
    gantry::LoadStats stats;
    auto weights = loader.load_layer(
        number, {}, gantry::ExpertMap::create(spec.num_experts, 1, gantry::Placement::kLinear),
        options, model_.report(), stats);
    if (!model_.report().ok()) throw std::runtime_error("the load has findings");
    return weights;
  }

  void add_layer(int number, const gantry::ReferenceBlock& block) {
    const auto& spec = *model_.config().find_layer(number);
    gantry::FusedMoeOptions options;
    // Every call brings its own threads through this executor.
    options.threads = {.count = 2, .executor = [](int64_t tasks, const auto& body) {
                         thread_local WorkerPool pool;
                         pool.run(tasks, body);
                       }};
    options.activations = gantry::ActivationDType::kF32;
    Layer layer;
    layer.moe = std::make_unique<gantry::FusedMoeLayer>(
        load(number), gantry::ExpertMap::create(spec.num_experts, 1, gantry::Placement::kLinear),
        options, nullptr);
    layer.hidden_size = spec.hidden_size;
    layer.top_k = spec.routing.num_slots();
    layer.x = block.input;
    layer.expected = block.output;
    const auto num_tokens = static_cast<int64_t>(block.input.size()) / spec.hidden_size;
    gantry::Workspace workspace = layer.moe->make_workspace(num_tokens);
    std::vector<float> out(block.input.size());
    layer.moe->forward({.hidden_states = layer.x}, workspace, out);
    layer.ids = workspace.last_routing().topk_ids;
    layer.weights = workspace.last_routing().topk_weights;
    numbers_.push_back(number);
    layers_.push_back(std::move(layer));
  }

  static gantry::Threads threads(WorkerPool& pool) {
    return {.count = 2,
            .executor = [&pool](int64_t tasks, const auto& body) { pool.run(tasks, body); }};
  }

  gantry::MoeModel model_;
  WorkerPool pool_;
  std::vector<int> numbers_;
  std::vector<Layer> layers_;
};

// Runs batches of 0 to 64 rows: tokens of the reference, or tokens whose ids are all -1, which get
// nothing. Returns what went wrong.
class Client {
 public:
  Client(const std::vector<Layer>& layers, unsigned seed) : layers_(layers), random_(seed) {
    for (const Layer& layer : layers)
      workspaces_.push_back(layer.moe->make_workspace(kMaxTokens));
  }

  void run_batch(size_t number) {
    const Layer& layer = layers_[number % layers_.size()];
    const auto h = static_cast<size_t>(layer.hidden_size);
    const auto k = static_cast<size_t>(layer.top_k);
    const size_t tokens = layer.x.size() / h;
    const size_t count = random_() % (kMaxTokens + 1);
    std::vector<float> x(count * h);
    std::vector<float> expected(count * h, 0.0F);
    std::vector<int32_t> ids(count * k, -1);
    std::vector<float> weights(count * k, 1.0F);
    for (size_t row = 0; row < count; ++row) {
      const size_t token = random_() % tokens;
      const auto copy = [&](const auto& from, auto& to, size_t width) {
        for (size_t i = 0; i < width; ++i)
          to[row * width + i] = from[token * width + i];
      };
      copy(layer.x, x, h);
      if (random_() % 8 == 0) continue;
      copy(layer.expected, expected, h);
      copy(layer.ids, ids, k);
      copy(layer.weights, weights, k);
    }
    std::vector<float> out(count * h);
    const int64_t before = allocation_count();
    layer.moe->forward({.hidden_states = x, .topk_ids = ids, .topk_weights = weights},
                       workspaces_[number % layers_.size()], out);
    allocations += allocation_count() - before;
    double difference = 0.0;
    double norm = 1e-30;
    for (size_t i = 0; i < out.size(); ++i) {
      difference += std::pow(static_cast<double>(out[i]) - expected[i], 2);
      norm += std::pow(static_cast<double>(expected[i]), 2);
    }
    // NaN counts as wrong.
    if (!(std::sqrt(difference / norm) < 1e-5)) ++wrong;
  }

  int64_t allocations = 0;
  int64_t wrong = 0;

 private:
  const std::vector<Layer>& layers_;
  std::mt19937 random_;
  std::vector<gantry::Workspace> workspaces_;
};

int run(const std::string& directory, size_t batches) {
  Engine engine(directory);
  std::atomic<size_t> done = 0;
  Client first(engine.layers(), 1);
  Client second(engine.layers(), 2);
  const auto body = [&](Client& client) {
    client.run_batch(0);  // warm: a thread's pool is made by its first call
    client.allocations = 0;
    for (size_t i = 0; i < batches / 2; ++i) {
      client.run_batch(i);
      ++done;
    }
  };
  std::thread a([&] { body(first); });
  std::thread b([&] { body(second); });
  while (done < batches / 4)
    std::this_thread::yield();
  engine.reload();
  a.join();
  b.join();
  const int64_t allocations = first.allocations + second.allocations;
  const int64_t wrong = first.wrong + second.wrong;
  std::printf("%zu batches, %lld wrong, %lld allocations in forward\n", done.load(),
              static_cast<long long>(wrong), static_cast<long long>(allocations));
  return wrong == 0 && allocations == 0 ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  std::mutex mutex;
  std::vector<std::string> lines;
  gantry::set_log_sink([&](gantry::LogLevel, std::string_view line) {
    const std::scoped_lock lock(mutex);
    lines.emplace_back(line);
  });
  gantry::set_log_level(gantry::LogLevel::kDebug);
  std::printf("gantry %s on %s\n", GANTRY_PACKAGE_VERSION,
              gantry::to_string(gantry::host_isas()).c_str());
  int result = 1;
  try {
    result = run(argc > 1 ? argv[1] : "", argc > 2 ? std::strtoul(argv[2], nullptr, 10) : 1000);
  } catch (const std::exception& error) {
    std::printf("%s\n", error.what());
  }
  gantry::set_log_sink({});
  std::printf("%zu log lines came to the sink\n", lines.size());
  return lines.empty() ? 1 : result;
}
