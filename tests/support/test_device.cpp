#include "tests/support/test_device.h"

#include <cstdlib>

#include "kernels/base/error.h"

namespace gantry::test {
namespace {

struct Opened {
  std::shared_ptr<Device> device;
  std::string reason;
};

const Opened& opened() {
  static const Opened kOpened = [] {
    Opened result;
    const char* name = std::getenv("GANTRY_TEST_DEVICE");
    try {
      result.device = open_device(name == nullptr ? "emulated" : name);
    } catch (const Error& error) {
      if (error.code() != ErrorCode::kCuda) throw;
      result.reason = error.what();
    }
    return result;
  }();
  return kOpened;
}

}  // namespace

std::shared_ptr<Device> test_device() { return opened().device; }
std::string no_device_reason() { return opened().reason; }

}  // namespace gantry::test
