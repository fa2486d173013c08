// Ranks that fail or disagree, whatever carries their bytes: every rank gets an error with the
// code of the cause, none waits for ever (the test would time out).

#include <gtest/gtest.h>

#include <functional>
#include <ostream>
#include <string>
#include <vector>

#include "parallel/communicator.h"
#include "tests/parallel/rank_groups.h"
#include "tests/support/expect_error.h"

namespace gantry::test {
namespace {

using Bytes = std::vector<std::byte>;
using Sizes = std::vector<int64_t>;

std::vector<int> sizes_above_one() {
  std::vector<int> sizes = group_sizes();
  std::erase(sizes, 1);
  return sizes;
}

struct Mistake {
  const char* name;
  std::function<void(Communicator& world, bool errs)> collective;
};

void PrintTo(const Mistake& tested, std::ostream* out) { *out << tested.name; }

// Equal parts of `bytes` for every rank.
Sizes each(const Communicator& world, int64_t bytes) {
  return Sizes(static_cast<size_t>(world.size()), bytes);
}

Bytes room(const Communicator& world, int64_t bytes) {
  return Bytes(static_cast<size_t>(world.size() * bytes));
}

void gather(Communicator& world, int64_t own_bytes, int64_t expected_bytes) {
  Bytes received = room(world, expected_bytes);
  world.all_gather(Bytes(static_cast<size_t>(own_bytes)), received, each(world, expected_bytes));
}

void exchange(Communicator& world, int64_t sent, int64_t expected) {
  Bytes received = room(world, expected);
  world.all_to_all(room(world, sent), each(world, sent), received, each(world, expected));
}

void broadcast(Communicator& world, int64_t bytes, int root) {
  Bytes data(static_cast<size_t>(bytes));
  world.broadcast(data, root);
}

void reduce(Communicator& world, int64_t count) {
  std::vector<float> data(static_cast<size_t>(count));
  world.all_reduce_sum(data);
}

// To the next rank in two parts of these sizes, from the previous one in two of 8.
void send_two_parts(Communicator& world, size_t first, size_t second) {
  const Bytes sent(first + second);
  Bytes received(16);
  const int next = (world.rank() + 1) % world.size();
  const int previous = (world.rank() + world.size() - 1) % world.size();
  const std::vector<SendPart> sends = {{next, std::span(sent).first(first)},
                                       {next, std::span(sent).subspan(first)}};
  const std::vector<ReceivePart> receives = {{previous, std::span(received).first(8)},
                                             {previous, std::span(received).last(8)}};
  world.send_receive(sends, receives);
}

const std::vector<Mistake> kMistakes = {
    {"GatherOwnSize", [](Communicator& w, bool errs) { gather(w, errs ? 5 : 4, 4); }},
    {"GatherOtherSizes",
     [](Communicator& w, bool errs) { errs ? gather(w, 5, 5) : gather(w, 4, 4); }},
    {"GatherOtherLargeSizes",
     [](Communicator& w, bool errs) { errs ? gather(w, 50000, 50000) : gather(w, 40000, 40000); }},
    {"GatherTooFewSizes",
     [](Communicator& w, bool errs) {
       Bytes received = room(w, 4);
       Sizes sizes = each(w, 4);
       if (errs) sizes.pop_back();
       w.all_gather(Bytes(4), received, sizes);
     }},
    {"BroadcastSize", [](Communicator& w, bool errs) { broadcast(w, errs ? 9 : 8, 0); }},
    {"BroadcastFromNowhere",
     [](Communicator& w, bool errs) { broadcast(w, 8, errs ? w.size() : 0); }},
    {"BroadcastFromTwoRoots", [](Communicator& w, bool errs) { broadcast(w, 8, errs ? 1 : 0); }},
    {"ReduceSize", [](Communicator& w, bool errs) { reduce(w, errs ? 7 : 8); }},
    {"ReduceLargeSize", [](Communicator& w, bool errs) { reduce(w, errs ? 100000 : 100008); }},
    {"AllToAllExpectsMore", [](Communicator& w, bool errs) { exchange(w, 2, errs ? 3 : 2); }},
    {"AllToAllSendsMore", [](Communicator& w, bool errs) { exchange(w, errs ? 3 : 2, 2); }},
    {"PartSizes",
     [](Communicator& w, bool errs) { send_two_parts(w, errs ? 9 : 8, errs ? 9 : 8); }},
    {"PartToNobody",
     [](Communicator& w, bool errs) {
       const Bytes data(1);
       const SendPart part{w.size(), data};
       w.send_receive({&part, errs ? 1U : 0U}, {});
     }},
    {"ToItselfAlone",
     [](Communicator& w, bool errs) {
       const Bytes data(1);
       const SendPart part{w.rank(), data};
       w.send_receive({&part, errs ? 1U : 0U}, {});
     }},
    {"ReduceInsteadOfGather",
     [](Communicator& w, bool errs) { errs ? reduce(w, 1) : gather(w, 4, 4); }},
    {"BarrierInsteadOfExchange",
     [](Communicator& w, bool errs) { errs ? w.barrier() : exchange(w, 0, 0); }},
};

class MistakeTest : public testing::TestWithParam<std::tuple<int, Mistake>> {};

TEST_P(MistakeTest, IsAnErrorOnEveryRank) {
  const auto& [num_ranks, mistake] = GetParam();
  run_ranks(num_ranks, [&](Communicator& world) {
    const bool errs = world.rank() == world.size() - 1;
    const auto work = [&] {
      mistake.collective(world, errs);
      world.barrier();  // a rank without a part in the mistake learns of it here
    };
    expect_error(work, ErrorCode::kInvalidArgument, {});
    expect_error([&] { world.barrier(); }, ErrorCode::kInvalidArgument, {"aborted"});
  });
}

INSTANTIATE_TEST_SUITE_P(Groups, MistakeTest,
                         testing::Combine(testing::ValuesIn(sizes_above_one()),
                                          testing::ValuesIn(kMistakes)),
                         [](const auto& tested) {
                           return std::string(std::get<1>(tested.param).name) + "_" +
                                  std::to_string(std::get<0>(tested.param));
                         });

class AbortedGroupTest : public testing::TestWithParam<int> {};

TEST_P(AbortedGroupTest, WakesWaitingRanksWithReasonAndCode) {
  run_ranks(GetParam(), [](Communicator& world) {
    if (world.rank() == 0) {
      world.abort("the pump is dry", ErrorCode::kIo);
      return;
    }
    expect_error([&] { world.barrier(); }, ErrorCode::kIo, {"rank 0 failed", "the pump is dry"});
  });
}

TEST_P(AbortedGroupTest, LaterOperationsFailAtOnce) {
  run_ranks(GetParam(), [](Communicator& world) {
    world.abort("over");
    expect_error([&] { reduce(world, 3); }, ErrorCode::kInternal, {"over"});
    expect_error([&] { world.barrier(); }, ErrorCode::kInternal, {"over"});
  });
}

TEST_P(AbortedGroupTest, ARankThatReturnsEarlyIsNamed) {
  // Rank 0 takes part in one operation and goes; the others wait for it in the second. A slow one
  // of them may learn of it before it is out of the first.
  run_ranks(GetParam(), [](Communicator& world) {
    if (world.rank() == 0) return world.barrier();
    const auto work = [&] {
      world.barrier();
      world.barrier();
    };
    expect_error(work, ErrorCode::kInternal, {"rank 0", "returned"});
  });
}

INSTANTIATE_TEST_SUITE_P(GroupSizes, AbortedGroupTest, testing::ValuesIn(sizes_above_one()));

}  // namespace
}  // namespace gantry::test
