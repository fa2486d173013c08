#pragma once

#include <span>
#include <string>
#include <vector>

#include "kernels/base/export.h"
#include "parallel/communicator.h"

namespace gantry GANTRY_API {

/// One thing that all ranks must have alike: "placement" and "round_robin".
struct AgreementItem {
  std::string name;
  std::string value;
};

/// Collective: makes sure that every rank has the same items, before anything is allocated by them.
///
/// One all-gather of a fingerprint of all items. Only where those differ the items themselves are
/// gathered, to say what differs.
/// @throws Error kInvalidArgument, the same on every rank, naming each item that differs with its
///         values and the ranks that have them
void check_agreement(Communicator& world, std::span<const AgreementItem> items);

/// Collective: a text of every rank, in rank order.
std::vector<std::string> gather_texts(Communicator& world, const std::string& own);

}  // namespace gantry
