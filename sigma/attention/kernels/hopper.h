// What a Hopper (sm_90a) kernel needs of PTX: barriers in shared memory, the copy engine (TMA), the
// matrix instructions of a warpgroup (wgmma), and tensor maps made on the host.
//
// Tiles in shared memory. A tile of R rows and D elements lies as D / 64 panels, one behind another;
// a panel is R rows of 64 elements = 128 bytes, and the copy engine's 128-byte swizzle stores the
// 16-byte unit u of row r at unit u ^ (r % 8). Panels start at multiples of 1024 bytes.
//
// Fragments. The 128 threads of a warpgroup are 4 warps; warp w holds rows 16w .. 16w + 15 of a
// 64 x N accumulator. Its lane l holds, with r = 16w + l / 4 and c = 8j + 2 (l % 4):
//     d[4j + 0] (r, c)   d[4j + 1] (r, c + 1)   d[4j + 2] (r + 8, c)   d[4j + 3] (r + 8, c + 1)
// The operand A of 16 columns from registers has the layout of two such j, each pair packed in one
// 32-bit register. So columns 16s .. 16s + 15 of an accumulator are, packed, the operand A
//     a[i] = pack(d[8s + 2i], d[8s + 2i + 1]),  i = 0 .. 3.
#pragma once

#include <cuda.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>

namespace sigma::kernels::hopper {

// ---- host ---------------------------------------------------------------------------------------

// A tensor [outer, rows, D] of 16-bit elements, contiguous, fetched in boxes of 64 elements,
// box_rows rows and box_outer matrices. What lies outside the tensor is fetched as zero.
inline cudaError_t tensor_map(CUtensorMap* map, const void* data, bool half, int64_t D,
                              int64_t rows, int64_t outer, int box_rows, int box_outer) {
  void* entry = nullptr;
  cudaDriverEntryPointQueryResult found;
  cudaError_t error = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &entry, 12000,
                                                       cudaEnableDefault, &found);
  if (error != cudaSuccess) return error;
  if (found != cudaDriverEntryPointSuccess) return cudaErrorNotSupported;
  const cuuint64_t size[3] = {cuuint64_t(D), cuuint64_t(rows), cuuint64_t(outer)};
  const cuuint64_t stride[2] = {cuuint64_t(D * 2), cuuint64_t(rows * D * 2)};  // bytes
  const cuuint32_t box[3] = {64, cuuint32_t(box_rows), cuuint32_t(box_outer)};
  const cuuint32_t step[3] = {1, 1, 1};
  const CUresult result = reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(entry)(
      map, half ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 3,
      const_cast<void*>(data), size, stride, box, step, CU_TENSOR_MAP_INTERLEAVE_NONE,
      CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
      CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return result == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}

// ---- barriers in shared memory ------------------------------------------------------------------

// A barrier's phase ends when `count` arrivals and all announced bytes have come. Waiting for parity
// p returns once the phase of parity p has ended; phases have parities 0, 1, 0, ... so waiting for
// parity 1 of a fresh barrier returns at once.

__device__ inline uint32_t shared_address(const void* p) {
  return uint32_t(__cvta_generic_to_shared(p));
}

__device__ inline void barrier_init(uint64_t* barrier, int count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(count)
               : "memory");
}

// After the last init, by the thread that did it and before the threads' next __syncthreads: makes
// the barriers known to the copy engine.
__device__ inline void barrier_init_fence() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

__device__ inline void barrier_arrive(uint64_t* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier))
               : "memory");
}

// One arrival, which also announces bytes that the copy engine will bring.
__device__ inline void barrier_expect(uint64_t* barrier, uint32_t bytes) {
  asm volatile(
      "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)),
      "r"(bytes)
      : "memory");
}

__device__ inline void barrier_wait(uint64_t* barrier, uint32_t parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra again;\n"
      "}\n" ::"r"(shared_address(barrier)),
      "r"(parity)
      : "memory");
}

