// The forward by pieces: block_sparse_hopper_pairs.h has the equations. Unit after unit, a launch
// makes the parts and another merges them.
//
// A CTA holds K and V of a piece and takes 64 rows after 64 rows that chose it; while it works on
// some, the next are on their way. Each warp fetches and stores its own 16 rows: warps meet nowhere
// but in the matrix instructions.
//
//     copies         Q0 | Q1           | Q2           | ...      into two tiles by turns
//     tensor cores      | S0 | P0 V    | S1 | P1 V    | ...
//     parts                     | O0 / l       | O1 / l          through the tile that had their Q
#include "sigma/attention/kernels/block_sparse_hopper_pairs.h"
#include "sigma/attention/kernels/block_sparse_hopper_rows.h"

namespace sigma::kernels {
namespace {

using namespace hopper;

constexpr float kLn2 = 0.6931471805599453f;
constexpr int kMergeThreads = 256;

// Bytes from row to row of a tile: ldmatrix and the stores below meet no bank twice.
template <int D>
constexpr int kStride = 2 * D + 16;

template <class T, int D>
struct Shared {
  T k[kPiece * D], v[kPiece * D];
  char rows[2][64 * kStride<D>];  // Q, and later parts
  uint64_t full;                  // K and V are there
  int rank[kPiece];               // of the keys
  uint32_t valid[2];              // a bit a key
};

// The operand A of a warp's 16 rows, which start at `rows`: columns 16s .. 16s + 15.
template <int D>
__device__ inline void load_rows(uint32_t (&a)[4], uint32_t rows, int s) {
  const uint32_t from = rows + threadIdx.x % 16 * kStride<D> + threadIdx.x % 32 / 16 * 16 + 32 * s;
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(a[0]), "=r"(a[1]), "=r"(a[2]), "=r"(a[3])
               : "r"(from)
               : "memory");
}

// Scores of hidden pairs become -inf, as `hide`, with all that it asks of keys in shared memory.
__device__ inline void hide_rows(float (&s)[32], const int (&rank)[kPiece],
                                 const uint32_t (&valid)[2], int rank0, int rank1,
                                 uint32_t window) {
#pragma unroll
  for (int j = 0; j < 16; ++j) {
    const int column = j / 2 * 8 + threadIdx.x % 4 * 2 + j % 2;
    const bool real = valid[j / 8] >> column % 32 & 1;
    const int x = rank[column];
    float* at = s + j / 2 * 4 + j % 2;
    if (!real || uint32_t(rank0 - x) >= window) at[0] = -CUDART_INF_F;
    if (!real || uint32_t(rank1 - x) >= window) at[2] = -CUDART_INF_F;
  }
}

template <class T, int D>
__global__ void __launch_bounds__(128, 3)
    pieces_kernel(const __grid_constant__ ForwardParams p, const __grid_constant__ PairWork work,
                  int first_unit) {
  extern __shared__ __align__(1024) char memory[];
  auto& shared = *reinterpret_cast<Shared<T, D>*>(memory);
  const int unit = first_unit + blockIdx.y;
  if (unit >= work.units || blockIdx.x >= work.item_count[unit]) return;
  const BlockWalk& w = p.w;
  const int4 item = work.item[unit * work.items + blockIdx.x];
  const int bg = unit / work.strips, log_heads = __ffs(w.heads) - 1;
  const int first_query = unit % work.strips * work.strip;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int key = w.key_first[item.x], key_end = w.key_first[item.x + 1];
  if (threadIdx.x == 0) {
    barrier_init(&shared.full, 1);
    barrier_init_fence();
    barrier_expect(&shared.full, 2 * kPiece * D * 2);
    tma_load_tile<D>(shared.k, &p.k, &shared.full, key, bg);
    tma_load_tile<D>(shared.v, &p.v, &shared.full, key, bg);
  }
  if (threadIdx.x < kPiece) {
    const int at = key + threadIdx.x;
    const bool real =
        at < key_end && (!p.a.key_valid || p.a.key_valid[int64_t(bg / int(w.G)) * p.a.Nk + at]);
    shared.rank[threadIdx.x] = real && p.a.rank_q ? p.a.rank_k[at] : 0;
    const uint32_t valid = __ballot_sync(~0u, real);
    if (lane == 0) shared.valid[warp] = valid;
  }
  const bool always = key_end - key < kPiece || w.lists.any_masked;
  const int lowest = p.a.rank_q ? w.lists.piece_ranks[2 * item.x] : 0;
  const int highest = p.a.rank_q ? w.lists.piece_ranks[2 * item.x + 1] : 0;
  const uint32_t window = p.a.rank_q && p.a.window > 0 ? p.a.window : 1u << 31;
  __syncthreads();

  // Lane r < 16 has row 16 warp + r of each tile: head r % heads of pair r / heads, -1: none.
  const int32_t* pairs = work.pair + unit * work.pairs;
  const int own_row = 16 * warp + lane % 16;
  const auto pair_of = [&](int first) {
    const int at = first + (own_row >> log_heads);
    return at < item.z ? pairs[at] : -1;
  };
  const int head = own_row & (w.heads - 1);
  const auto query_of = [&](int pair) { return first_query + max(pair, 0) / work.most; };
  // 16 bytes of row 2 i + lane / 16 of the warp's, for i = 0 .. : which row, and where in it.
  constexpr int units = D / 8, rows_at_once = 32 / units;
  const int unit_row = lane / units, unit_at = lane % units;
  const auto tile_at = [&](int tile) {
    return shared_address(shared.rows[0]) + (64 * tile + 16 * warp) * kStride<D>;
  };
  const uint4* q =
      static_cast<const uint4*>(p.a.q) + int64_t(bg) * w.heads * p.a.Nq * units + unit_at;
  const auto gather = [&](int tile, int query) {
    const int from = head * int(p.a.Nq) + query;
    const uint32_t to = tile_at(tile) + unit_row * kStride<D> + unit_at * 16;
#pragma unroll
    for (int i = 0; i < 16; i += rows_at_once)
      copy<16>(to + i * kStride<D>, q + int64_t(__shfl_sync(~0u, from, i + unit_row)) * units,
               true);
    copy_commit();
  };
  const int64_t first_row = blockIdx.y * work.rows;
  uint4* parts = static_cast<uint4*>(work.part) + first_row * units + unit_at;
  float* lse = work.lse + first_row;

  const int pairs_a_tile = 64 >> log_heads;
  int pair = pair_of(item.y), query = query_of(pair);
  gather(0, query);
  int next = pair_of(item.y + pairs_a_tile);
  barrier_wait(&shared.full, 0);
#pragma unroll 1
  for (int first = item.y, tile = 0; first < item.z; first += pairs_a_tile, tile ^= 1) {
    uint32_t a[D / 16][4];
    copy_wait<0>();
    __syncwarp();
#pragma unroll
    for (int i = 0; i < D / 16; ++i) load_rows<D>(a[i], tile_at(tile), i);
    float s[32], o[D / 2];
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < D / 16; ++i) wgmma<T>(s, a[i], k_major(shared_address(shared.k), i), i > 0);
    wgmma_commit();
    // Behind the end of the list rows repeat its first query, and their parts go to a spare row.
    const int rank = p.a.rank_q ? p.a.rank_q[query] : 0;
    const int to = pair < 0 ? int(work.rows) - 1 : (pair << log_heads) + head;
    pair = next, query = query_of(pair);
    if (first + pairs_a_tile < item.z) gather(tile ^ 1, query);
    next = pair_of(first + 2 * pairs_a_tile);
    const bool hides = __any_sync(~0u, rank < highest || uint32_t(rank - lowest) >= window);
    wgmma_wait<0>();
    pin(s);
    if (always || (p.a.rank_q && hides))
      hide_rows(s, shared.rank, shared.valid, __shfl_sync(~0u, rank, lane / 4),
                __shfl_sync(~0u, rank, lane / 4 + 8), window);
    float m0 = largest(s, 0), m1 = largest(s, 1), l0 = 0, l1 = 0;
#pragma unroll
    for (int apart = 1; apart < 3; ++apart) {
      m0 = fmaxf(m0, __shfl_xor_sync(~0u, m0, apart));
      m1 = fmaxf(m1, __shfl_xor_sync(~0u, m1, apart));
    }
    m0 = fmaxf(m0, kLow) * p.c, m1 = fmaxf(m1, kLow) * p.c;  // finite where nothing is seen
    uint32_t weight[4][4];
#pragma unroll
    for (int step = 0; step < 4; ++step) {
      float* x = s + 8 * step;
#pragma unroll
      for (int i = 0; i < 8; ++i) x[i] = exp2_fast(fmaf(x[i], p.c, -(i / 2 % 2 ? m1 : m0)));
      pack_operand<T>(weight[step], s, step);
      l0 += (x[0] + x[1]) + (x[4] + x[5]);
      l1 += (x[2] + x[3]) + (x[6] + x[7]);
    }
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < 4; ++i)
      wgmma<T, true>(o, weight[i], mn_major(shared_address(shared.v), i), i > 0);
    wgmma_commit();
#pragma unroll
    for (int apart = 1; apart < 3; ++apart) {
      l0 += __shfl_xor_sync(~0u, l0, apart);
      l1 += __shfl_xor_sync(~0u, l1, apart);
    }
    const float by0 = l0 > 0 ? __fdividef(1, l0) : 0, by1 = l1 > 0 ? __fdividef(1, l1) : 0;
    const int to0 = __shfl_sync(~0u, to, lane / 4), to1 = __shfl_sync(~0u, to, lane / 4 + 8);
    if (lane % 4 == 0) {
      lse[to0] = l0 > 0 ? m0 + __log2f(l0) : -CUDART_INF_F;
      lse[to1] = l1 > 0 ? m1 + __log2f(l1) : -CUDART_INF_F;
    }
    wgmma_wait<0>();
    pin(o);
    char* staged = shared.rows[tile] + 16 * warp * kStride<D>;
    char* mine = staged + lane / 4 * kStride<D> + lane % 4 * 4;
#pragma unroll
    for (int j = 0; j < D / 8; ++j) {
      *reinterpret_cast<uint32_t*>(mine + 16 * j) = pack(T(), o[4 * j] * by0, o[4 * j + 1] * by0);
      *reinterpret_cast<uint32_t*>(mine + 8 * kStride<D> + 16 * j) =
          pack(T(), o[4 * j + 2] * by1, o[4 * j + 3] * by1);
    }
    __syncwarp();
#pragma unroll
    for (int i = 0; i < 16; i += rows_at_once)
      parts[int64_t(__shfl_sync(~0u, to, i + unit_row)) * units] =
          *reinterpret_cast<const uint4*>(staged + (i + unit_row) * kStride<D> + unit_at * 16);
    __syncwarp();  // the tile may be written again
  }
}

