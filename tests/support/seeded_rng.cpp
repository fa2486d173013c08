#include "tests/support/seeded_rng.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <string>

namespace gantry::test {
namespace {

uint64_t default_seed() {
  const char* text = std::getenv("GANTRY_SEED");
  return text == nullptr ? 20261121 : std::strtoull(text, nullptr, 10);
}

}  // namespace

SeededRng::SeededRng() : SeededRng(default_seed()) {
  testing::Test::RecordProperty("seed", std::to_string(seed_));
}

int64_t SeededRng::integer(int64_t low, int64_t high) {
  return std::uniform_int_distribution<int64_t>(low, high)(engine_);
}

float SeededRng::uniform(float low, float high) {
  return std::uniform_real_distribution<float>(low, high)(engine_);
}

float SeededRng::normal(float mean, float deviation) {
  return std::normal_distribution<float>(mean, deviation)(engine_);
}

std::vector<float> SeededRng::normals(size_t count, float deviation) {
  std::vector<float> values(count);
  for (float& value : values)
    value = normal(0.0F, deviation);
  return values;
}

}  // namespace gantry::test
