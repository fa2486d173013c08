#include "tests/nccl_double/double_plan.h"

#include <cstdio>
#include <cstdlib>
#include <sstream>

#include "tests/nccl_double/nccl_double.h"

namespace gantry::nccl_double {
namespace {

thread_local std::string thread_plan;

bool parse_number(const std::string& text, int& value) {
  char* end = nullptr;
  const long number = std::strtol(text.c_str(), &end, 10);
  if (text.empty() || *end != '\0' || number < 0 || number > 1'000'000) return false;
  value = static_cast<int>(number);
  return true;
}

bool parse_fault(const std::string& text, Fault& fault) {
  const size_t colon = text.find(':');
  const std::string kind = text.substr(0, colon);
  int number = 0;
  const bool has_number = colon != std::string::npos;
  if (has_number && !parse_number(text.substr(colon + 1), number)) return false;
  if (kind == "hang" && !has_number) {
    fault = {.kind = Fault::kHang};
  } else if (kind == "progress" && has_number) {
    fault = {.kind = Fault::kProgress, .polls = number};
  } else if ((kind == "error" || kind == "call") && number >= 1 && number <= 6) {
    fault = {.kind = kind == "error" ? Fault::kError : Fault::kCall,
             .result = static_cast<nccl::Result>(number)};
  } else {
    return false;
  }
  return true;
}

bool parse_entry(const std::string& key, const std::string& value, Plan& plan) {
  if (key == "version") return parse_number(value, plan.version);
  if (key == "rank") return parse_number(value, plan.rank);
  if (key == "init") return parse_fault(value, plan.init);
  if (key == "finalize") return parse_fault(value, plan.finalize);
  const size_t colon = value.find(':');
  return key == "op" && colon != std::string::npos &&
         parse_number(value.substr(0, colon), plan.op_index) &&
         parse_fault(value.substr(colon + 1), plan.op);
}

}  // namespace

std::string parse_plan(const std::string& text, Plan& plan) {
  std::stringstream entries(text);
  std::string entry;
  while (std::getline(entries, entry, ',')) {
    const size_t equals = entry.find('=');
    if (equals == std::string::npos ||
        !parse_entry(entry.substr(0, equals), entry.substr(equals + 1), plan)) {
      return "cannot read '" + entry + "'";
    }
  }
  return "";
}

Plan current_plan() {
  std::string text = thread_plan;
  if (text.empty()) {
    const char* variable = std::getenv("GANTRY_NCCL_DOUBLE");
    if (variable != nullptr) text = variable;
  }
  Plan plan;
  const std::string problem = parse_plan(text, plan);
  if (!problem.empty()) {
    std::fprintf(stderr, "nccl_double: %s\n", problem.c_str());
    std::_Exit(99);
  }
  return plan;
}

}  // namespace gantry::nccl_double

void nccl_double_set_plan(const char* plan) { gantry::nccl_double::thread_plan = plan; }
