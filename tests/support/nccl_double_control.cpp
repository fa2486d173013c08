#include "tests/support/nccl_double_control.h"

#include <dlfcn.h>

#include <stdexcept>

namespace gantry::test {
namespace {

template <typename Function>
Function* find(const char* name) {
  void* handle = dlopen(nccl_double_path().c_str(), RTLD_NOW | RTLD_LOCAL);
  void* address = handle == nullptr ? nullptr : dlsym(handle, name);
  if (address == nullptr) throw std::runtime_error(std::string("nccl_double: no ") + name);
  return reinterpret_cast<Function*>(address);
}

}  // namespace

std::string nccl_double_path() { return GANTRY_TEST_NCCL_DOUBLE; }

void set_nccl_double_plan(const char* plan) {
  find<decltype(nccl_double_set_plan)>("nccl_double_set_plan")(plan);
}

NcclDoubleCounts nccl_double_counts() {
  NcclDoubleCounts counts;
  find<decltype(nccl_double_get_counts)>("nccl_double_get_counts")(&counts);
  return counts;
}

}  // namespace gantry::test
