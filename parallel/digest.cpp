#include "parallel/digest.h"

#include <fmt/format.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

namespace gantry {

Digest digest_of(std::span<const std::byte> bytes) noexcept {
  const XXH128_hash_t hash = XXH3_128bits(bytes.data(), bytes.size());
  return {hash.low64, hash.high64};
}

std::string to_string(const Digest& digest) {
  return fmt::format("{:016x}{:016x}", digest.high, digest.low);
}

struct DigestBuilder::State {
  XXH3_state_t xxh3;
};

DigestBuilder::DigestBuilder() : state_(std::make_unique<State>()) {
  XXH3_128bits_reset(&state_->xxh3);
}

DigestBuilder::~DigestBuilder() = default;

void DigestBuilder::add(std::span<const std::byte> bytes) noexcept {
  XXH3_128bits_update(&state_->xxh3, bytes.data(), bytes.size());
}

void DigestBuilder::add(std::string_view text) noexcept {
  add(static_cast<int64_t>(text.size()));
  add(std::as_bytes(std::span(text)));
}

void DigestBuilder::add(int64_t number) noexcept { add(std::as_bytes(std::span(&number, 1))); }

Digest DigestBuilder::digest() const noexcept {
  const XXH128_hash_t hash = XXH3_128bits_digest(&state_->xxh3);
  return {hash.low64, hash.high64};
}

}  // namespace gantry
