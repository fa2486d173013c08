#include "kernels/base/cpu_features.h"

#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <fstream>

#include "kernels/base/check.h"
#include "kernels/base/log_format.h"

namespace gantry {
namespace {

// Linux gives tile data only to processes that ask for it (arch_prctl of linux/asm/prctl.h).
bool request_amx_permission() {
  constexpr long kArchReqXcompPerm = 0x1023;
  constexpr long kXfeatureXtiledata = 18;
  if (syscall(SYS_arch_prctl, kArchReqXcompPerm, kXfeatureXtiledata) == 0) return true;
  log(LogLevel::kWarn, "the CPU has AMX but the kernel refused tile data ({}): AMX is not used",
      std::strerror(errno));
  return false;
}

IsaSet detect() {
  IsaSet isas;
  __builtin_cpu_init();
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return isas;
  isas.insert(Isa::kAvx2);
  if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
      !__builtin_cpu_supports("avx512vl") || !__builtin_cpu_supports("avx512dq")) {
    return isas;
  }
  isas.insert(Isa::kAvx512);
  const bool bf16 = __builtin_cpu_supports("avx512bf16");
  const bool vnni = __builtin_cpu_supports("avx512vnni");
  if (bf16) isas.insert(Isa::kAvx512Bf16);
  if (vnni) isas.insert(Isa::kAvx512Vnni);
  if (bf16 && __builtin_cpu_supports("avx512vbmi")) isas.insert(Isa::kAvx512Vbmi);

  // CPUID leaf 7, EDX: bit 22 amx-bf16, 24 amx-tile, 25 amx-int8 (GCC 12 has no name for them).
  unsigned eax = 7;
  unsigned ebx = 0;
  unsigned ecx = 0;
  unsigned edx = 0;
  __asm__ volatile("cpuid" : "+a"(eax), "=b"(ebx), "+c"(ecx), "=d"(edx));
  const bool tile = (edx & (1u << 24)) != 0;
  if (!tile || !request_amx_permission()) return isas;
  if (bf16 && (edx & (1u << 22)) != 0) isas.insert(Isa::kAmxBf16);
  if (vnni && (edx & (1u << 25)) != 0) isas.insert(Isa::kAmxInt8);
  return isas;
}

Isa isa_cap() {
  const char* value = std::getenv("GANTRY_MAX_ISA");
  const std::string_view cap = value == nullptr ? "amx" : value;
  if (cap == "scalar") return Isa::kScalar;
  if (cap == "avx2") return Isa::kAvx2;
  if (cap == "avx512") return Isa::kAvx512;
  if (cap == "amx") return Isa::kAmxBf16;
  fail(ErrorCode::kInvalidArgument,
       "GANTRY_MAX_ISA: expected scalar, avx2, avx512 or amx, found '{}'", cap);
}

}  // namespace

std::string_view to_string(Isa isa) noexcept {
  switch (isa) {
    case Isa::kScalar:
      return "scalar";
    case Isa::kAvx2:
      return "avx2";
    case Isa::kAvx512:
      return "avx512";
    case Isa::kAvx512Bf16:
      return "avx512_bf16";
    case Isa::kAvx512Vnni:
      return "avx512_vnni";
    case Isa::kAvx512Vbmi:
      return "avx512_vbmi";
    case Isa::kAmxBf16:
      return "amx_bf16";
    case Isa::kAmxInt8:
      return "amx_int8";
    case Isa::kAmxEmulated:
      return "amx_emulated";
  }
  return "unknown";
}

IsaSet IsaSet::capped(Isa cap) const noexcept {
  if (cap >= Isa::kAmxBf16) return *this;
  const Isa last = cap >= Isa::kAvx512 ? Isa::kAvx512Vbmi : cap;
  IsaSet result;
  for (int i = 0; i <= static_cast<int>(last); ++i) {
    if (contains(static_cast<Isa>(i))) result.insert(static_cast<Isa>(i));
  }
  return result;
}

std::string to_string(IsaSet isas) {
  std::string text;
  for (int i = 0; i <= static_cast<int>(Isa::kAmxEmulated); ++i) {
    if (!isas.contains(static_cast<Isa>(i))) continue;
    if (!text.empty()) text += ' ';
    text += to_string(static_cast<Isa>(i));
  }
  return text;
}

IsaSet detected_isas() {
  static const IsaSet isas = detect();
  return isas;
}

IsaSet host_isas() {
  static const IsaSet isas = detected_isas().capped(isa_cap());
  return isas;
}

std::string cpu_model_name() {
  std::ifstream cpuinfo("/proc/cpuinfo");
  for (std::string line; std::getline(cpuinfo, line);) {
    if (line.starts_with("model name")) {
      const size_t colon = line.find(": ");
      if (colon != std::string::npos) return line.substr(colon + 2);
    }
  }
  return "unknown CPU";
}

}  // namespace gantry
