#include "tools/current_work.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <csignal>
#include <cstring>

// The handler only reads atomics and calls write: nothing else is safe in one.

namespace gantry::cli {
namespace {

std::array<char, 48> g_prefix{};
std::atomic<const char*> g_phase = nullptr;
std::atomic<int> g_layer = -1;
std::atomic<const Communicator*> g_world = nullptr;

class Line {
 public:
  void add(const char* text) noexcept {
    while (*text != '\0' && size_ < text_.size())
      text_[size_++] = *text++;
  }
  void add(int number) noexcept {
    std::array<char, 12> digits{};
    size_t count = 0;
    do {
      digits[count++] = static_cast<char>('0' + number % 10);
      number /= 10;
    } while (number > 0);
    while (count > 0 && size_ < text_.size())
      text_[size_++] = digits[--count];
  }
  void write_to_stderr() const noexcept {
    [[maybe_unused]] const auto written = write(STDERR_FILENO, text_.data(), size_);
  }

 private:
  std::array<char, 256> text_{};
  size_t size_ = 0;
};

extern "C" void on_sigterm(int signal) {
  Line line;
  line.add(g_prefix.data());
  line.add("terminated (SIGTERM)");
  if (const char* phase = g_phase) {
    line.add(" during ");
    line.add(phase);
    if (const int layer = g_layer; layer >= 0) {
      line.add(" of layer ");
      line.add(layer);
    }
  }
  const Communicator* world = g_world;
  const char* operation = world == nullptr ? nullptr : world->current_operation();
  if (operation != nullptr) {
    line.add(", waiting in ");
    line.add(operation);
  }
  line.add("\n");
  line.write_to_stderr();
  std::signal(signal, SIG_DFL);
  std::raise(signal);
}

}  // namespace

void print_work_on_sigterm(std::string_view prefix) {
  g_prefix = {};
  std::copy_n(prefix.data(), std::min(prefix.size(), g_prefix.size() - 1), g_prefix.data());
  std::signal(SIGTERM, on_sigterm);
}

void note_work(const char* phase, int layer) noexcept {
  g_phase = phase;
  g_layer = layer;
}

void note_communicator(const Communicator* world) noexcept { g_world = world; }

}  // namespace gantry::cli
