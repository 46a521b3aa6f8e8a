// One token for each sequence of a batch.                                                   numllama/cuda/decode.py
//
// A step is recorded once and replayed, so its state is read from device memory: each sequence's slot for the new token,
// its position, and the first slot that it sees. Grids depend only on the capacity of the KV cache.
//
// rope_append       one warp per head: normalise it (QK_NORM: 1 with a gain before RoPE, 2 without one after it), rotate it,
//                   and store keys and values in their slot. Rotations preserve lengths, so both norms come first.
// attention_decode  one block per part of the keys and ROWS query heads that share them: each key is read once. LANES
//                   lanes share a key, 16 bytes each; a group of lanes takes every GROUPS-th key, UNROLL at a time.
// attention_sum     adds up the parts in order: no atomics, the same bits each time.
// Fused:            the heads' norms, RoPE and the cache's new entries take one launch, where the ops take up to five.
// Floor:            a token reads all weights once, and the keys and values that it sees.

#ifndef D
#define D 64
#endif
#ifndef ROWS
#define ROWS 1
#endif
#ifndef LANES
#define LANES 8
#endif
#ifndef QK_NORM
#define QK_NORM 0
#endif
#ifndef ROPE
#define ROPE 1  // 0: no positions in queries and keys, 1: half, 2: interleaved
#endif
#define THREADS 128
#define GROUPS (THREADS / LANES)
#define PIECES ((D + LANES * WIDTH - 1) / (LANES * WIDTH))  // vectors of a head per lane
#define UNROLL (PIECES * WIDTH > 8 ? 2 : 4)

extern "C" __global__ void __launch_bounds__(128) rope_append(
    Element* q, Element* k, Element* v, Element* __restrict__ keys, Element* __restrict__ values,
    const Real* __restrict__ q_norm, const Real* __restrict__ k_norm, const Real* __restrict__ cos, const Real* __restrict__ sin,
    const int* __restrict__ slots, const int* __restrict__ positions, const int* __restrict__ table_start,
    int H, int K, int S, int q_stride, int kv_stride, Real eps) {
  const int b = blockIdx.y, lane = threadIdx.x % 32, head = blockIdx.x * 4 + threadIdx.x / 32;
  if (head >= H + 2 * K) return;
  const bool is_q = head < H, is_k = !is_q && head < H + K;
  const int h = is_q ? head : is_k ? head - H : head - H - K, slot = slots[b];
  Element* const from = is_q ? q + Index(b) * q_stride + h * D : (is_k ? k : v) + Index(b) * kv_stride + h * D;
  Element* const to = is_q ? from : (is_k ? keys : values) + ((Index(b) * K + h) * S + slot) * D;
  if (!is_q && slot >= S) return;
  if (!is_q && !is_k) {
    for (int d = lane; d < D; d += 32) to[d] = from[d];
    return;
  }
  Real r = 1;
#if QK_NORM
  Real squares = 0;
  for (int d = lane; d < D; d += 32) squares += real(from[d]) * real(from[d]);
  r = Real(1) / sqrt(warp_sum(squares) / Real(D) + eps);
#endif
#if QK_NORM == 1
  const Real* const gain = is_q ? q_norm : k_norm;
#endif
#if ROPE
  const Index row = Index(positions[b] - *table_start) * (D / 2);
#endif
  for (int j = lane; j < (D + 1) / 2; j += 32) {
#if ROPE == 1
    const int one = j, two = j + D / 2;
#else
    const int one = 2 * j, two = 2 * j + 1;
#endif
    Real x1 = real(from[one]) * r, x2 = two < D ? real(from[two]) * r : Real(0);
#if QK_NORM == 1
    x1 *= gain[one];
    x2 *= two < D ? gain[two] : Real(0);
#endif
#if ROPE
    const Real c = cos[row + j], s = sin[row + j], y1 = x1 * c - x2 * s;
    x2 = x2 * c + x1 * s;
    x1 = y1;
#endif
    to[one] = element(x1);
    if (two < D) to[two] = element(x2);
  }
}

// The slots that sequence b sees, first <= s < last, and the number per block: as even as possible, at least 32.
struct Part { int first, last, keys; };
__device__ __forceinline__ Part part_of(const int* slots, const int* firsts, int b, int S, int window, int parts) {
  const int last = min(slots[b] + 1, S), begin = max(firsts[b], window ? last - window : 0);
  const int each = (last - begin + parts - 1) / parts;
  return {begin, last, max(32, (each + 31) / 32 * 32)};
}

