#include <utility>

#include "kernels/base/check.h"
#include "parallel/device_communicator.h"

// Device memory moved by a communicator of host memory: out through pinned memory, over, and in.

namespace gantry {
namespace {

class HostStagedCommunicator final : public DeviceCommunicator {
 public:
  HostStagedCommunicator(Communicator& host, std::shared_ptr<Device> device,
                         const CommunicatorOptions& options)
      : DeviceCommunicator(std::move(device), options), host_(&host) {}

  [[nodiscard]] int rank() const noexcept override { return host_->rank(); }
  [[nodiscard]] int size() const noexcept override { return host_->size(); }
  [[nodiscard]] std::string description() const override { return "staged in host memory"; }
  [[nodiscard]] bool waits() const noexcept override { return true; }

 private:
  void exchange(std::span<const SendPart> sends, std::span<const ReceivePart> receives,
                StreamHandle stream) override {
    size_t bytes = 0;
    for (const SendPart& part : sends)
      bytes += part.data.size();
    for (const ReceivePart& part : receives)
      bytes += part.data.size();
    std::byte* next = reserve(bytes);
    host_sends_.clear();
    for (const SendPart& part : sends) {
      device()->copy_out(next, part.data.data(), part.data.size(), stream);
      host_sends_.push_back({part.peer, {next, part.data.size()}});
      next += part.data.size();
    }
    host_receives_.clear();
    for (const ReceivePart& part : receives) {
      host_receives_.push_back({part.peer, {next, part.data.size()}});
      next += part.data.size();
    }
    wait(stream);
    host_->send_receive(host_sends_, host_receives_);
    for (size_t i = 0; i < receives.size(); ++i) {
      device()->copy_in(receives[i].data.data(), host_receives_[i].data.data(),
                        receives[i].data.size(), stream);
    }
    wait(stream);  // the pinned memory is the next operation's, on whichever stream
  }

  bool all_reduce_natively(std::span<float> data, StreamHandle stream) override {
    const size_t bytes = data.size_bytes();
    auto* values = reinterpret_cast<float*>(reserve(bytes));
    device()->copy_out(values, data.data(), bytes, stream);
    wait(stream);
    host_->all_reduce_sum_native({values, data.size()});
    device()->copy_in(data.data(), values, bytes, stream);
    wait(stream);
    return true;
  }

  void wake_all(const char* reason, ErrorCode code) noexcept override {
    host_->abort(reason, code);
  }
  void check_alive() override { host_->check_alive(); }
  [[noreturn]] void fail_group(ErrorCode code, const std::string& message) override {
    host_->abort(message.c_str(), code);
    fail_with(code, message);
  }

  std::byte* reserve(size_t bytes) {
    if (pinned_ == nullptr || pinned_->size() < bytes) {
      pinned_.reset();
      pinned_ = std::make_unique<PinnedBuffer>(device(), bytes > 0 ? bytes : 1);
    }
    return pinned_->data();
  }

  Communicator* host_;
  std::unique_ptr<PinnedBuffer> pinned_;
  std::vector<SendPart> host_sends_;
  std::vector<ReceivePart> host_receives_;
};

}  // namespace

std::unique_ptr<DeviceCommunicator> make_host_staged_communicator(
    Communicator& host, std::shared_ptr<Device> device, const CommunicatorOptions& options) {
  return std::make_unique<HostStagedCommunicator>(host, std::move(device), options);
}

}  // namespace gantry
