// How a thread block of select_score.cu divides its shared memory and its rows.
#pragma once

#include <algorithm>

#include "sigma/attention/kernels/select_team.h"

namespace sigma::kernels {

constexpr int kScoreWarps = 4;
constexpr int kScoreRows = 128;                  // of q at once
constexpr int kPieceWindows = 32 * kScoreWarps;  // windows of a step, 32 a warp
constexpr int kHistory = 64;                     // windows of the step before that blocks reach
constexpr int kRing = 2 * kPieceWindows;         // windows kept: two steps
// Distance of two queries in the ring, in floats: two of them are 8 banks, so that the 4 x 8 queries
// x windows that a warp stores at once touch all 32.
constexpr int kRingPitch = kRing + 4;

struct ScorePlan {
  int32_t queries = 0;  // token rows: of a thread block; tiles: 1, the row they are summed into
  int32_t heads = 0;    // token rows: at once
  int32_t rows = 0;     // of q in shared memory at once: (head, query), padded to 16
  int32_t pitch = 0;    // of the scores
  int32_t teams = 1;    // rows chosen at once
  bool direct = false;  // the windows are the blocks
  // Bytes from the beginning.
  int32_t ring = 0, weight = 0, tile = 0, lse = 0, seen = 0;
  int32_t room = 0;  // of the teams: over all but the scores
  int32_t bytes = 0;
};

/// For rows of q of `row_bytes`, at most `most_rows` at once. `limit`: bytes of shared memory that a
/// thread block may have; the fewer, the more of them share a multiprocessor, so that one chooses
/// while another multiplies. bytes = 0: it does not fit.
inline ScorePlan score_plan(const SelectBlocksGpu& a, int64_t row_bytes, int64_t limit,
                            int64_t most_rows) {
  const bool tiles = a.tile_start != nullptr;
  const int64_t M = a.H / a.G;
  for (int64_t queries = tiles ? 1 : 64; queries >= (tiles ? 1 : 8); queries /= 2) {
    if (!tiles && queries > 8 && (queries * M > most_rows || queries > 32)) continue;
    ScorePlan p;
    p.direct = a.stride == 0 || (a.size == a.stride && a.block == a.stride);
    p.queries = static_cast<int32_t>(queries);
    if (tiles) {
      p.rows = 16;
      while (p.rows < most_rows && p.rows < a.N / a.R * M) p.rows *= 2;
    } else {
      p.heads = static_cast<int32_t>(std::clamp<int64_t>(most_rows / queries, 1, M));
      p.rows = static_cast<int32_t>((p.heads * queries + 15) / 16 * 16);
    }
    const auto align = [](int64_t x) { return (x + 15) / 16 * 16; };
    const int64_t pitch = (a.W + 11) / 16 * 16 + 4;
    const int64_t scores = align(queries * pitch * 4);
    const int64_t ring = scores;
    const int64_t weight = ring + (p.direct ? 0 : align(queries * kRingPitch * 4));
    const int64_t tile = weight + (p.direct ? 0 : align((kHistory + 1) * 4));
    const int64_t lse = tile + p.rows * row_bytes;
    const int64_t seen = lse + align(p.rows * 4);
    const int64_t end = seen + align(queries * 4);
    const int64_t team = team_bytes(a);
    const int64_t bytes = std::max(end, scores + team);
    if (bytes > (queries > 8 ? limit / 2 : limit)) continue;
    p.pitch = static_cast<int32_t>(pitch);
    p.ring = static_cast<int32_t>(ring);
    p.weight = static_cast<int32_t>(weight);
    p.tile = static_cast<int32_t>(tile);
    p.lse = static_cast<int32_t>(lse);
    p.seen = static_cast<int32_t>(seen);
    p.room = static_cast<int32_t>(scores);
    p.teams = tiles ? 1
                    : static_cast<int32_t>(
                          std::min<int64_t>({kScoreWarps, (bytes - scores) / team, queries}));
    p.bytes = static_cast<int32_t>(bytes);
    return p;
  }
  return {};
}

}  // namespace sigma::kernels
