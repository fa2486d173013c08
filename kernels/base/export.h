#pragma once

/// Marks a namespace block of a public header: what is declared in it can be used from outside
/// libgantry.so. Everything else is compiled with hidden visibility.
#define GANTRY_API __attribute__((visibility("default")))
