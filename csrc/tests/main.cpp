// The kernels without Python: every instruction set that was built and that this CPU has, against loops over doubles.
// csrc/README.md tells how to run it here, under the sanitizers, and for another architecture under an emulator.
#include "check.h"

using namespace latentkv;

int main() {
  int failed = 0;
  for (const Isa& isa : built_isas()) {
    if (!runs_here(isa)) {
      std::printf("%-9s not on this CPU\n", isa.name);
      continue;
    }
    test::Checks checks;
    test::test_rms_norm(isa, checks);
    test::test_write_rows(isa, checks);
    test::test_rotate_query(isa, checks);
    test::test_write_latent(isa, checks);
    test::test_project(isa, checks);
    test::test_attention(isa, checks);
    test::test_head_form(isa, checks);
    test::test_linear(isa, checks);
    test::test_attention_codes(isa, checks);
    test::test_coded_rows(isa, checks);
    std::printf("%-9s %d comparisons, %d failed\n", isa.name, checks.done, checks.failed);
    failed += checks.failed;
  }
  return failed == 0 ? 0 : 1;
}
