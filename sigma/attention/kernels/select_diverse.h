// The diverse choices of a row's blocks (dart, max_min; sigma/attention/selection.h) by a team of
// threads. The pool is ascending; ties go to the higher score, then to the lower block, as if it
// were in the order of scores. apart[i][j] = 1 - cosine is computed in double and kept as float;
// apart[j][j] tells what block j is: 0, has a direction; -1, has none; else NaN. Device code.
#pragma once

#include "sigma/attention/kernels/select_team.h"

namespace sigma::kernels {

constexpr int kNoDirection = -1;

template <class T>
struct Diverse {
  const SelectBlocksGpu& a;
  const T& team;
  const TeamRoom& room;
  const uint32_t* key;  // [W] of the row's scores
  const float* apart;   // [W,W]
  const float* norm;    // [W]
  int own, count, n;    // the row's block, candidates, length of the list
  int pool, chosen;     // sizes

  __device__ float direction(int j) const { return apart[j * a.W + j]; }

  /// Calls f(place, block) for the open places of this thread; they keep to their threads.
  template <class F>
  __device__ void for_open(F f) const {
    for (int i = team.rank; i < pool; i += T::kSize) {
      const int j = room.pool[i];
      if (j >= 0) f(i, j);
    }
  }
  /// Closes the places of blocks that are taken or have no direction.
  __device__ void close() {
    for_open([&](int i, int j) {
      if (bit(room.taken, j) || direction(j) != 0) room.pool[i] = ~j;
    });
  }
  __device__ void take(int i, int j) {
    room.pool[i] = ~j;
    room.order[i] = __float_as_uint(-INFINITY);
    atomicOr(&room.taken[j >> 5], 1u << (j & 31));
  }

  /// Takes the open block of highest value(place, block), if it is not NaN. Returns it, or -1.
  template <class Value>
  __device__ int take_best(Value value) {
    Best mine;
    int place = 0;
    for_open([&](int i, int j) {
      Best other;
      other.value = value(i, j);
      other.key = key[j];
      other.block = isnan(other.value) ? -1 : j;
      if (!other.before(mine)) return;
      mine = other;
      place = i;
    });
    const int own_best = mine.block;
    const int j = team.best(mine, room.bins + 16).block;
    if (j < 0) return -1;
    if (j == own_best) take(place, j);
    ++chosen;
    return j;
  }

  /// Takes the `most` open blocks of highest order(block), a key; 0: not to be taken. Returns how
  /// many.
  template <class Order>
  __device__ int take_top(int most, Order order) {
    constexpr int kFew = 4;  // faster one by one
    int open = 0;
    for (int i = team.rank; i < pool; i += T::kSize) {
      const int j = room.pool[i];
      room.order[i] = j < 0 ? 0 : order(j);
      open += room.order[i] != 0;
    }
    open = team.sum(open, room.bins);
    most = min(most, open);
    if (most <= 0) return 0;
    Cut cut;
    cut.ties = most;
    if (most > kFew) {
      cut.ties = -1;
      if (most < open) cut = kth(team, room.order, pool, most, room.bins);
      const bool all = cut.ties < 0;
      for_open([&](int i, int j) {
        const uint32_t x = room.order[i];
        if (x != 0 && (x > cut.key || (x == cut.key && all))) take(i, j);
      });
      chosen += all ? most : most - cut.ties;
    }
    for (int i = 0; i < cut.ties; ++i) {  // of equal ones, by score
      take_best([&](int k, int) {
        const uint32_t x = room.order[k];
        return x == 0 || x < cut.key ? NAN : static_cast<double>(x);
      });
    }
    return most;
  }

  // Pivots in order: higher norm or score; of equal norms, forced ones first, the own before all.
  __device__ bool pivot_before(int i, int j) const {
    if (a.pivot_by_norm) {
      if (norm[i] != norm[j]) return norm[i] > norm[j];
      const bool forced_i = bit(room.forced, i), forced_j = bit(room.forced, j);
      if (forced_i != forced_j) return forced_i;
      if (forced_i && a.local_radius >= 0 && (i == own) != (j == own)) return i == own;
      if (forced_i) return i < j;
    }
    return key[i] != key[j] ? key[i] > key[j] : i < j;
  }

