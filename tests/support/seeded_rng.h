#pragma once

#include <cstdint>
#include <random>
#include <vector>

namespace gantry::test {

/// Random numbers whose seed is printed when a test fails. GANTRY_SEED sets the seed of every
/// generator that was not given one; otherwise it is fixed, so that CI is repeatable.
class SeededRng {
 public:
  SeededRng();
  explicit SeededRng(uint64_t seed) : engine_(seed), seed_(seed) {}

  [[nodiscard]] uint64_t seed() const { return seed_; }
  /// Uniform in [low, high].
  int64_t integer(int64_t low, int64_t high);
  float uniform(float low, float high);
  float normal(float mean = 0.0F, float deviation = 1.0F);
  std::vector<float> normals(size_t count, float deviation = 1.0F);
  std::mt19937_64& engine() { return engine_; }

 private:
  std::mt19937_64 engine_;
  uint64_t seed_;
};

}  // namespace gantry::test
