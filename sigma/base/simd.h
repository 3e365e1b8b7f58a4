// Kernels are written as plain loops over short arrays; the compiler makes one version an
// instruction set, chosen at load time.
#pragma once

#if defined(__x86_64__) && defined(__clang__)
#define SIGMA_MULTIVERSION \
  __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define SIGMA_MULTIVERSION
#endif
