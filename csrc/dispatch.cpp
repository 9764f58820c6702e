#include "dispatch.h"

#include "cpu.h"

namespace latentkv {

namespace baseline {
extern const Kernels kernels;
}
#if defined(__x86_64__)
namespace avx2 {
extern const Kernels kernels;
}
namespace avx2w16 {
extern const Kernels kernels;
}
namespace avx2tile {
extern const Kernels kernels;
}
namespace avx512 {
extern const Kernels kernels;
}
namespace avx512vnni {
extern const Kernels kernels;
}
namespace amx {
extern const Kernels kernels;
}
#elif defined(__aarch64__)
namespace neondot {
extern const Kernels kernels;
}
#endif

namespace {

constexpr std::uint32_t kAvx512 = kAvx2 | kFma | kF16c | kAvx512f | kAvx512bw | kAvx512vl | kAvx512dq;

// The first that the CPU has is the default. Those for tests stand after baseline and so are never the default.
constexpr Isa kIsas[] = {
#if defined(__x86_64__)
    {"amx", kAvx512 | kAvx512Vbmi | kAvx512Vnni | kAvx512Bf16 | kAmxTile | kAmxBf16 | kAmxInt8, &amx::kernels},
    {"avx512vnni", kAvx512 | kAvx512Vnni, &avx512vnni::kernels},
    {"avx512", kAvx512, &avx512::kernels},
    {"avx2", kAvx2 | kFma | kF16c, &avx2::kernels},
#elif defined(__aarch64__)
    {"neondot", kNeon | kNeonDot, &neondot::kernels},
#endif
    {"baseline", 0, &baseline::kernels},
#if defined(__x86_64__)
    {"avx2w16", kAvx2 | kFma | kF16c, &avx2w16::kernels},
    {"avx2tile", kAvx2 | kFma | kF16c, &avx2tile::kernels},
#endif
};

}  // namespace

std::span<const Isa> built_isas() { return kIsas; }

bool runs_here(const Isa& isa) {
  return (cpu_bits() & isa.needs) == isa.needs && (!(isa.needs & kAmxTile) || may_use_tiles());
}

}  // namespace latentkv
