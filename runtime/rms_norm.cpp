#include "runtime/rms_norm.h"

#include <cmath>

namespace gantry {

void rms_norm(std::span<const float> weight, double epsilon, double factor,
              std::span<float> x) noexcept {
  const size_t width = weight.size();
  for (size_t begin = 0; begin < x.size(); begin += width) {
    double squares = 0.0;
    for (size_t i = 0; i < width; ++i) {
      squares += static_cast<double>(x[begin + i]) * x[begin + i];
    }
    const double scale = factor / std::sqrt(squares / static_cast<double>(width) + epsilon);
    for (size_t i = 0; i < width; ++i) {
      x[begin + i] = static_cast<float>(x[begin + i] * scale * weight[i]);
    }
  }
}

}  // namespace gantry
