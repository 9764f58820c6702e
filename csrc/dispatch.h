// The instruction sets: what each is called, what it needs of the CPU, and its kernels.
#pragma once

#include <cstdint>
#include <span>

#include "table.h"

namespace latentkv {

struct Isa {
  const char* name;
  std::uint32_t needs;  // bits of cpu.h
  const Kernels* kernels;
};

// All that were built; the first that runs here is the default.
std::span<const Isa> built_isas();

// Whether this CPU has all that `isa` needs and the operating system allows it.
bool runs_here(const Isa& isa);

}  // namespace latentkv
