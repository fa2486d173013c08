#pragma once

#include <gtest/gtest.h>

#include <initializer_list>
#include <string>
#include <string_view>

#include "kernels/base/error.h"

namespace gantry::test {

/// Runs `body` and expects an Error of that code whose message holds every one of `parts`.
template <typename Body>
void expect_error(Body&& body, ErrorCode code, std::initializer_list<std::string_view> parts) {
  try {
    body();
  } catch (const Error& error) {
    const std::string message = error.what();
    EXPECT_EQ(to_string(error.code()), to_string(code)) << message;
    for (const std::string_view part : parts) {
      EXPECT_NE(message.find(part), std::string::npos)
          << "expected '" << part << "' in: " << message;
    }
    return;
  }
  ADD_FAILURE() << "expected " << to_string(code) << ", nothing was thrown";
}

}  // namespace gantry::test
