// What the multi-token kernels need of Hopper beside hopper.h: matrix instructions of any width with
// either operand transposed, tiles read as windows, and messages between the CTAs of a cluster.
//
// Windows. Rows of a panel (hopper.h) are 128 bytes; the swizzle goes by the address in shared memory.
// So rows s .. s + 63 of a panel are an operand like rows 0 .. 63: its descriptor starts 128 s bytes
// later. One loaded panel of 64 + R - 1 rows serves R query steps of a convolution without copies. As
// an MN-major operand B (its rows are summed over), R windows side by side are one operand of 64 R
// columns whose panels lie 128 bytes apart: panel r starts one row later than panel r - 1.
#pragma once

#include "sigma/attention/kernels/hopper.h"

namespace sigma::kernels::hopper {

// d (64 x N) = A B + (add ? d : 0) over 16 summed elements. trans_a, trans_b: the operand is MN-major
// in shared memory. A: a descriptor, or four registers (then trans_a is 0). Otherwise as
// hopper.h's wgmma.
template <class T, int N, int trans_a, int trans_b>
struct Mma;

// clang-format off
#define SIGMA_D8(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), \
                    "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), "+f"(d[i + 7])
#define SIGMA_D32(i) SIGMA_D8(i), SIGMA_D8(i + 8), SIGMA_D8(i + 16), SIGMA_D8(i + 24)
#define SIGMA_OUT64 SIGMA_D32(0)
#define SIGMA_REG64 "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15" \
  ",%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
#define SIGMA_OUT128 SIGMA_OUT64, SIGMA_D32(32)
#define SIGMA_REG128 SIGMA_REG64 \
  ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47" \
  ",%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"
#define SIGMA_OUT192 SIGMA_OUT128, SIGMA_D32(64)
#define SIGMA_REG192 SIGMA_REG128 \
  ",%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79" \
  ",%80,%81,%82,%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95"
#define SIGMA_OUT256 SIGMA_OUT192, SIGMA_D32(96)
#define SIGMA_REG256 SIGMA_REG192 \
  ",%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,%108,%109,%110,%111" \
  ",%112,%113,%114,%115,%116,%117,%118,%119,%120,%121,%122,%123,%124,%125,%126,%127"
// i0 .. i7 number the operands behind the N / 2 registers of d.
#define SIGMA_MMA(N, TYPE, NAME, i0, i1, i2, i3, i4, i5, i6)                                       \
  template <int trans_a, int trans_b> struct Mma<TYPE, N, trans_a, trans_b> {                      \
    static __device__ __forceinline__ void run(float (&d)[N / 2], uint64_t a, uint64_t b,          \
                                               int add) {                                          \
      asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #i2 ", 0;\n"                               \
        "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." NAME "." NAME " {" SIGMA_REG##N "}, "    \
        "%" #i0 ", %" #i1 ", p, 1, 1, %" #i3 ", %" #i4 ";\n}\n"                                    \
        : SIGMA_OUT##N : "l"(a), "l"(b), "r"(add), "n"(trans_a), "n"(trans_b));                    \
    }                                                                                              \
    static __device__ __forceinline__ void run(float (&d)[N / 2], const uint32_t (&a)[4],          \
                                               uint64_t b, int add) {                              \
      asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #i5 ", 0;\n"                               \
        "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." NAME "." NAME " {" SIGMA_REG##N "}, "    \
        "{%" #i0 ", %" #i1 ", %" #i2 ", %" #i3 "}, %" #i4 ", p, 1, 1, %" #i6 ";\n}\n"              \
        : SIGMA_OUT##N                                                                             \
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add), "n"(trans_b));             \
    }                                                                                              \
  };
