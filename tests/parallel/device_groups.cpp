#include "tests/parallel/device_groups.h"

#include "tests/parallel/rank_groups.h"
#include "tests/support/nccl_double_control.h"
#include "tests/support/test_device.h"

namespace gantry::test {

void PrintTo(Transport transport, std::ostream* out) {
  *out << (transport == Transport::kNccl ? "Nccl" : "HostStaged");
}

NcclOptions nccl_test_options() {
  const bool emulated = test_device()->attributes().memory_bytes == 0;
  return {.waits = {.timeout = std::chrono::seconds(30)},
          .library = emulated ? nccl_double_path() : ""};
}

void run_device_ranks(Transport transport, int num_ranks,
                      const std::function<void(DeviceCommunicator& world)>& body) {
  const auto device = test_device();
  run_ranks(num_ranks, [&](Communicator& host) {
    const NcclOptions options = nccl_test_options();
    const auto world = transport == Transport::kNccl
                           ? make_nccl_communicator(device, bootstrap_over(host), options)
                           : make_host_staged_communicator(host, device, options.waits);
    body(*world);
  });
}

}  // namespace gantry::test
