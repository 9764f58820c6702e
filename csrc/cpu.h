// Which instructions this CPU and operating system offer.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace latentkv {

// Bits of cpu_bits().
enum Cpu : std::uint32_t {
  kAvx2 = 1u << 0,
  kFma = 1u << 1,
  kF16c = 1u << 2,
  kAvx512f = 1u << 3,
  kAvx512bw = 1u << 4,
  kAvx512vl = 1u << 5,
  kAvx512dq = 1u << 6,
  kAvx512Vnni = 1u << 7,
  kAvx512Bf16 = 1u << 8,
  kAvx512Fp16 = 1u << 9,
  kAvxVnni = 1u << 10,
  kAmxTile = 1u << 11,
  kAmxInt8 = 1u << 12,
  kAmxBf16 = 1u << 13,
  kNeon = 1u << 14,
  kNeonDot = 1u << 15,
  kAvx512Vbmi = 1u << 16,
};

// What may be used: the CPU has it and the operating system saves its registers. AMX also needs the kernel's permission,
// which these bits do not ask for.
std::uint32_t cpu_bits();

// Asks the kernel, once, to let this process use AMX's tile registers: false when it does not.
bool may_use_tiles();

// The same as names, for people.
std::vector<std::string> cpu_flags();

}  // namespace latentkv