__device__ inline float2 floats(__nv_bfloat162 x) { return __bfloat1622float2(x); }
__device__ inline float2 floats(__half2 x) { return __half22float2(x); }

// 16 bytes if `real`, zeros if not; no branch, so that many are on their way together.
__device__ inline uint4 load_if(const uint4* from, bool real) {
  uint4 x;
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %5, 0;\nmov.b32 %0, 0;\nmov.b32 %1, 0;\nmov.b32 %2, 0;\n"
      "mov.b32 %3, 0;\n@p ld.global.v4.b32 {%0, %1, %2, %3}, [%4];\n}\n"
      : "=&r"(x.x), "=&r"(x.y), "=&r"(x.z), "=&r"(x.w)
      : "l"(from), "r"(int(real))
      : "memory");
  return x;
}

// Row r of a unit is head r % heads of its token r / heads. D / 8 lanes merge a row, 8 columns each.
template <class T, int D>
__global__ void __launch_bounds__(kMergeThreads, 4)
    merge_kernel(const __grid_constant__ ForwardParams p, const __grid_constant__ PairWork work,
                 int first_unit) {
  using Two = std::conditional_t<std::is_same_v<T, __half>, __half2, __nv_bfloat162>;
  constexpr int team = D / 8, batch = 8;
  const int unit = first_unit + blockIdx.y;
  if (unit >= work.units || work.item_count[unit] == 0) return;
  const int lane = threadIdx.x % team, log_heads = __ffs(p.w.heads) - 1;
  const int row = (blockIdx.x * kMergeThreads + threadIdx.x) / team;
  const int token = row >> log_heads, head = row & (p.w.heads - 1), bg = unit / work.strips;
  const int query = unit % work.strips * work.strip + token;
  const bool real = token < work.strip && query < p.a.Nq;
  const int64_t first =
      blockIdx.y * work.rows + (real ? (int64_t(token) * work.most << log_heads) + head : 0);
  const uint4* parts = static_cast<const uint4*>(work.part) + first * team + lane;
  float top = kLow, sum = 0, o[8] = {};
  for (int start = 0; start < work.most; start += team) {
    // A lane's lse; it is left as if no part had come, for the next unit.
    float lse = -CUDART_INF_F;
    if (real && start + lane < work.most) {
      float* at = work.lse + first + (int64_t(start + lane) << log_heads);
      lse = fmaxf(*at, lse);  // not NaN
      *at = -CUDART_INF_F;
    }
    float now = fmaxf(lse, top);
#pragma unroll
    for (int apart = team / 2; apart > 0; apart /= 2)
      now = fmaxf(now, __shfl_xor_sync(~0u, now, apart));
    const float by = exp2_fast(top - now), weight = exp2_fast(lse - now);
    top = now, sum = sum * by + weight;  // of this lane alone
#pragma unroll
    for (int j = 0; j < 8; ++j) o[j] *= by;
#pragma unroll 1
    for (int i = 0; i < team; i += batch) {
      float x[batch];
      uint4 part[batch];
#pragma unroll
      for (int j = 0; j < batch; ++j) {
        x[j] = __shfl_sync(~0u, weight, i + j, team);
        part[j] = load_if(parts + (int64_t(start + i + j) << log_heads) * team, x[j] > 0);
      }
#pragma unroll
      for (int j = 0; j < batch; ++j) {
        const uint32_t words[4] = {part[j].x, part[j].y, part[j].z, part[j].w};
#pragma unroll
        for (int c = 0; c < 4; ++c) {
          const float2 y = floats(reinterpret_cast<const Two&>(words[c]));
          o[2 * c] = fmaf(x[j], y.x, o[2 * c]), o[2 * c + 1] = fmaf(x[j], y.y, o[2 * c + 1]);
        }
      }
    }
  }
#pragma unroll
  for (int apart = team / 2; apart > 0; apart /= 2) sum += __shfl_xor_sync(~0u, sum, apart);
  if (!real) return;
  const float by = sum > 0 ? 1 / sum : 0;
  const int64_t out = (int64_t(bg) * p.w.heads + head) * p.a.Nq + query;
  if (lane == 0) p.a.lse[out] = sum > 0 ? (top + log2f(sum)) * kLn2 : -CUDART_INF_F;
  static_cast<uint4*>(p.a.out)[out * team + lane] =
      make_uint4(pack(T(), o[0] * by, o[1] * by), pack(T(), o[2] * by, o[3] * by),
                 pack(T(), o[4] * by, o[5] * by), pack(T(), o[6] * by, o[7] * by));
}

