// Which NCCL is loaded, and which is refused.

#include "parallel/nccl_library.h"

#include <gtest/gtest.h>

#include <cstdlib>

#include "tests/support/expect_error.h"
#include "tests/support/nccl_double_control.h"

namespace gantry::test {
namespace {

class PlanOfThisThread {
 public:
  explicit PlanOfThisThread(const char* plan) { set_nccl_double_plan(plan); }
  PlanOfThisThread(const PlanOfThisThread&) = delete;
  PlanOfThisThread& operator=(const PlanOfThisThread&) = delete;
  ~PlanOfThisThread() { set_nccl_double_plan(""); }
};

TEST(NcclLibraryTest, SaysItsVersionAndWhereItCameFrom) {
  const auto library = NcclLibrary::open(nccl_double_path());
  EXPECT_EQ(library->version(), 22809);
  EXPECT_EQ(library->description(), "NCCL 2.28.9 (" + nccl_double_path() + ")");
}

TEST(NcclLibraryTest, TheEnvironmentNamesTheFile) {
  ASSERT_EQ(setenv("GANTRY_NCCL_LIBRARY", nccl_double_path().c_str(), 1), 0);
  const auto library = NcclLibrary::open();
  EXPECT_NE(library->description().find(nccl_double_path()), std::string::npos);
  ASSERT_EQ(setenv("GANTRY_NCCL_LIBRARY", "/no/such/libnccl.so", 1), 0);
  expect_error([] { (void)NcclLibrary::open(); }, ErrorCode::kUnsupported,
               {"/no/such/libnccl.so", "cannot be loaded", "GANTRY_NCCL_LIBRARY"});
  ASSERT_EQ(unsetenv("GANTRY_NCCL_LIBRARY"), 0);
}

TEST(NcclLibraryTest, RefusesWhatIsNotNccl) {
  expect_error([] { (void)NcclLibrary::open("libm.so.6"); }, ErrorCode::kUnsupported,
               {"libm.so.6", "ncclGetVersion"});
}

TEST(NcclLibraryTest, RefusesVersionsWithoutNonBlockingCommunicators) {
  const PlanOfThisThread plan("version=21304");
  expect_error([] { (void)NcclLibrary::open(nccl_double_path()); }, ErrorCode::kUnsupported,
               {"2.13.4", "expected at least 2.14.0"});
}

TEST(NcclLibraryTest, ReadsVersionsOfAllTimes) {
  EXPECT_EQ(nccl_version_text(22809), "2.28.9");
  EXPECT_EQ(nccl_version_text(23004), "2.30.4");
  EXPECT_EQ(nccl_version_text(2708), "2.7.8");
}

// The library itself, where this machine has it: all functions are there, no GPU is needed to ask.
TEST(NcclLibraryTest, ReadsTheRealLibrary) {
  try {
    const auto library = NcclLibrary::open("libnccl.so.2");
    EXPECT_GE(library->version(), nccl::kFirstNonBlockingVersion);
  } catch (const Error& error) {
    if (std::string_view(error.what()).find("cannot be loaded") == std::string_view::npos) throw;
    GTEST_SKIP() << error.what();
  }
}

}  // namespace
}  // namespace gantry::test