SIGMA_MMA(64, __nv_bfloat16, "bf16", 32, 33, 34, 35, 36, 37, 38)
SIGMA_MMA(64, __half, "f16", 32, 33, 34, 35, 36, 37, 38)
SIGMA_MMA(128, __nv_bfloat16, "bf16", 64, 65, 66, 67, 68, 69, 70)
SIGMA_MMA(128, __half, "f16", 64, 65, 66, 67, 68, 69, 70)
SIGMA_MMA(192, __nv_bfloat16, "bf16", 96, 97, 98, 99, 100, 101, 102)
SIGMA_MMA(192, __half, "f16", 96, 97, 98, 99, 100, 101, 102)
SIGMA_MMA(256, __nv_bfloat16, "bf16", 128, 129, 130, 131, 132, 133, 134)
SIGMA_MMA(256, __half, "f16", 128, 129, 130, 131, 132, 133, 134)
#undef SIGMA_MMA
#undef SIGMA_REG256
#undef SIGMA_OUT256
#undef SIGMA_REG192
#undef SIGMA_OUT192
#undef SIGMA_REG128
#undef SIGMA_OUT128
#undef SIGMA_REG64
#undef SIGMA_OUT64
#undef SIGMA_D32
#undef SIGMA_D8
// clang-format on

// Rows `shift` and on of a panel at `tile`, K-major: step s (0 .. 3) of 16 elements.
__device__ inline uint64_t window_k(uint32_t tile, int shift, int s) {
  return descriptor(tile, 16, shift * 128 + s * 32);
}
// The same, MN-major: step s of 16 rows; side by side, windows one row apart.
__device__ inline uint64_t window_mn(uint32_t tile, int shift, int s) {
  return descriptor(tile, 128, shift * 128 + s * 2048);
}

// A box of 64 elements from shared memory to a tensor; what lies outside it is left out. One thread
// calls it after a fence_async of the writers and a barrier; stores_read: all shared memory of this
// thread's stores has been read.
__device__ inline void tma_store(const CUtensorMap* map, const void* from, int element, int row,
                                 int outer) {
  asm volatile(
      "cp.async.bulk.tensor.3d.global.shared::cta.bulk_group [%0, {%2, %3, %4}], [%1];" ::"l"(map),
      "r"(shared_address(from)), "r"(element), "r"(row), "r"(outer)
      : "memory");
}
__device__ inline void stores_commit() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
__device__ inline void stores_read() {
  asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory");
}

// Bytes (a multiple of 16) of contiguous global memory to shared memory, arriving at the barrier.
__device__ inline void bulk_load(void* to, const void* from, uint32_t bytes, uint64_t* barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
          "r"(shared_address(to)),
      "l"(from), "r"(bytes), "r"(shared_address(barrier))
      : "memory");
}

// Four 8 x 8 matrices of a warp to shared memory: lane l gives the address of row l % 8 of matrix
// l / 8. trans: the matrices are written transposed.
__device__ inline void store_matrices(uint32_t to, uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(a),
               "r"(b), "r"(c), "r"(d)
               : "memory");
}
__device__ inline void store_matrices_trans(uint32_t to, uint32_t a, uint32_t b, uint32_t c,
                                            uint32_t d) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(to),
               "r"(a), "r"(b), "r"(c), "r"(d)
               : "memory");
}

// ---- clusters -----------------------------------------------------------------------------------

__device__ inline uint32_t cluster_rank() {
  uint32_t rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}
// All threads of the cluster meet.
__device__ inline void cluster_meet() {
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::
                   : "memory");
}
// The address, in the cluster, of what lies at `p` in CTA `rank`.
__device__ inline uint32_t address_in(const void* p, uint32_t rank) {
  uint32_t there;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;"
               : "=r"(there)
               : "r"(shared_address(p)), "r"(rank));
  return there;
}
// One float to shared memory of the cluster; its 4 bytes arrive at the barrier beside it.
__device__ inline void send(uint32_t to, float x, uint32_t barrier) {
  asm volatile(
      "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.b32 [%0], %1, [%2];" ::"r"(to),
      "r"(__float_as_uint(x)), "r"(barrier)
      : "memory");
}
// Shared memory of this CTA to shared memory of the cluster, arriving at the barrier there.
__device__ inline void bulk_send(uint32_t to, const void* from, uint32_t bytes, uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes [%0], [%1], %2, "
      "[%3];" ::"r"(to),
      "r"(shared_address(from)), "r"(bytes), "r"(barrier)
      : "memory");
}

}  // namespace sigma::kernels::hopper
