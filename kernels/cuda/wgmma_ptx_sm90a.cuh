#pragma once

// wgmma with A from registers and B from shared memory, one function for each shape. The lists are
// long because inline assembly wants every register named.
// @source PTX ISA, "wgmma.mma_async"

#include <cstdint>

#include "kernels/cuda/wgmma_descriptor.h"

namespace gantry {

// clang-format off
#define GANTRY_D8(d, i) "+f"((d)[(i)]), "+f"((d)[(i) + 1]), "+f"((d)[(i) + 2]), "+f"((d)[(i) + 3]), \
                        "+f"((d)[(i) + 4]), "+f"((d)[(i) + 5]), "+f"((d)[(i) + 6]), "+f"((d)[(i) + 7])
#define GANTRY_D32(d, i) GANTRY_D8(d, i), GANTRY_D8(d, (i) + 8), GANTRY_D8(d, (i) + 16), GANTRY_D8(d, (i) + 24)

#define GANTRY_REGS32 \
  "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15," \
  "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
#define GANTRY_REGS64 GANTRY_REGS32 "," \
  "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47," \
  "%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"
#define GANTRY_REGS96 GANTRY_REGS64 "," \
  "%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79," \
  "%80,%81,%82,%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95"
#define GANTRY_REGS128 GANTRY_REGS96 "," \
  "%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,%108,%109,%110,%111," \
  "%112,%113,%114,%115,%116,%117,%118,%119,%120,%121,%122,%123,%124,%125,%126,%127"

// SHAPE: "m64n64k16.f32.bf16.bf16"; TAIL: immediates after the predicate.
#define GANTRY_WGMMA(SHAPE, REGS, A0, A1, A2, A3, B, P, TAIL, ...)                       \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" P ", 0;\n"                           \
               "wgmma.mma_async.sync.aligned." SHAPE " {" REGS "}, {%" A0 ",%" A1 ",%" A2 \
               ",%" A3 "}, %" B ", p, " TAIL ";\n}\n"                                     \
               : __VA_ARGS__                                                             \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate))


template <WgmmaType kType>
__device__ __forceinline__ void wgmma_async(float (&d)[64], const uint32_t (&a)[4], uint64_t b,
                                            int accumulate) {
  if constexpr (kType == WgmmaType::kBF16) {
    GANTRY_WGMMA("m64n128k16.f32.bf16.bf16", GANTRY_REGS64, "64", "65", "66", "67", "68", "69",
                 "1, 1, 0", GANTRY_D32(d, 0), GANTRY_D32(d, 32));
  } else if constexpr (kType == WgmmaType::kF16) {
    GANTRY_WGMMA("m64n128k16.f32.f16.f16", GANTRY_REGS64, "64", "65", "66", "67", "68", "69",
                 "1, 1, 0", GANTRY_D32(d, 0), GANTRY_D32(d, 32));
  } else {
    GANTRY_WGMMA("m64n128k32.f32.e4m3.e4m3", GANTRY_REGS64, "64", "65", "66", "67", "68", "69",
                 "1, 1", GANTRY_D32(d, 0), GANTRY_D32(d, 32));
  }
}

template <WgmmaType kType>
__device__ __forceinline__ void wgmma_async(float (&d)[128], const uint32_t (&a)[4], uint64_t b,
                                            int accumulate) {
  if constexpr (kType == WgmmaType::kBF16) {
    GANTRY_WGMMA("m64n256k16.f32.bf16.bf16", GANTRY_REGS128, "128", "129", "130", "131", "132", "133",
                 "1, 1, 0", GANTRY_D32(d, 0), GANTRY_D32(d, 32), GANTRY_D32(d, 64), GANTRY_D32(d, 96));
  } else if constexpr (kType == WgmmaType::kF16) {
    GANTRY_WGMMA("m64n256k16.f32.f16.f16", GANTRY_REGS128, "128", "129", "130", "131", "132", "133",
                 "1, 1, 0", GANTRY_D32(d, 0), GANTRY_D32(d, 32), GANTRY_D32(d, 64), GANTRY_D32(d, 96));
  } else {
    GANTRY_WGMMA("m64n256k32.f32.e4m3.e4m3", GANTRY_REGS128, "128", "129", "130", "131", "132", "133",
                 "1, 1", GANTRY_D32(d, 0), GANTRY_D32(d, 32), GANTRY_D32(d, 64), GANTRY_D32(d, 96));
  }
}

#undef GANTRY_WGMMA
#undef GANTRY_REGS128
#undef GANTRY_REGS96
#undef GANTRY_REGS64
#undef GANTRY_REGS32
#undef GANTRY_D32
#undef GANTRY_D8
// clang-format on

}  // namespace gantry
