#include "runtime/rank_results.h"

#include <algorithm>
#include <cstring>
#include <string>
#include <type_traits>

#include "parallel/startup_agreement.h"

// Ranks are of one build (the start-up agreement compares versions), so plain values travel as they
// lie in memory.

namespace gantry {
namespace {

class Packer {
 public:
  template <typename T>
  requires std::is_trivially_copyable_v<T>
  void value(const T& value) { text_.append(reinterpret_cast<const char*>(&value), sizeof(T)); }
  template <typename Range>
  void range(const Range& range) {
    value(static_cast<uint64_t>(range.size()));
    text_.append(reinterpret_cast<const char*>(range.data()), range.size() * sizeof(*range.data()));
  }
  [[nodiscard]] const std::string& text() const noexcept { return text_; }

 private:
  std::string text_;
};

class Unpacker {
 public:
  explicit Unpacker(const std::string& text) : text_(&text) {}

  template <typename T>
  void value(T& value) {
    std::memcpy(&value, text_->data() + position_, sizeof(T));
    position_ += sizeof(T);
  }
  template <typename Range>
  void range(Range& range) {
    uint64_t size = 0;
    value(size);
    range.resize(size);
    const size_t bytes = size * sizeof(*range.data());
    if (bytes > 0) std::memcpy(range.data(), text_->data() + position_, bytes);
    position_ += bytes;
  }
  [[nodiscard]] bool at_end() const noexcept { return position_ >= text_->size(); }

 private:
  const std::string* text_;
  size_t position_ = 0;
};

void pack(const Finding& finding, Packer& out) {
  out.value(finding.kind);
  for (const std::string* text : {&finding.message, &finding.tensor, &finding.file, &finding.part})
    out.range(*text);
  out.value(finding.layer);
  out.value(finding.expert);
  out.value(finding.element);
}

Finding unpack_finding(Unpacker& in) {
  Finding finding;
  in.value(finding.kind);
  for (std::string* text : {&finding.message, &finding.tensor, &finding.file, &finding.part})
    in.range(*text);
  in.value(finding.layer);
  in.value(finding.expert);
  in.value(finding.element);
  return finding;
}

}  // namespace

void share_findings(Communicator& world, const std::vector<Finding>& before, LoadReport& report) {
  Packer own;
  for (const Finding& finding : report.findings()) {
    if (!std::binary_search(before.begin(), before.end(), finding, FindingOrder())) {
      pack(finding, own);
    }
  }
  for (const Finding& finding : report.warnings())
    pack(finding, own);
  const std::vector<std::string> texts = gather_texts(world, own.text());
  for (int rank = 0; rank < world.size(); ++rank) {
    if (rank == world.rank()) continue;
    Unpacker in(texts[static_cast<size_t>(rank)]);
    while (!in.at_end())
      report.add(unpack_finding(in));  // one that is there already counts once
  }
}

void share_results(Communicator& world, bool sends_output, std::vector<RankResult>& results) {
  const RankResult& mine = results[static_cast<size_t>(world.rank())];
  Packer own;
  own.value(mine.load);
  own.value(mine.times);
  own.value(mine.moved);
  own.range(mine.tokens_per_expert);
  own.range(sends_output ? mine.out : std::vector<float>());
  const std::vector<std::string> texts = gather_texts(world, own.text());
  for (int rank = 0; rank < world.size(); ++rank) {
    if (rank == world.rank()) continue;
    RankResult& result = results[static_cast<size_t>(rank)];
    Unpacker in(texts[static_cast<size_t>(rank)]);
    in.value(result.load);
    in.value(result.times);
    in.value(result.moved);
    in.range(result.tokens_per_expert);
    in.range(result.out);
  }
}

}  // namespace gantry