  __device__ void dart() {
    close();
    take_top(min(a.num_pivots, n - chosen),
             [&](int j) { return a.pivot_by_norm ? key_of(norm[j]) : max(key[j], 1u); });
    team.sync();
    // The list so far, sorted by counting who comes before.
    int32_t* pivot = reinterpret_cast<int32_t*>(room.score);
    int32_t* sorted = pivot + n;
    const int P = chosen;
    if (team.warp == 0) {
      int place = 0;
      for (int j0 = 0; j0 < count; j0 += 32) {
        const uint32_t word = room.taken[j0 >> 5];
        if (word >> team.lane & 1)
          pivot[place + __popc(word & ((1u << team.lane) - 1))] = j0 + team.lane;
        place += __popc(word);
      }
    }
    team.sync();
    for (int i = team.rank; i < P; i += T::kSize) {
      int rank = 0;
      for (int j = 0; j < P; ++j) rank += pivot_before(pivot[j], pivot[i]);
      sorted[rank] = pivot[i];
    }
    team.sync();
    const int rest = n - P;
    for (int i = 0; i < P; ++i) {
      const int share = rest / P + (i < rest % P ? 1 : 0);
      if (share == 0 || direction(sorted[i]) == kNoDirection) continue;
      const float* from = apart + sorted[i] * a.W;
      if (take_top(share, [&](int j) { return key_of(from[j]); }) < share) return;
    }
  }

  __device__ static double log_of(double x) { return x > 0 ? log(x) : -INFINITY; }

  // score + log apart of a place, in the precision that decides, and a fast estimate of it, in units
  // of log 2. room.order has the score's float, or -inf at places that are closed.
  __device__ double total(int i) const {
    return room.score[i] + (room.apart[i] == INFINITY ? 0 : log_of(room.apart[i]));
  }
  __device__ static float log2_of(float d) {
    float y;
    asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(d));
    return d == INFINITY ? 0 : y;
  }
  __device__ float estimate(int i) const {
    return __uint_as_float(room.order[i]) + log2_of(room.apart[i]);
  }

  // The highest estimates of a thread's places; -inf: none that is higher.
  struct Top {
    float first = -INFINITY, second = -INFINITY;
    int place = -1, block = -1;  // of the first
  };

  /// Block `j` is chosen (-1: none): what is nearer to it than to those before. Few instructions and
  /// no branches: this is most of the time.
  __device__ Top near(int j) {
    constexpr int kAtOnce = 4;
    const float* from = apart + max(j, 0) * a.W;
    Top top;
    for (int i0 = team.rank; i0 < pool; i0 += kAtOnce * T::kSize) {
      int block[kAtOnce];
      float score[kAtOnce], before[kAtOnce], d[kAtOnce];
#pragma unroll
      for (int k = 0; k < kAtOnce; ++k) {
        const int i = i0 + k * T::kSize;
        const bool there = i < pool;
        block[k] = there ? room.pool[i] : 0;
        before[k] = there ? room.apart[i] : 0;
        score[k] = there ? __uint_as_float(room.order[i]) : -INFINITY;
      }
#pragma unroll
      for (int k = 0; k < kAtOnce; ++k) d[k] = from[max(block[k], 0)];
#pragma unroll
      for (int k = 0; k < kAtOnce; ++k) {
        const int i = i0 + k * T::kSize;
        d[k] = j < 0 ? INFINITY : fmaxf(0.0f, d[k]);
        if (d[k] < before[k]) room.apart[i] = d[k];
        const float x = score[k] + log2_of(fminf(d[k], before[k]));
        top.second = fmaxf(top.second, fminf(x, top.first));
        top.place = x > top.first ? i : top.place;
        top.first = fmaxf(top.first, x);
      }
    }
    if (top.place >= 0) top.block = room.pool[top.place];
    return top;
  }

