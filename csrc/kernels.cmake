# The kernels' sources and how they are compiled: for the Python module (../CMakeLists.txt) and for the kernel tests
# (tests/CMakeLists.txt), which may set KERNEL_EXTRA_OPTIONS before.

set(KERNEL_OPTIONS -O3 -Wall -Wextra -Wno-psabi -ffp-contract=fast -fno-math-errno -fno-trapping-math ${KERNEL_EXTRA_OPTIONS})
set(KERNEL_SOURCES ${CMAKE_CURRENT_LIST_DIR}/cpu.cpp ${CMAKE_CURRENT_LIST_DIR}/dispatch.cpp)

# All kernels once more, in the namespace of an instruction set, for vectors of `width` floats and with flags of its own
# (README.md says why). Families are files of their own so that a build keeps every core busy.
function(add_isa name width)
  set(here ${CMAKE_CURRENT_FUNCTION_LIST_DIR})
  add_library(kernels_${name} OBJECT ${here}/kernels/attention.cpp ${here}/kernels/linear.cpp ${here}/kernels/head_form.cpp
              ${here}/kernels/rows.cpp ${here}/kernels/table.cpp)
  set_target_properties(kernels_${name} PROPERTIES POSITION_INDEPENDENT_CODE ON CXX_VISIBILITY_PRESET hidden)
  target_include_directories(kernels_${name} PRIVATE ${here})
  target_compile_features(kernels_${name} PRIVATE cxx_std_20)
  target_compile_definitions(kernels_${name} PRIVATE LATENTKV_ISA=${name} LATENTKV_WIDTH=${width})
  target_compile_options(kernels_${name} PRIVATE ${KERNEL_OPTIONS} ${ARGN})
  target_link_libraries(kernels_${name} PRIVATE OpenMP::OpenMP_CXX)
  set(KERNEL_SOURCES ${KERNEL_SOURCES} $<TARGET_OBJECTS:kernels_${name}> PARENT_SCOPE)
endfunction()

# SSE2 on x86-64, NEON on aarch64.
add_isa(baseline 4)
if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|amd64)$")
  set(AVX2_FLAGS -mavx2 -mfma -mf16c)
  # GCC 12 warns of its own intrinsics (its bug 105593).
  set(AVX512_FLAGS ${AVX2_FLAGS} -mavx512f -mavx512bw -mavx512vl -mavx512dq -mprefer-vector-width=512
      -Wno-uninitialized -Wno-maybe-uninitialized)
  # Haswell (2013) and Zen (2017) and newer.
  add_isa(avx2 8 ${AVX2_FLAGS})
  # Skylake-SP (2017) and Zen 4 (2022) and newer.
  add_isa(avx512 16 ${AVX512_FLAGS})
  # Dot products of int8: Cascade Lake (2019), Zen 4 and newer.
  add_isa(avx512vnni 16 ${AVX512_FLAGS} -mavx512vnni)
  # Matrix tiles: Sapphire Rapids (2023) and newer.
  add_isa(amx 16 ${AVX512_FLAGS} -mavx512vbmi -mavx512vnni -mavx512bf16 -mamx-tile -mamx-bf16)
  # For tests on machines without AVX-512 and AMX: the algorithms of width 16, and those of matrix tiles on their plain twin.
  add_isa(avx2w16 16 ${AVX2_FLAGS})
  add_isa(avx2tile 16 ${AVX2_FLAGS} -DLATENTKV_PLAIN_TILES)
elseif(CMAKE_SYSTEM_PROCESSOR MATCHES "^(aarch64|arm64|ARM64)$")
  # Dot products of int8: ARMv8.2-A (Graviton 2, Apple M1) and newer.
  add_isa(neondot 4 -march=armv8.2-a+dotprod)
endif()
