// Runs a fuzz target without libFuzzer: every file of the corpus, then random mutations of them.
// usage: <target>_smoke CORPUS_DIRECTORY NUM_MUTATIONS
//
// It finds shallow bugs in seconds with any compiler; it is not guided by coverage as libFuzzer is.
// GANTRY_SEED sets the seed. When the target aborts, the input is left in the working directory.

#include <algorithm>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <string_view>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace {

constexpr const char* kCrashFile = "fuzz_smoke_crash.bin";
std::string current_input;

/// Saves the input that made the target abort. stdio is not async-signal-safe, but the process is
/// lost anyway and the signal is raised by the target itself.
void save_crash(int signal) {
  if (std::FILE* file = std::fopen(kCrashFile, "wb")) {
    std::fwrite(current_input.data(), 1, current_input.size(), file);
    std::fclose(file);
    std::fprintf(stderr, "input saved in %s\n", kCrashFile);
  }
  std::signal(signal, SIG_DFL);
  std::raise(signal);
}

void run(std::string input) {
  current_input = std::move(input);
  LLVMFuzzerTestOneInput(reinterpret_cast<const uint8_t*>(current_input.data()),
                         current_input.size());
}

std::vector<std::string> read_corpus(const std::filesystem::path& directory) {
  std::vector<std::filesystem::path> paths;
  for (const auto& entry : std::filesystem::directory_iterator(directory)) {
    paths.push_back(entry.path());
  }
  std::sort(paths.begin(), paths.end());  // directory order would make a seed mean nothing
  std::vector<std::string> corpus;
  for (const auto& path : paths) {
    std::ifstream file(path, std::ios::binary);
    corpus.emplace_back(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
  }
  return corpus;
}

class Mutator {
 public:
  Mutator(const std::vector<std::string>& corpus, uint64_t seed) : corpus_(corpus), engine_(seed) {}

  /// A text of the corpus with one to four changes.
  std::string next() {
    std::string text = corpus_[below(corpus_.size())];
    for (size_t changes = 1 + below(4); changes > 0; --changes)
      change(text);
    return text;
  }

 private:
  // What single random bytes rarely hit: structure, limits of integers, bytes that end strings.
  static constexpr std::string_view kTokens[] = {"{",          "}",
                                                 "[",          "]",
                                                 ",",          ":",
                                                 "\"",         "\\",
                                                 "0",          "-1",
                                                 "1e999",      "null",
                                                 "true",       "\\u0000",
                                                 "\\ud8",      "9223372036854775807",
                                                 "..",         "/",
                                                 "NaN",        "\xff",
                                                 "\xc2\x80",   "18446744073709551615",
                                                 "4294967296", "2147483648"};

  size_t below(size_t bound) { return bound == 0 ? 0 : engine_() % bound; }

  void change(std::string& text) {
    const size_t at = below(text.size() + 1);
    switch (below(6)) {
      case 0:  // another byte
        if (at < text.size()) text[at] = static_cast<char>(below(256));
        break;
      case 1:  // one bit
        if (at < text.size()) text[at] = static_cast<char>(text[at] ^ (1 << below(8)));
        break;
      case 2:
        text.erase(at, 1 + below(16));
        break;
      case 3:
        text.insert(at, kTokens[below(std::size(kTokens))]);
        break;
      case 4:  // a piece of the text again, elsewhere
        text.insert(at, text.substr(below(text.size()), 1 + below(64)));
        break;
      default: {  // the end of another text
        const std::string& other = corpus_[below(corpus_.size())];
        text = text.substr(0, at) + other.substr(below(other.size()));
        break;
      }
    }
  }

  const std::vector<std::string>& corpus_;
  std::mt19937_64 engine_;
};

int run_all(const char* directory, long mutations) {
  const std::vector<std::string> corpus = read_corpus(directory);
  if (corpus.empty()) {
    std::fprintf(stderr, "%s: the corpus is empty\n", directory);
    return 1;
  }
  const char* seed_text = std::getenv("GANTRY_SEED");
  const uint64_t seed = seed_text == nullptr ? 1 : std::strtoull(seed_text, nullptr, 10);
  std::printf("%zu files, %ld mutations, seed %llu\n", corpus.size(), mutations,
              static_cast<unsigned long long>(seed));
  for (const std::string& text : corpus)
    run(text);
  Mutator mutator(corpus, seed);
  for (long i = 0; i < mutations; ++i)
    run(mutator.next());
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) {
    std::fprintf(stderr, "usage: %s CORPUS_DIRECTORY NUM_MUTATIONS\n", argv[0]);
    return 2;
  }
  std::signal(SIGABRT, save_crash);
  std::signal(SIGSEGV, save_crash);
  try {
    return run_all(argv[1], std::strtol(argv[2], nullptr, 10));
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    std::abort();  // a target lets no exception out: keep the input
  }
}