// The threads of part of a CTA meet: `threads` (a multiple of 32) of them, barrier id 1 .. 15.
__device__ inline void meet(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// Shared memory that this thread wrote or read by ordinary instructions may now be touched by wgmma
// and the copy engine (a barrier must follow where other threads' accesses matter).
__device__ inline void fence_async() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// True in one thread of the warp, always the same one; the whole warp calls it. Unlike a comparison
// of threadIdx, it lets the compiler see that what follows runs in one thread alone.
__device__ inline bool elect() {
  uint32_t chosen;
  asm volatile("{\n.reg .pred p;\nelect.sync _|p, 0xffffffff;\nselp.u32 %0, 1, 0, p;\n}\n"
               : "=r"(chosen));
  return chosen;
}

// ---- the copy engine ----------------------------------------------------------------------------

// One box, whose first element is (outer, row, element), to shared memory (128-byte aligned, with
// this swizzle 1024). One thread calls it; the bytes arrive at the barrier.
__device__ inline void tma_load(void* to, const CUtensorMap* map, uint64_t* barrier, int element,
                                int row, int outer) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%3, %4, %5}], [%2];" ::"r"(shared_address(to)),
      "l"(map), "r"(shared_address(barrier)), "r"(element), "r"(row), "r"(outer)
      : "memory");
}

__device__ inline void tma_prefetch(const CUtensorMap* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

// All D / 64 panels of a tile of `rows` rows; panels lie rows * 128 bytes apart.
template <int D>
__device__ inline void tma_load_tile(void* to, const CUtensorMap* map, uint64_t* barrier, int row,
                                     int outer, int rows = 64) {
#pragma unroll
  for (int panel = 0; panel < D / 64; ++panel)
    tma_load(static_cast<char*>(to) + panel * rows * 128, map, barrier, panel * 64, row, outer);
}

// ---- the matrix instructions --------------------------------------------------------------------

// Descriptors of an operand in shared memory. Its rows are those of the tile in memory.
//   K-major   the tile's elements are summed over: A or B^T with rows of A, or columns of B, as tile
//             rows. Step s of 16 elements starts 32 (s % 4) bytes into panel s / 4.
//   MN-major  the tile's rows are summed over (trans = 1). Step s of 16 rows starts 2048 s bytes in;
//             N > 64 reaches into the next panel, `panel` bytes away.
__device__ inline uint64_t descriptor(uint32_t address, uint32_t panel, uint32_t offset) {
  const uint32_t low = ((address & 0x3FFFF) >> 4 | (panel >> 4) << 16) + (offset >> 4);
  return uint64_t(1024 >> 4 | 1 << 30) << 32 | low;
}
// Step s of 16, tiles of `rows` rows.
__device__ inline uint64_t k_major(uint32_t tile, int s, int rows = 64) {
  return descriptor(tile, 16, (s / 4) * rows * 128 + (s % 4) * 32);
}
__device__ inline uint64_t mn_major(uint32_t tile, int s, int rows = 64) {
  return descriptor(tile, rows * 128, s * 2048);
}

// Before the first wgmma of a group, if registers it reads or adds to were written since.
__device__ inline void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ inline void wgmma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
// At most `left` groups are still under way.
template <int left>
__device__ inline void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(left) : "memory");
}
// The compiler may not move accesses to these registers across this point. Around a wgmma group.
template <int n>
__device__ inline void pin(float (&d)[n]) {
#pragma unroll
  for (int i = 0; i < n; ++i) asm volatile("" : "+f"(d[i])::"memory");
}
template <int n>
__device__ inline void pin(uint32_t (&a)[n]) {
#pragma unroll
  for (int i = 0; i < n; ++i) asm volatile("" : "+r"(a[i])::"memory");
}

// d (64 x N, N 64 or 128) = A B + (add ? d : 0), 16 summed elements, A and B of the 16-bit type T:
//   wgmma<T>(d, descriptor of A, descriptor of B, add)        A K-major in shared memory
//   wgmma<T>(d, a, descriptor of B, add)                      A in registers
//   wgmma<T, true>(...)                                       B MN-major
// It runs on its own: wgmma_fence before, wgmma_commit behind, and nothing may touch d or a until
// wgmma_wait.
template <class T, bool trans_b = false, int n, class A>
__device__ inline void wgmma(float (&d)[n], const A& a, uint64_t b, int add = 1);

// clang-format off
#define SIGMA_D8(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), \
                    "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), "+f"(d[i + 7])