// Writes `out` (B, H, D) if there is one part, else `sums` (B, H, parts, D) and `tops` (B, H, parts, 2).
extern "C" __global__ void __launch_bounds__(128, 1) attention_decode(
    Element* __restrict__ out, Real* __restrict__ sums, Real* __restrict__ tops, const Element* __restrict__ q,
    const Element* __restrict__ keys, const Element* __restrict__ values, const int* __restrict__ slots,
    const int* __restrict__ firsts, int H, int K, int S, int q_stride, int window, int parts, Real scale) {
  SHARED_MEMORY(Real, shared);                            // per group and row: D sums, the largest score, the weight
  const int R = H / K, tiles = (R + ROWS - 1) / ROWS, b = blockIdx.z, head = blockIdx.y / tiles;
  const int first_row = blockIdx.y % tiles * ROWS, rows = min(ROWS, R - first_row), part = blockIdx.x;
  const Part range = part_of(slots, firsts, b, S, window, parts);
  const int begin = range.first + part * range.keys, end = min(range.last, begin + range.keys);
  if (begin >= end) return;
  const int group = threadIdx.x / LANES, lane = threadIdx.x % LANES;
  const Index base = (Index(b) * K + head) * S * D;
  Real query[ROWS][PIECES * WIDTH], sum[ROWS][PIECES * WIDTH] = {}, top[ROWS], weight[ROWS] = {};
#pragma unroll
  for (int r = 0; r < ROWS; r++) {
    top[r] = minus_infinity();
#pragma unroll
    for (int p = 0; p < PIECES; p++) {
      const int d = (p * LANES + lane) * WIDTH;
      const Element* const from = q + Index(b) * q_stride + (head * R + first_row + min(r, rows - 1)) * D + d;
#pragma unroll
      for (int i = 0; i < WIDTH; i++) query[r][p * WIDTH + i] = d < D ? real(from[i]) * scale : Real(0);
    }
  }
  for (int start = begin; start < end; start += GROUPS * UNROLL) {  // the same for all threads: iterations have warp-wide sums
    Vector<Element, WIDTH> kv[UNROLL][PIECES];
    Real score[UNROLL][ROWS];
    const auto read = [&](const Element* from) {
#pragma unroll
      for (int u = 0; u < UNROLL; u++) {
        const int s = start + u * GROUPS + group;
#pragma unroll
        for (int p = 0; p < PIECES; p++) {
          const int d = (p * LANES + lane) * WIDTH;
          if (s < end && d < D) kv[u][p] = load<WIDTH>(from + base + Index(s) * D + d);
          else for (int i = 0; i < WIDTH; i++) kv[u][p].at[i] = element(Real(0));
        }
      }
    };
    read(keys);
#pragma unroll
    for (int u = 0; u < UNROLL; u++) {
      const bool is_there = start + u * GROUPS + group < end;
#pragma unroll
      for (int r = 0; r < ROWS; r++) {
        Real dot = 0;
#pragma unroll
        for (int p = 0; p < PIECES; p++)
#pragma unroll
          for (int i = 0; i < WIDTH; i++) dot += query[r][p * WIDTH + i] * real(kv[u][p].at[i]);
#pragma unroll
        for (int step = LANES / 2; step; step >>= 1) dot += __shfl_xor_sync(0xFFFFFFFFu, dot, step);
        score[u][r] = is_there ? dot : minus_infinity();
      }
    }
    read(values);
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
      Real most = top[r];
#pragma unroll
      for (int u = 0; u < UNROLL; u++) most = max(most, score[u][r]);
      if (start + group >= end) continue;                 // this group has no key here; NaN must stay visible
      const Real shrink = exp2(top[r] - most);
      top[r] = most;
      weight[r] *= shrink;
#pragma unroll
      for (int i = 0; i < PIECES * WIDTH; i++) sum[r][i] *= shrink;
#pragma unroll
      for (int u = 0; u < UNROLL; u++) {
        const Real w = exp2(score[u][r] - most);
        weight[r] += w;
#pragma unroll
        for (int p = 0; p < PIECES; p++)
#pragma unroll
          for (int i = 0; i < WIDTH; i++) sum[r][p * WIDTH + i] += w * real(kv[u][p].at[i]);
      }
    }
  }
#pragma unroll
  for (int r = 0; r < ROWS; r++) {
    Real* const mine = shared + (group * ROWS + r) * (D + 2);
#pragma unroll
    for (int p = 0; p < PIECES; p++)
#pragma unroll
      for (int i = 0; i < WIDTH; i++)
        if ((p * LANES + lane) * WIDTH < D) mine[(p * LANES + lane) * WIDTH + i] = sum[r][p * WIDTH + i];
    if (lane == 0) {
      mine[D] = top[r];
      mine[D + 1] = weight[r];
    }
  }
  __syncthreads();
  for (int i = threadIdx.x; i < rows * D; i += THREADS) {  // over groups, in order
    const int r = i / D, d = i % D;
    Real most = minus_infinity(), all = 0, total = 0;
    for (int g = 0; g < GROUPS; g++) most = max(most, shared[(g * ROWS + r) * (D + 2) + D]);
    for (int g = 0; g < GROUPS; g++) {
      const Real* const other = shared + (g * ROWS + r) * (D + 2);
      const Real w = other[D] == minus_infinity() ? Real(0) : exp2(other[D] - most);
      all += w * other[d];
      total += w * other[D + 1];
    }
    const Index at = Index(b) * H + head * R + first_row + r;
    if (parts == 1) {
      out[at * D + d] = element(all / total);
    } else {
      sums[(at * parts + part) * D + d] = all;
      if (d == 0) {
        tops[(at * parts + part) * 2] = most;
        tops[(at * parts + part) * 2 + 1] = total;
      }
    }
  }
}

extern "C" __global__ void __launch_bounds__(128) attention_sum(
    Element* __restrict__ out, const Real* __restrict__ sums, const Real* __restrict__ tops, const int* __restrict__ slots,
    const int* __restrict__ firsts, int H, int S, int window, int parts) {
  const int b = blockIdx.y;
  const Part range = part_of(slots, firsts, b, S, window, parts);
  const int n = (range.last - range.first + range.keys - 1) / range.keys;  // parts that are not empty
  const Index at = Index(b) * H + blockIdx.x;
  Real most = minus_infinity();
  for (int p = 0; p < n; p++) most = max(most, tops[(at * parts + p) * 2]);
  for (int d = threadIdx.x; d < D; d += blockDim.x) {
    Real all = 0, total = 0;
    for (int p = 0; p < n; p++) {
      const Real w = exp2(tops[(at * parts + p) * 2] - most);
      all += w * sums[(at * parts + p) * D + d];
      total += w * tops[(at * parts + p) * 2 + 1];
    }
    out[at * D + d] = element(all / total);
  }
}
