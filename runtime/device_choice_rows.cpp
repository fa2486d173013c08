// DeviceExchange: combine ordered. One row a (token, choice) goes back to the token's owner, who
// adds them with the kernel, and in the order, of a single rank.

#include "kernels/cuda/device_kernels.h"
#include "runtime/device_exchange.h"
#include "runtime/device_exchange_parts.h"

namespace gantry {

// Sorts the choices of the own tokens by EP rank: where their rows are received.
void DeviceExchange::list_own_choices(const RoutedTokens& input, DeviceScratch& scratch,
                                      StreamHandle stream) {
  Device& device = *world_->device();
  const Slice own = own_tokens();
  const IdRanks ids = ranks_of(*input.ids);
  RowPlan plan = scratch.own_choices;
  plan.topk_ids = input.topk_ids + own.begin * top_k_;
  plan.expert_to_slot = ids.rank;
  plan.num_choices = own.size() * top_k_;
  plan.num_ids = ids.num_ids;
  plan.num_slots = config_.ep_size;
  plan.tile_rows = kTokenTile;
  scratch.own_choices = plan;
  const DeviceKernels& kernels = device.kernels();
  kernels.count_choices({plan}, device.attributes(), stream);
  kernels.scan_counts({plan}, device.attributes(), stream);
  kernels.place_choices({plan}, device.attributes(), stream);
}

ReturnedChoices DeviceExchange::return_choices(const float* y, const int32_t* choice_row,
                                               int64_t width, const DispatchedTokens& tokens,
                                               const DeviceExperts::IdMap& ids,
                                               DeviceScratch& scratch, StreamHandle stream) {
  const Count count(*world_, bytes_.combine_sent, bytes_.combine_received, bytes_.collectives);
  Device& device = *world_->device();
  int64_t computed = 0;
  for (const int64_t choices : received_choices_)
    computed += choices;
  if (computed > 0) {
    // In ascending (owner, token, choice), as the owners expect them.
    device.kernels().rank_lists({.topk_ids = tokens.topk_ids,
                                 .ids = ranks_of(ids),
                                 .tokens = tokens.num_tokens,
                                 .per_token = top_k_,
                                 .num_parts = 1,
                                 .own_rank = config_.ep_rank(),
                                 .stride = tokens.num_tokens * top_k_,
                                 .lists = scratch.choice_list,
                                 .counts = scratch.choice_count},
                                device.attributes(), stream);
    device.kernels().gather_choices({.y = y,
                                     .choice_row = choice_row,
                                     .list = scratch.choice_list,
                                     .num_rows = computed,
                                     .n = width,
                                     .out = scratch.choice_rows},
                                    device.attributes(), stream);
  }
  const int64_t room = RowPlan::max_rows(own_tokens().size() * top_k_, config_.ep_size);
  if (config_.tp_size > 1) {  // padding between the rows of ranks is added, too
    device.clear(scratch.returned, static_cast<size_t>(config_.tp_size * room * width) * 4, stream);
  }
  sends_.clear();
  receives_.clear();
  int64_t sent = 0;
  int64_t row = 0;
  for (int rank = 0; rank < config_.world_size(); ++rank) {
    const int64_t rows = received_choices_[static_cast<size_t>(rank)];
    const int64_t returned = sent_choices_[static_cast<size_t>(rank / config_.tp_size)];
    const int tp_rank = rank % config_.tp_size;
    sends_.push_back({rank, bytes_of(scratch.choice_rows + sent * width, rows * width)});
    receives_.push_back(
        {rank, room_of(scratch.returned + (tp_rank * room + row) * width, returned * width)});
    sent += rows;
    if (tp_rank + 1 == config_.tp_size) row = align_to(row + returned, kTokenTile);
  }
  world_->send_receive(sends_, receives_, stream);
  if (config_.tp_size > 1 && room > 0) {
    device.kernels().add_rows({.addends = scratch.returned,
                               .sum = scratch.returned,
                               .count = room * width,
                               .rows = config_.tp_size},
                              device.attributes(), stream);
  }
  return {scratch.returned, scratch.own_choices.choice_row};
}

const float* DeviceExchange::return_shared(const float* rows, DeviceScratch& scratch,
                                           StreamHandle stream) {
  const Count count(*world_, bytes_.combine_sent, bytes_.combine_received, bytes_.collectives);
  Device& device = *world_->device();
  const long begin = group_begin_[static_cast<size_t>(config_.dp_rank())];
  const int64_t own_values = own_tokens().size() * hidden_size_;
  const bool leads = config_.ep_rank() == leading_ep_rank();
  sends_.clear();
  receives_.clear();
  const int first = config_.first_of_token_group();
  for (int rank = first; leads && rank < first + config_.token_group_size(); ++rank) {
    const Slice theirs = owned(rank);
    sends_.push_back({rank, bytes_of(rows + (theirs.begin - begin) * hidden_size_,
                                     theirs.size() * hidden_size_)});
  }
  for (int tp_rank = 0; tp_rank < config_.tp_size; ++tp_rank) {
    receives_.push_back({leading_ep_rank() * config_.tp_size + tp_rank,
                         room_of(scratch.returned_shared + tp_rank * own_values, own_values)});
  }
  world_->send_receive(sends_, receives_, stream);
  if (config_.tp_size > 1 && own_values > 0) {
    device.kernels().add_rows({.addends = scratch.returned_shared,
                               .sum = scratch.returned_shared,
                               .count = own_values,
                               .rows = config_.tp_size},
                              device.attributes(), stream);
  }
  return scratch.returned_shared;
}

}  // namespace gantry
