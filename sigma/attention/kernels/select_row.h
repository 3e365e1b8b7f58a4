// One row's list of blocks from its scores in shared memory, by a team of threads. Device code.
#pragma once

#include "sigma/attention/kernels/select_diverse.h"

namespace sigma::kernels {

/// Calls each(j) for the forced blocks j: the first ones, and those around the row's own. A block
/// may come twice.
template <class T, class Each>
__device__ void force(const SelectBlocksGpu& a, const T& team, int own, int count, Each each) {
  const auto add = [&](int j) {
    if (j < count) each(j);
  };
  for (int j = team.rank; j < a.init_blocks; j += T::kSize) add(j);
  const int r = a.local_radius;
  if (r < 0) return;
  const int f = own / (a.height * a.width), y = own / a.width % a.height, x = own % a.width;
  const int f0 = max(f - r, 0), y0 = max(y - r, 0), x0 = max(x - r, 0);
  const int F = min(f + r, a.frames - 1) - f0 + 1;
  const int Y = min(y + r, a.height - 1) - y0 + 1;
  const int X = min(x + r, a.width - 1) - x0 + 1;
  for (int i = team.rank; i < F * Y * X; i += T::kSize)
    add(((f0 + i / (Y * X)) * a.height + y0 + i / X % Y) * a.width + x0 + i % X);
}

/// The list of row `row` of the head `pair` = b G + g. `row_scores` [W] in shared memory become
/// keys; all of the team call it.
template <class T>
__device__ void choose_row(const SelectBlocksGpu& a, const T& team, const TeamRoom& room,
                           float* row_scores, int64_t pair, int64_t row) {
  const int W = static_cast<int>(a.W);
  const int own = a.own ? a.own[row] : static_cast<int>(row);
  const int count = a.causal ? min(own + 1, W) : W;
  const int n = min(static_cast<int>(a.n), count);
  const int words = static_cast<int>(mask_words(count));
  uint32_t* key = reinterpret_cast<uint32_t*>(row_scores);
  for_keys(team, key, count, [&](int j, uint32_t x) { key[j] = key_of(__uint_as_float(x)); });
  for (int i = team.rank; i < words; i += T::kSize) room.taken[i] = 0;
  team.sync();

  if (a.strategy == SelectStrategy::kTopN) {
    force(a, team, own, count, [&](int j) { key[j] = 0xffffffffu; });  // before all scores
    team.sync();
    Cut cut;
    if (n < count) cut = kth(team, key, count, n, room.bins);
    // Ties are counted from the lowest block on: by one warp.
    const int warps = cut.ties < 0 ? T::kWarps : 1;
    int seen = 0;
#pragma unroll 4
    for (int i = team.warp; i < words && team.warp < warps; i += warps) {
      const int j = 32 * i + team.lane;
      const uint32_t take = within(cut, j < count ? key[j] : 0, j < count, team.lane, seen);
      if (team.lane == 0) room.taken[i] = take;
    }
    team.sync();
  } else {
    force(a, team, own, count, [&](int j) { atomicOr(&room.taken[j >> 5], 1u << (j & 31)); });
    team.sync();
    const int forced = team.count(room.taken, words);
    for (int i = team.rank; i < words; i += T::kSize) room.forced[i] = room.taken[i];
    const int pool = static_cast<int>(pool_size(a, count));
    Cut cut;
    if (pool < count) cut = kth(team, key, count, pool, room.bins);
    if (team.warp == 0) {
      int place = 0, seen = 0;
      for (int i = 0; i < words; ++i) {
        const int j = 32 * i + team.lane;
        const uint32_t take = within(cut, j < count ? key[j] : 0, j < count, team.lane, seen);
        if (take >> team.lane & 1) room.pool[place + __popc(take & ((1u << team.lane) - 1))] = j;
        place += __popc(take);
      }
    }
    team.sync();
    Diverse<T> diverse{
        a,     team, room, key,   a.apart + pair * a.W * a.W, a.norm + pair * a.W, own,
        count, n,    pool, forced};
    if (a.strategy == SelectStrategy::kDart) diverse.dart();
    else diverse.max_min();
    team.sync();
  }

  // The bits, ascending; one lane a word.
  if (team.warp == 0) {
    const int length = min(static_cast<int>(a.n), W);
    int32_t* list = a.lists + (pair * a.R + row) * length;
    int place = 0;
    for (int i0 = 0; i0 < words; i0 += 32) {
      const int i = i0 + team.lane;
      uint32_t word = i < words ? room.taken[i] : 0;
      int end = __popc(word);
      for (int step = 1; step < 32; step *= 2) {
        const int other = __shfl_up_sync(kAll, end, step);
        if (team.lane >= step) end += other;
      }
      int at = place + end - __popc(word);
      for (; word != 0; word &= word - 1) list[at++] = 32 * i + __ffs(static_cast<int>(word)) - 1;
      place += __shfl_sync(kAll, end, 31);
    }
    for (int i = place + team.lane; i < length; i += 32) list[i] = -1;
  }
  team.sync();  // before the room is used again
}

}  // namespace sigma::kernels