template <class T, int D>
cudaError_t launch(const ForwardParams& p, const PairWork& work, cudaStream_t stream) {
  const auto kernel = pieces_kernel<T, D>;
  const int bytes = sizeof(Shared<T, D>);
  cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  // All lse NaN: no part has come.
  if (error == cudaSuccess)
    error = cudaMemsetAsync(work.lse, 0xFF, work.at_once * work.rows * sizeof(float), stream);
  const int64_t lanes = int64_t(work.strip) * p.w.heads * (D / 8);
  const unsigned merges = (lanes + kMergeThreads - 1) / kMergeThreads;
  for (int unit = 0; unit < work.units && error == cudaSuccess; unit += work.at_once) {
    kernel<<<dim3(work.items, work.at_once), 128, bytes, stream>>>(p, work, unit);
    merge_kernel<T, D><<<dim3(merges, work.at_once), kMergeThreads, 0, stream>>>(p, work, unit);
    error = cudaGetLastError();
  }
  return error;
}

}  // namespace

cudaError_t hopper::forward_pieces(const ForwardParams& p, const PairWork& work,
                                   cudaStream_t stream) {
  if (p.a.D == 64)
    return p.a.half ? launch<__half, 64>(p, work, stream)
                    : launch<__nv_bfloat16, 64>(p, work, stream);
  return p.a.half ? launch<__half, 128>(p, work, stream)
                  : launch<__nv_bfloat16, 128>(p, work, stream);
}

}  // namespace sigma::kernels
