# Flags that every target shares.
add_library(sigma_options INTERFACE)
add_library(sigma::options ALIAS sigma_options)
# -fPIC everywhere, so that programs can use the precompiled header of the library.
# Random numbers promise equal bits everywhere: no fused multiply-add unless a kernel asks for it.
target_compile_options(sigma_options INTERFACE -fPIC -fopenmp -ffp-contract=off -Wall -Wextra)
# Clang splits vectors of 512 bits in two, and the halves of a register tile do not fit the registers.
if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
  target_compile_options(sigma_options INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-mprefer-vector-width=512>)
endif()
target_link_options(sigma_options INTERFACE -fopenmp)
if(CMAKE_CXX_COMPILER_ID STREQUAL "Clang")
  target_compile_options(sigma_options INTERFACE -Werror -Wno-unused-parameter -Wno-missing-field-initializers
    -fpch-instantiate-templates "SHELL:-Xclang -fno-pch-timestamp")
  find_program(lld NAMES ld.lld-19)
  if(lld)
    target_link_options(sigma_options INTERFACE -fuse-ld=${lld})
  endif()
else()
  target_compile_options(sigma_options INTERFACE -Wno-unused-parameter -Wno-missing-field-initializers)
endif()
find_program(ccache ccache)
if(ccache)
  set(CMAKE_CXX_COMPILER_LAUNCHER ${CMAKE_COMMAND} -E env CCACHE_SLOPPINESS=pch_defines,time_macros ${ccache})
endif()
