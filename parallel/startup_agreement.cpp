#include "parallel/startup_agreement.h"

#include <algorithm>
#include <map>
#include <numeric>

#include "kernels/base/check.h"
#include "parallel/digest.h"
#include "parallel/rank_vote.h"

namespace gantry {
namespace {

constexpr char kEnd = '\0';  // of a name or a value; neither has one in it

std::string pack(std::span<const AgreementItem> items) {
  std::string text;
  for (const AgreementItem& item : items) {
    text += item.name;
    text += kEnd;
    text += item.value;
    text += kEnd;
  }
  return text;
}

std::map<std::string, std::string> unpack(const std::string& text) {
  std::map<std::string, std::string> items;
  size_t begin = 0;
  const auto next = [&] {
    const size_t end = std::min(text.find(kEnd, begin), text.size());
    std::string part = text.substr(begin, end - begin);
    begin = end + 1;
    return part;
  };
  while (begin < text.size()) {
    const std::string name = next();
    items[name] = next();
  }
  return items;
}

// "rank(s) 0, 2: linear; rank(s) 1: round_robin", or empty if all have the same.
std::string difference(const std::vector<std::map<std::string, std::string>>& ranks,
                       const std::string& name) {
  std::vector<std::pair<std::string, std::string>> values;  // value, ranks; in order of the ranks
  for (size_t rank = 0; rank < ranks.size(); ++rank) {
    const auto found = ranks[rank].find(name);
    const std::string value = found == ranks[rank].end() ? "(nothing)" : found->second;
    auto known = std::find_if(values.begin(), values.end(),
                              [&](const auto& other) { return other.first == value; });
    if (known == values.end()) known = values.insert(values.end(), {value, ""});
    known->second += fmt::format("{}{}", known->second.empty() ? "" : ", ", rank);
  }
  std::string text;
  for (const auto& [value, names] : values)
    text += fmt::format("{}rank(s) {}: {}", text.empty() ? "" : "; ", names, value);
  return values.size() > 1 ? text : std::string();
}

}  // namespace

std::vector<std::string> gather_texts(Communicator& world, const std::string& own) {
  const std::vector<int64_t> sizes = gather_values(world, static_cast<int64_t>(own.size()));
  std::string all(static_cast<size_t>(std::accumulate(sizes.begin(), sizes.end(), int64_t{0})),
                  '\0');
  world.all_gather(std::as_bytes(std::span(own)), std::as_writable_bytes(std::span(all)), sizes);
  std::vector<std::string> texts;
  size_t begin = 0;
  for (const int64_t size : sizes) {
    texts.push_back(all.substr(begin, static_cast<size_t>(size)));
    begin += static_cast<size_t>(size);
  }
  return texts;
}

void check_agreement(Communicator& world, std::span<const AgreementItem> items) {
  const std::string own = pack(items);
  const std::vector<Digest> all = gather_values(world, digest_of(std::as_bytes(std::span(own))));
  if (std::all_of(all.begin(), all.end(), [&](const Digest& one) { return one == all[0]; })) return;

  std::vector<std::map<std::string, std::string>> ranks;
  std::map<std::string, std::string> names;
  for (const std::string& text : gather_texts(world, own)) {
    ranks.push_back(unpack(text));
    names.insert(ranks.back().begin(), ranks.back().end());
  }
  std::string message;
  for (const auto& [name, value] : names) {
    const std::string text = difference(ranks, name);
    if (!text.empty()) message += fmt::format("\n  {}: {}", name, text);
  }
  fail(ErrorCode::kInvalidArgument, "the ranks do not agree:{}", message);
}

}  // namespace gantry
