#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "kernels/base/buffer.h"
#include "kernels/base/export.h"
#include "parallel/communicator.h"

namespace gantry GANTRY_API {

/// What every rank tells every other in front of its tokens.
struct ExchangeHeader {
  int64_t num_tokens = 0;      ///< that the rank was given
  int64_t remaining = 0;       ///< that it will be given later, in further chunks
  int64_t max_num_tokens = 0;  ///< that its scratch was made for
  int32_t count = 0;           ///< tokens in this message, also those that follow later
  int32_t overflows = 0;       ///< 1: some message of the sender has more tokens than slots
};
static_assert(sizeof(ExchangeHeader) == 32);

/// Sizes of an ExchangeScratch, in elements.
struct ExchangeScratchSize {
  int64_t num_ranks = 0;
  int64_t max_num_tokens = 0;  ///< given to one rank
  int64_t own_tokens = 0;      ///< at most, that one rank owns (adds up)
  int64_t all_tokens = 0;      ///< at most, that one rank computes on
  int64_t destinations = 0;    ///< at most, EP ranks of one token
  int64_t top_k = 0;
  int64_t hidden_size = 0;
  int64_t first_send_bytes = 0;
  int64_t first_receive_bytes = 0;
  int64_t rest_send_bytes = 0;
  int64_t rest_receive_bytes = 0;
  bool arranges = false;         ///< tokens are copied into arrays of this scratch
  bool orders = false;           ///< choices are numbered
  int64_t returned_values = 0;   ///< f32 that an owner receives
  int64_t gather_values = 0;     ///< f32 sent to a part of the ranks
  int64_t magnitude_values = 0;  ///< f32 of max_over_tp, of one rank
  int64_t tp_size = 1;
};

/// Buffers of TokenExchange and what its last dispatch found. Made once, part of a workspace; calls
/// never grow it. Layers of the same sizes may share one.
class ExchangeScratch {
 public:
  ExchangeScratch() = default;
  explicit ExchangeScratch(const ExchangeScratchSize& size);

  [[nodiscard]] int64_t bytes() const noexcept;

 private:
  friend class TokenExchange;

  int64_t max_num_tokens_ = 0;
  ByteBuffer first_send_;  // headers and slots
  ByteBuffer first_receive_;
  ByteBuffer rest_send_;           // tokens beyond the slots
  ByteBuffer rest_receive_;        // their routing; hidden states are received in their place
  Buffer<float> hidden_states_;    // [T', H]
  Buffer<int32_t> topk_ids_;       // [T', K]
  Buffer<float> topk_weights_;     // [T', K]
  Buffer<int32_t> choice_row_;     // [T', K]
  Buffer<int32_t> destinations_;   // [own, D] EP ranks of a token, ascending, then -1
  Buffer<int64_t> own_choice_;     // [own, K] where the row of a choice was received, in rows
  Buffer<int32_t> choice_order_;   // [K]
  Buffer<float> returned_;         // rows of the own tokens, by rank
  Buffer<float> gather_send_;      // [ranks of a part, values]
  Buffer<float> magnitudes_;       // [tp_size, values]
  std::vector<int64_t> sent_;      // [R] own tokens that each rank computes
  std::vector<int64_t> received_;  // [R] tokens of each owner that this rank computes
  std::vector<int64_t> rows_;      // [R] choices of each owner that this rank computes
  std::vector<int64_t> send_bytes_;
  std::vector<int64_t> receive_bytes_;
  std::vector<int64_t> send_cursor_;
  std::vector<int64_t> receive_cursor_;
  std::vector<SendPart> send_parts_;
  std::vector<ReceivePart> receive_parts_;

  // The call between dispatch and combine. The spans are the caller's.
  std::span<const int32_t> own_ids_;     // [own, K]
  std::span<const float> own_weights_;   // [own, K]
  std::span<const int32_t> id_to_rank_;  // [ids]
  std::span<const int32_t> id_to_logical_;
  int64_t num_tokens_ = 0;    // T'
  int64_t group_tokens_ = 0;  // of this rank's token group
  int64_t own_first_ = 0;
  int64_t own_tokens_ = 0;
  int64_t num_rows_ = 0;
};

}  // namespace gantry
