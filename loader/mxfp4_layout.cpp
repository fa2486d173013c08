// The three layouts have equal bits: 16 bytes of codes and one of scale for each block of 32 inputs
// of a row. compressed-tensors and gpt-oss pair neighbours in a byte, ggml pairs element i with
// element i + 16 and puts the scale in front.

#include "loader/mxfp4_layout.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "kernels/base/check.h"

namespace gantry {
namespace {

// The nibbles of eight bytes, each below 16, as those of four bytes: byte 2 i below byte 2 i + 1.
uint32_t joined(uint64_t bytes) {
  bytes = (bytes | bytes >> 4) & 0x00ff00ff00ff00ffU;
  bytes = (bytes | bytes >> 8) & 0x0000ffff0000ffffU;
  return static_cast<uint32_t>(bytes | bytes >> 16);
}

// And back.
uint64_t parted(uint32_t nibbles) {
  uint64_t bytes = nibbles;
  bytes = (bytes | bytes << 16) & 0x0000ffff0000ffffU;
  bytes = (bytes | bytes << 8) & 0x00ff00ff00ff00ffU;
  return (bytes | bytes << 4) & 0x0f0f0f0f0f0f0f0fU;
}

// Elements 2 i and 2 i + 1 in byte i, from elements i and i + 16.
void neighbours_of(const std::byte* ggml, std::byte* codes) {
  constexpr uint64_t kLow = 0x0f0f0f0f0f0f0f0fU;
  uint64_t halves[2];
  std::memcpy(halves, ggml, sizeof(halves));
  const uint32_t words[4] = {joined(halves[0] & kLow), joined(halves[1] & kLow),
                             joined(halves[0] >> 4 & kLow), joined(halves[1] >> 4 & kLow)};
  std::memcpy(codes, words, sizeof(words));
}

void halves_of(const std::byte* codes, std::byte* ggml) {
  uint32_t words[4];
  std::memcpy(words, codes, sizeof(words));
  const uint64_t halves[2] = {parted(words[0]) | parted(words[2]) << 4,
                              parted(words[1]) | parted(words[3]) << 4};
  std::memcpy(ggml, halves, sizeof(halves));
}

constexpr int64_t kBlocksAtOnce = 1024;  // 17 KiB, on the stack

// `count` whole blocks of the view, from block `first` on.
void read_blocks(Mxfp4View view, const Mxfp4Source& blocks, const Mxfp4Source& scales,
                 int64_t first, int64_t count, std::byte* to) {
  std::array<std::byte, kBlocksAtOnce * kMxfp4BlockBytes> stored;
  if (view == Mxfp4View::kGgml) {
    std::array<std::byte, kBlocksAtOnce> exponents;
    blocks(first * kMxfp4CodeBytes, stored.data(), count * kMxfp4CodeBytes);
    scales(first, exponents.data(), count);
    for (int64_t b = 0; b < count; ++b) {
      to[b * kMxfp4BlockBytes] = exponents[static_cast<size_t>(b)];
      halves_of(stored.data() + b * kMxfp4CodeBytes, to + b * kMxfp4BlockBytes + 1);
    }
    return;
  }
  blocks(first * kMxfp4BlockBytes, stored.data(), count * kMxfp4BlockBytes);
  for (int64_t b = 0; b < count; ++b) {
    const std::byte* block = stored.data() + b * kMxfp4BlockBytes;
    if (view == Mxfp4View::kScales) {
      to[b] = block[0];
    } else {
      neighbours_of(block + 1, to + b * kMxfp4CodeBytes);
    }
  }
}

}  // namespace

std::optional<Mxfp4Layout> mxfp4_layout(const TensorInfo& info, const TensorRef& ref,
                                        const QuantScheme* scheme) {
  if (info.block_type == "mxfp4" && ref.kind == TensorKind::kWeight) return Mxfp4Layout::kGgml;
  if (ref.kind != TensorKind::kEncoded || scheme == nullptr) return std::nullopt;
  for (const Mxfp4Layout layout : {Mxfp4Layout::kBlocks, Mxfp4Layout::kPacked}) {
    if (ref.suffix != mxfp4_codes(layout) && ref.suffix != mxfp4_scales(layout)) continue;
    const std::string_view method =
        layout == Mxfp4Layout::kBlocks ? "mxfp4" : "compressed-tensors mxfp4-pack-quantized";
    if (scheme->method == method) return layout;
  }
  return std::nullopt;
}

std::string_view mxfp4_codes(Mxfp4Layout layout) {
  switch (layout) {
    case Mxfp4Layout::kBlocks:
      return "blocks";
    case Mxfp4Layout::kPacked:
      return "weight_packed";
    case Mxfp4Layout::kGgml:
      break;
  }
  return {};
}

std::string_view mxfp4_scales(Mxfp4Layout layout) {
  switch (layout) {
    case Mxfp4Layout::kBlocks:
      return "scales";
    case Mxfp4Layout::kPacked:
      return "weight_scale";
    case Mxfp4Layout::kGgml:
      break;
  }
  return {};
}

int64_t mxfp4_view_bytes(Mxfp4View view) {
  switch (view) {
    case Mxfp4View::kCodes:
      return kMxfp4CodeBytes;
    case Mxfp4View::kScales:
      return 1;
    case Mxfp4View::kGgml:
      return kMxfp4BlockBytes;
    case Mxfp4View::kStored:
      break;
  }
  fail(ErrorCode::kInternal, "stored bytes have no blocks");
}

void read_mxfp4_view(Mxfp4View view, const Mxfp4Source& blocks, const Mxfp4Source& scales,
                     int64_t offset, std::byte* to, int64_t bytes) {
  const int64_t size = mxfp4_view_bytes(view);
  std::array<std::byte, kBlocksAtOnce * kMxfp4BlockBytes> whole;
  const int64_t end = offset + bytes;
  while (offset < end) {
    const int64_t first = offset / size;
    const int64_t last = std::min(first + kBlocksAtOnce, (end + size - 1) / size);
    read_blocks(view, blocks, scales, first, last - first, whole.data());
    const int64_t count = std::min(end, last * size) - offset;
    to = std::copy_n(whole.data() + (offset - first * size), count, to);
    offset += count;
  }
}

}  // namespace gantry
