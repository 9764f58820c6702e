#include "cpu.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif
#if defined(__x86_64__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace latentkv {
namespace {

struct Name {
  std::uint32_t bit;
  const char* name;
};

constexpr Name kNames[] = {
    {kAvx2, "avx2"},
    {kFma, "fma"},
    {kF16c, "f16c"},
    {kAvx512f, "avx512f"},
    {kAvx512bw, "avx512bw"},
    {kAvx512vl, "avx512vl"},
    {kAvx512dq, "avx512dq"},
    {kAvx512Vbmi, "avx512_vbmi"},
    {kAvx512Vnni, "avx512_vnni"},
    {kAvx512Bf16, "avx512_bf16"},
    {kAvx512Fp16, "avx512_fp16"},
    {kAvxVnni, "avx_vnni"},
    {kAmxTile, "amx_tile"},
    {kAmxInt8, "amx_int8"},
    {kAmxBf16, "amx_bf16"},
    {kNeon, "neon"},
    {kNeonDot, "neon_dot"},
};

#if defined(__x86_64__)

struct Leaf {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
};

Leaf cpuid(unsigned leaf, unsigned subleaf) {
  Leaf result;
  __get_cpuid_count(leaf, subleaf, &result.eax, &result.ebx, &result.ecx, &result.edx);
  return result;
}

// The register sets the operating system saves (XCR0), or 0 when it saves none of the extended ones.
std::uint64_t saved_registers(const Leaf& features) {
  constexpr unsigned kOsxsave = 1u << 27;
  if (!(features.ecx & kOsxsave)) return 0;
  unsigned low, high;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (static_cast<std::uint64_t>(high) << 32) | low;
}

// Bit numbers: Intel's instruction set extensions reference, CPUID leaves 1, 7.0 and 7.1.
std::uint32_t detect() {
  const Leaf features = cpuid(1, 0), extended = cpuid(7, 0), extended1 = extended.eax >= 1 ? cpuid(7, 1) : Leaf{};
  const std::uint64_t saved = saved_registers(features);
  const auto has_state = [&](std::uint64_t mask) { return (saved & mask) == mask; };
  const bool ymm = has_state(0x6), zmm = has_state(0xe6), tiles = has_state(0x60000);
  std::uint32_t bits = 0;
  const auto add = [&](bool usable, unsigned reg, int number, Cpu bit) {
    if (usable && (reg >> number & 1u)) bits |= bit;
  };
  add(ymm, extended.ebx, 5, kAvx2);
  add(ymm, features.ecx, 12, kFma);
  add(ymm, features.ecx, 29, kF16c);
  add(zmm, extended.ebx, 16, kAvx512f);
  add(zmm, extended.ebx, 30, kAvx512bw);
  add(zmm, extended.ebx, 31, kAvx512vl);
  add(zmm, extended.ebx, 17, kAvx512dq);
  add(zmm, extended.ecx, 1, kAvx512Vbmi);
  add(zmm, extended.ecx, 11, kAvx512Vnni);
  add(zmm, extended1.eax, 5, kAvx512Bf16);
  add(zmm, extended.edx, 23, kAvx512Fp16);
  add(ymm, extended1.eax, 4, kAvxVnni);
  add(tiles, extended.edx, 24, kAmxTile);
  add(tiles, extended.edx, 25, kAmxInt8);
  add(tiles, extended.edx, 22, kAmxBf16);
  return bits;
}

#elif defined(__aarch64__)

// Bit 20 is HWCAP_ASIMDDP, which older headers do not name. Every Apple CPU of 64 bits that Macs have has these dot products.
std::uint32_t detect() {
#if defined(__APPLE__)
  return kNeon | kNeonDot;
#elif defined(__linux__)
  return getauxval(AT_HWCAP) >> 20 & 1u ? kNeon | kNeonDot : kNeon;
#else
  return kNeon;
#endif
}

#else

std::uint32_t detect() { return 0; }

#endif

// Documentation/arch/x86/xstate.rst of Linux: features with large registers have to be requested.
bool request_tiles() {
#if defined(__x86_64__) && defined(__linux__)
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

}  // namespace

std::uint32_t cpu_bits() {
  static const std::uint32_t bits = detect();
  return bits;
}

bool may_use_tiles() {
  static const bool permitted = request_tiles();
  return permitted;
}

std::vector<std::string> cpu_flags() {
  std::vector<std::string> flags;
  for (const Name& entry : kNames) {
    if (cpu_bits() & entry.bit) flags.emplace_back(entry.name);
  }
  return flags;
}

}  // namespace latentkv
