# The kernels' sources and how they are compiled: for the Python module (../CMakeLists.txt) and for the kernel tests
# (tests/CMakeLists.txt).

set(KERNEL_OPTIONS -O3 -Wall -Wextra -Wno-psabi -ffp-contract=fast -fno-math-errno -fno-trapping-math)
set(KERNEL_SOURCES ${CMAKE_CURRENT_LIST_DIR}/cpu.cpp ${CMAKE_CURRENT_LIST_DIR}/dispatch.cpp)

# One file per instruction set, each with its own flags and nothing else built with them (README.md says why).
function(add_isa name)
  set(file ${CMAKE_CURRENT_FUNCTION_LIST_DIR}/isa_${name}.cpp)
  set_source_files_properties(${file} PROPERTIES COMPILE_OPTIONS "${ARGN}")
  set(KERNEL_SOURCES ${KERNEL_SOURCES} ${file} PARENT_SCOPE)
endfunction()

add_isa(baseline)
if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|amd64)$")
  set(AVX2_FLAGS -mavx2 -mfma -mf16c)
  set(AVX512_FLAGS ${AVX2_FLAGS} -mavx512f -mavx512bw -mavx512vl -mavx512dq -mprefer-vector-width=512)
  add_isa(avx2 ${AVX2_FLAGS})
  add_isa(avx2w16 ${AVX2_FLAGS})
  add_isa(avx2tile ${AVX2_FLAGS})
  # GCC 12 warns of its own intrinsics (its bug 105593).
  add_isa(avx512 ${AVX512_FLAGS} -Wno-uninitialized -Wno-maybe-uninitialized)
  add_isa(avx512vnni ${AVX512_FLAGS} -mavx512vnni -Wno-uninitialized -Wno-maybe-uninitialized)
  add_isa(amx ${AVX512_FLAGS} -mavx512vbmi -mavx512vnni -mavx512bf16 -mamx-tile -mamx-bf16 -Wno-uninitialized -Wno-maybe-uninitialized)
elseif(CMAKE_SYSTEM_PROCESSOR MATCHES "^(aarch64|arm64|ARM64)$")
  add_isa(neondot -march=armv8.2-a+dotprod)
endif()