#define SIGMA_OUT64 SIGMA_D8(0), SIGMA_D8(8), SIGMA_D8(16), SIGMA_D8(24)
#define SIGMA_OUT128 SIGMA_OUT64, SIGMA_D8(32), SIGMA_D8(40), SIGMA_D8(48), SIGMA_D8(56)
#define SIGMA_REG64 "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15," \
  "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
#define SIGMA_REG128 SIGMA_REG64 ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46," \
  "%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"
// i0 .. i6 number the operands behind the N / 2 registers of d.
#define SIGMA_WGMMA(N, TYPE, NAME, i0, i1, i2, i3, i4, i5, i6)                                     \
  template <int trans> __device__ inline void wgmma_of(TYPE, float (&d)[N / 2],                    \
                                                       const uint64_t& a, uint64_t b, int add) {   \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #i2 ", 0;\n"                                 \
      "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." NAME "." NAME " {" SIGMA_REG##N "}, "      \
      "%" #i0 ", %" #i1 ", p, 1, 1, 0, %" #i3 ";\n}\n"                                             \
      : SIGMA_OUT##N : "l"(a), "l"(b), "r"(add), "n"(trans));                                      \
  }                                                                                                \
  template <int trans> __device__ inline void wgmma_of(TYPE, float (&d)[N / 2],                    \
                                              const uint32_t (&a)[4], uint64_t b, int add) {       \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #i5 ", 0;\n"                                 \
      "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." NAME "." NAME " {" SIGMA_REG##N "}, "      \
      "{%" #i0 ", %" #i1 ", %" #i2 ", %" #i3 "}, %" #i4 ", p, 1, 1, %" #i6 ";\n}\n"                \
      : SIGMA_OUT##N                                                                               \
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add), "n"(trans));                 \
  }
SIGMA_WGMMA(64, __nv_bfloat16, "bf16", 32, 33, 34, 35, 36, 37, 38)
SIGMA_WGMMA(64, __half, "f16", 32, 33, 34, 35, 36, 37, 38)
SIGMA_WGMMA(128, __nv_bfloat16, "bf16", 64, 65, 66, 67, 68, 69, 70)
SIGMA_WGMMA(128, __half, "f16", 64, 65, 66, 67, 68, 69, 70)
#undef SIGMA_WGMMA
#undef SIGMA_REG128
#undef SIGMA_REG64
#undef SIGMA_OUT128
#undef SIGMA_OUT64
#undef SIGMA_D8
// clang-format on

template <class T, bool trans_b, int n, class A>
__device__ inline void wgmma(float (&d)[n], const A& a, uint64_t b, int add) {
  wgmma_of<int(trans_b)>(T(), d, a, b, add);
}

// ---- fragments ----------------------------------------------------------------------------------

// Two floats rounded to one register, `low` in the low half.
__device__ inline uint32_t pack(__nv_bfloat16, float low, float high) {
  uint32_t r;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
  return r;
}
__device__ inline uint32_t pack(__half, float low, float high) {
  uint32_t r;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
  return r;
}

// Columns 16s .. 16s + 15 of an accumulator as operand A.
template <class T, int n>
__device__ inline void pack_operand(uint32_t (&a)[4], const float (&d)[n], int s) {
#pragma unroll
  for (int i = 0; i < 4; ++i) a[i] = pack(T(), d[8 * s + 2 * i], d[8 * s + 2 * i + 1]);
}

// The operand A of a warp (its 16 rows of a tile of `rows` rows), columns 16s .. 16s + 15, read from
// shared memory: lane l names row l % 16 and the unit of 8 columns l / 16 of step s.
__device__ inline void load_operand(uint32_t (&a)[4], uint32_t tile, int s, int rows = 64) {
  const int lane = threadIdx.x % 32, row = threadIdx.x % 128 / 32 * 16 + lane % 16;
  const int unit = s % 4 * 2 + lane / 16;
  const uint32_t from = tile + (s / 4) * rows * 128 + row * 128 + ((unit ^ (row % 8)) << 4);
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(a[0]), "=r"(a[1]), "=r"(a[2]), "=r"(a[3])
               : "r"(from)
               : "memory");
}

__device__ inline float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// Registers of this warpgroup from here on (a multiple of 8); every warp of it calls this.
template <int count>
__device__ inline void more_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(count));
}
template <int count>
__device__ inline void fewer_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(count));
}

}  // namespace sigma::kernels::hopper
