#include "parallel/exchange_scratch.h"

namespace gantry {
namespace {

ByteBuffer byte_buffer(int64_t bytes) { return ByteBuffer(static_cast<size_t>(bytes)); }

template <typename T>
Buffer<T> buffer(int64_t count) {
  return Buffer<T>(static_cast<size_t>(count));
}

}  // namespace

ExchangeScratch::ExchangeScratch(const ExchangeScratchSize& size)
    : max_num_tokens_(size.max_num_tokens),
      first_send_(byte_buffer(size.first_send_bytes)),
      first_receive_(byte_buffer(size.first_receive_bytes)),
      rest_send_(byte_buffer(size.rest_send_bytes)),
      rest_receive_(byte_buffer(size.rest_receive_bytes)),
      destinations_(buffer<int32_t>(size.own_tokens * size.destinations)),
      returned_(buffer<float>(size.returned_values)),
      gather_send_(buffer<float>(size.gather_values)),
      magnitudes_(buffer<float>(size.tp_size * size.magnitude_values)) {
  if (size.arranges) {
    hidden_states_ = buffer<float>(size.all_tokens * size.hidden_size);
    topk_ids_ = buffer<int32_t>(size.all_tokens * size.top_k);
    topk_weights_ = buffer<float>(size.all_tokens * size.top_k);
  }
  if (size.orders) {
    choice_row_ = buffer<int32_t>(size.all_tokens * size.top_k);
    own_choice_ = buffer<int64_t>(size.own_tokens * size.top_k);
    choice_order_ = buffer<int32_t>(size.top_k);
  }
  const auto ranks = static_cast<size_t>(size.num_ranks);
  for (std::vector<int64_t>* counts : {&sent_, &received_, &rows_, &send_bytes_, &receive_bytes_,
                                       &send_cursor_, &receive_cursor_}) {
    counts->assign(ranks, 0);
  }
  send_parts_.reserve(2 * ranks);
  receive_parts_.reserve(2 * ranks);
}

int64_t ExchangeScratch::bytes() const noexcept {
  const size_t words = hidden_states_.size() + topk_ids_.size() + topk_weights_.size() +
                       choice_row_.size() + destinations_.size() + 2 * own_choice_.size() +
                       choice_order_.size() + returned_.size() + gather_send_.size() +
                       magnitudes_.size() + 14 * sent_.size();
  return static_cast<int64_t>(4 * words + first_send_.size() + first_receive_.size() +
                              rest_send_.size() + rest_receive_.size());
}

}  // namespace gantry
