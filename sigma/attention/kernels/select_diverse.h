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
  /// Closes the places of blocks that are taken or have no direction. Places keep to their threads.
  __device__ void close() {
    for (int i = team.rank; i < pool; i += T::kSize) {
      const int j = room.pool[i];
      if (bit(room.taken, j) || direction(j) != 0) room.pool[i] = ~j;
    }
    team.sync();
  }

  /// Takes the open place of the pool of highest value(place, block), if it is not NaN. Returns the
  /// block, or -1.
  template <class Value>
  __device__ int take_best(Value value) {
    Best best;
    for (int i = team.rank; i < pool; i += T::kSize) {
      const int j = room.pool[i];
      if (j < 0) continue;
      Best mine;
      mine.value = value(i, j);
      mine.key = key[j];
      mine.at = isnan(mine.value) ? -1 : i;
      if (mine.before(best)) best = mine;
    }
    best = team.best(best, room.bins);
    if (best.at < 0) return -1;
    const int j = room.pool[best.at];
    team.sync();  // all have read it
    if (best.at % T::kSize == team.rank) {
      room.pool[best.at] = ~j;
      room.taken[j >> 5] |= 1u << (j & 31);
    }
    ++chosen;
    return j;
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
    for (int more = a.num_pivots; more > 0 && chosen < n; --more) {
      if (take_best([&](int, int j) { return a.pivot_by_norm ? norm[j] : 0.0; }) < 0) break;
    }
    team.sync();
    // The list so far, sorted by counting who comes before.
    int32_t* pivot = reinterpret_cast<int32_t*>(room.total);
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
      int share = rest / P + (i < rest % P ? 1 : 0);
      if (share == 0 || direction(sorted[i]) == kNoDirection) continue;
      const float* from = apart + sorted[i] * a.W;
      for (int k = team.rank; k < pool; k += T::kSize) {
        if (room.pool[k] >= 0) room.apart[k] = from[room.pool[k]];
      }
      for (; share > 0; --share) {
        if (take_best([&](int k, int) { return static_cast<double>(room.apart[k]); }) < 0) return;
      }
    }
  }

  __device__ static double log_of(double x) { return x > 0 ? log(x) : -INFINITY; }

  /// Block `j` is chosen: what is nearer to it than to those before.
  __device__ void near(int j) {
    if (direction(j) == kNoDirection) return;
    const float* from = apart + j * a.W;
    for (int i = team.rank; i < pool; i += T::kSize) {
      if (room.pool[i] < 0) continue;
      const float d = fmaxf(0.0f, from[room.pool[i]]);
      if (d >= room.apart[i]) continue;
      room.apart[i] = d;
      room.total[i] = room.score[i] + log_of(d);
    }
  }

  __device__ void max_min() {
    close();
    for (int i = team.rank; i < pool; i += T::kSize) {
      const int j = room.pool[i];
      room.score[i] = j < 0 || a.alpha == 0 ? 0 : a.alpha * log_of(score_of(key[j]));
      room.apart[i] = INFINITY;
      room.total[i] = room.score[i];  // before the first pick all are equally far
    }
    for (int j0 = 0; j0 < count && chosen > 0; j0 += 32) {
      for (uint32_t word = room.forced[j0 >> 5]; word != 0; word &= word - 1)
        near(j0 + __ffs(static_cast<int>(word)) - 1);
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
    while (chosen < n) {
      const int j = take_best([&](int i, int) { return room.total[i]; });
      if (j < 0) return;
      near(j);
    }
  }
};

}  // namespace sigma::kernels
