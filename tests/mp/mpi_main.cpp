// main() of tests whose ranks are processes: every rank runs every test, rank 0 prints, the others
// only what fails, and all end with the same exit code.

#include <gtest/gtest.h>
#include <mpi.h>

#include <cstdio>
#include <exception>

#include "parallel/mpi_session.h"

namespace {

class FailurePrinter : public testing::EmptyTestEventListener {
 public:
  explicit FailurePrinter(int rank) : rank_(rank) {}

  void OnTestPartResult(const testing::TestPartResult& result) override {
    if (!result.failed()) return;
    const testing::TestInfo* test = testing::UnitTest::GetInstance()->current_test_info();
    std::fprintf(stderr, "rank %d: %s.%s: %s:%d: %s\n", rank_,
                 test != nullptr ? test->test_suite_name() : "",
                 test != nullptr ? test->name() : "", result.file_name() ? result.file_name() : "",
                 result.line_number(), result.message());
  }

 private:
  int rank_;
};

}  // namespace

int main(int argc, char** argv) {
  try {
    const gantry::MpiSession session;
    testing::InitGoogleTest(&argc, argv);
    if (session.rank() != 0) {
      auto& listeners = testing::UnitTest::GetInstance()->listeners();
      delete listeners.Release(listeners.default_result_printer());
      listeners.Append(new FailurePrinter(session.rank()));
    }
    int failed = RUN_ALL_TESTS();
    MPI_Allreduce(MPI_IN_PLACE, &failed, 1, MPI_INT, MPI_MAX, MPI_COMM_WORLD);
    return failed;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    gantry::MpiSession::abort_job(1);
  }
}
