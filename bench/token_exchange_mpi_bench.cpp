// Latency of dispatch and combine next to plain MPI_Alltoallv of the same bytes:
//   mpirun -np 4 token_exchange_mpi_bench [tokens a rank ...]

#include <mpi.h>

#include <cstdio>
#include <exception>

#include "bench/support/exchange_latency.h"
#include "parallel/mpi_session.h"

namespace {

// MPI's own, blocking, on MPI_COMM_WORLD.
class MpiAllToAll {
 public:
  void operator()(std::span<const std::byte> send, std::span<const int64_t> send_bytes,
                  std::span<std::byte> receive, std::span<const int64_t> receive_bytes) {
    set(send_bytes, send_counts_, send_offsets_);
    set(receive_bytes, receive_counts_, receive_offsets_);
    MPI_Alltoallv(send.data(), send_counts_.data(), send_offsets_.data(), MPI_BYTE, receive.data(),
                  receive_counts_.data(), receive_offsets_.data(), MPI_BYTE, MPI_COMM_WORLD);
  }

 private:
  static void set(std::span<const int64_t> bytes, std::vector<int>& counts,
                  std::vector<int>& offsets) {
    counts.assign(bytes.begin(), bytes.end());
    offsets.assign(1, 0);
    for (const int count : counts)
      offsets.push_back(offsets.back() + count);
  }

  std::vector<int> send_counts_;
  std::vector<int> send_offsets_;
  std::vector<int> receive_counts_;
  std::vector<int> receive_offsets_;
};

}  // namespace

int main(int argc, char** argv) {
  try {
    const gantry::MpiSession session;
    const auto world = session.make_world({});
    const auto run = [&](int /*num_ranks*/, const auto& body) { body(*world); };
    gantry::bench::print_exchange_latencies(
        run, {session.size()}, gantry::bench::parse_token_counts(argc, argv, {1, 16, 256, 1024}),
        MpiAllToAll(), "MPI_Alltoallv");
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    gantry::MpiSession::abort_job(1);
  }
  return 0;
}
