// The three layouts have equal bits: 16 bytes of codes and one of scale for each block of 32 inputs
// of a row. compressed-tensors and gpt-oss pair neighbours in a byte, ggml pairs element i with
// element i + 16 and puts the scale in front.

#include "loader/mxfp4_layout.h"

#include <algorithm>
#include <array>

#include "kernels/base/check.h"

namespace gantry {
namespace {

uint8_t nibble(const std::byte* codes, int64_t i, bool high) {
  return static_cast<uint8_t>(std::to_integer<unsigned>(codes[i]) >> (high ? 4 : 0) & 15U);
}

std::byte pair(unsigned low, unsigned high) { return static_cast<std::byte>(low | high << 4); }

// Elements 2 i and 2 i + 1 in byte i, from elements i and i + 16.
void neighbours_of(const std::byte* ggml, std::byte* codes) {
  for (int64_t i = 0; i < kMxfp4CodeBytes; ++i) {
    const int64_t first = 2 * i % kMxfp4CodeBytes;
    const bool high = i >= kMxfp4CodeBytes / 2;
    codes[i] = pair(nibble(ggml, first, high), nibble(ggml, first + 1, high));
  }
}

void halves_of(const std::byte* codes, std::byte* ggml) {
  for (int64_t i = 0; i < kMxfp4CodeBytes; ++i) {
    const bool odd = i % 2 != 0;
    ggml[i] = pair(nibble(codes, i / 2, odd), nibble(codes, kMxfp4CodeBytes / 2 + i / 2, odd));
  }
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