  static constexpr int kSeveral = -2;
  /// The block of the highest estimate; kSeveral if others are less than `error` away, or if none is
  /// above -inf (cut: where they begin). `turn`: 0 and 1 in turns, for shared memory that others may
  /// still read.
  __device__ int highest(const Top& top, float error, int turn, float& cut) const {
    float first = score_of(__reduce_max_sync(kAll, key_of(top.first)));
    cut = first - error;
    const unsigned held = __ballot_sync(kAll, top.first >= cut);
    int only = top.second >= cut ? kSeveral : top.block;
    only = __shfl_sync(kAll, only, __ffs(static_cast<int>(held)) - 1);
    if (__popc(held) > 1) only = kSeveral;
    if constexpr (T::kWarps > 1) {
      float2* all = reinterpret_cast<float2*>(room.bins) + turn * T::kWarps;
      if (team.lane == 0) all[team.warp] = {first, __int_as_float(only)};
      __syncthreads();
      float2 other[T::kWarps];
#pragma unroll
      for (int i = 0; i < T::kWarps; ++i) {
        other[i] = all[i];
        first = fmaxf(first, other[i].x);
      }
      cut = first - error;
      int near_cut = 0;
#pragma unroll
      for (int i = 0; i < T::kWarps; ++i) {
        if (other[i].x < cut) continue;
        only = __float_as_int(other[i].y);
        ++near_cut;
      }
      if (near_cut > 1) only = kSeveral;
    }
    return first == -INFINITY ? kSeveral : only;
  }

  /// Every pick is that of the highest total. Estimates leave few to look at closely, mostly one.
  __device__ void max_min() {
    close();
    float largest = 0;  // of finite scores
    for (int i = team.rank; i < pool; i += T::kSize) {
      const int j = room.pool[i];
      const double score = j < 0 || a.alpha == 0 ? 0 : a.alpha * log_of(score_of(key[j]));
      const float in_log2 = static_cast<float>(score * 1.4426950408889634);
      room.score[i] = score;
      room.apart[i] = INFINITY;  // before the first pick all are equally far
      room.order[i] = __float_as_uint(j < 0 ? -INFINITY : in_log2);
      if (isfinite(in_log2)) largest = fmaxf(largest, fabsf(in_log2));
    }
    largest = __uint_as_float(team.max(__float_as_uint(largest), room.bins));
    // An estimate errs by 2^-24 of the score, 2^-22 of the logarithm (at most 150) and 2^-24 of the
    // sum: less than 2^-21 (largest + 128). Two of them, and the difference's rounding.
    const float error = 3 * 0x1p-21f * (largest + 128);
    team.sync();
    for (int j0 = 0; j0 < count && chosen > 0; j0 += 32) {
      for (uint32_t word = room.forced[j0 >> 5]; word != 0; word &= word - 1) {
        const int j = j0 + __ffs(static_cast<int>(word)) - 1;
        if (direction(j) != kNoDirection) near(j);
      }
    }
    if (chosen == 0 && a.alpha == 0) {  // the block whose nearest neighbour is farthest
      const int first = take_best([&](int i, int j) {
        float nearest = INFINITY;
        for (int k = 0; k < pool; ++k) {
          if (k != i && room.pool[k] >= 0)
            nearest = fminf(nearest, fmaxf(0.0f, apart[j * a.W + room.pool[k]]));
        }
        return static_cast<double>(nearest);
      });
      if (first >= 0) near(first);
    }
    Top top = near(-1);
    for (int turn = 0; chosen < n; turn ^= 1) {
      float cut;
      int j = highest(top, error, turn, cut);
      if (j == kSeveral) {
        j = take_best([&](int i, int) { return estimate(i) < cut ? NAN : total(i); });
        if (j < 0) return;
      } else {
        if (j == top.block) take(top.place, j);
        ++chosen;
      }
      top = near(j);
    }
  }
};

}  // namespace sigma::kernels
