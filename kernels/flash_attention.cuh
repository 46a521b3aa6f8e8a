// Building blocks of flash attention's kernels: tilings, intervals of keys, masks, tiles in shared memory, products of tiles.

#include "common.cuh"
#include "tensor_cores.cuh"

// D, the size of a head, is any multiple of 16 bytes up to 128. Products take W columns, zeros from D on, and rows of
// tiles are PITCH elements apart.
constexpr bool PAIRS = sizeof(Element) == 2;        // two elements per register: tensor cores
constexpr bool WIDE = D > 64;
constexpr int W = (D + 15) / 16 * 16;
constexpr int PITCH = WIDE ? 128 : 64;
constexpr int PER_CHUNK = 16 / sizeof(Element);     // elements in 16 bytes
constexpr int CHUNKS = PITCH / PER_CHUNK;           // per row of a tile
constexpr float LOG2_E = 1.4426950408889634f;
#define INFINITE __int_as_float(0x7F800000)
#define LARGEST_INT 0x7FFFFFFF
static_assert(D <= 128 && D % PER_CHUNK == 0, "heads of other sizes are padded by the launcher");

// Warps per block, tiles of 16 rows per warp, rows of the other side per step, blocks per multiprocessor. The launchers in
// numllama/cuda/flash_attention.py have the same numbers.
template <int WARPS_, int M_, int STEP_, int BLOCKS_>
struct Tiling {
  enum { WARPS = WARPS_, M = M_, STEP = STEP_, BLOCKS = BLOCKS_ };
  enum { WARP_ROWS = 16 * M, ROWS = WARPS * WARP_ROWS, THREADS = 32 * WARPS };
};
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
constexpr bool THREE_FIT = false;                   // the compiler needs a few more registers there
#else
constexpr bool THREE_FIT = PAIRS && !WIDE;
#endif
constexpr bool ROOMY = SHARED_KIB >= 163;           // shared memory per block: only 99 KiB on sm_86, sm_89 and sm_120
constexpr bool TIGHT = PAIRS && WIDE && !ROOMY;
typedef Tiling<TIGHT ? 8 : 4, PAIRS && !TIGHT ? 2 : 1, PAIRS ? 48 : 32, TIGHT ? 1 : THREE_FIT ? 3 : 2> Forward;
typedef Tiling<PAIRS && WIDE ? 8 : !PAIRS && WIDE && !ROOMY ? 2 : 4, PAIRS && !WIDE ? 2 : 1,
               !PAIRS ? 16 : !WIDE ? 32 : ROOMY ? 64 : 16, WIDE ? 1 : 2> Backward;

// How the warps of backward divide a step's part of dq: 16 M queries and 16 SIXTEENS columns per warp.
struct DqTiling {
  enum { ROW_GROUPS = Backward::STEP > 16 ? 2 : 1, COLUMN_GROUPS = Backward::WARPS / ROW_GROUPS };
  enum { M = Backward::STEP / 16 / ROW_GROUPS, SIXTEENS = (W / 16 + COLUMN_GROUPS - 1) / COLUMN_GROUPS };
  enum { EVEN = SIXTEENS * COLUMN_GROUPS == W / 16 };
};


// ------------------------------------------------------------------------------------------------ intervals of keys

struct Interval { int first, last; };

// For several queries: begin..end holds every key that any of them sees, and all of them see inner_begin..inner_end.
struct __align__(16) Bounds {
  int begin, end, inner_begin, inner_end;
  __device__ __forceinline__ bool nobody_sees(int s0, int s1) const { return begin >= s1 || end <= s0; }
  __device__ __forceinline__ bool all_see(int s0, int s1) const { return inner_begin <= s0 && inner_end >= s1; }
};

// The keys within 0..S that query t sees; empty if there are none or no such query.
__device__ __forceinline__ Interval interval(const INTERVAL* first, const INTERVAL* last, int t, int T, int S) {
  if (t < T) {
    const INTERVAL begin = first[t] > 0 ? first[t] : 0, end = last[t] < S ? last[t] : S;
    if (begin < end) return {int(begin), int(end)};
  }
  return {LARGEST_INT, 0};
}

// The bounds of both sets of queries together.
__device__ __forceinline__ Bounds both(const Bounds& a, const Bounds& b) {
  return {min(a.begin, b.begin), max(a.end, b.end), max(a.inner_begin, b.inner_begin), min(a.inner_end, b.inner_end)};
}

// Bounds over the lanes of a warp, each with the interval of one query; missing queries do not affect them.
__device__ __forceinline__ Bounds warp_bounds(Interval mine, bool exists) {
  return {__reduce_min_sync(~0u, mine.first), __reduce_max_sync(~0u, mine.last),
          __reduce_max_sync(~0u, exists ? mine.first : 0), __reduce_min_sync(~0u, exists ? mine.last : LARGEST_INT)};
}

// The smallest interval that contains those of all lanes; block_union: of all warps, for every thread of the block.
__device__ __forceinline__ Interval warp_union(Interval mine) {
  return {__reduce_min_sync(~0u, mine.first), __reduce_max_sync(~0u, mine.last)};  // the compiler knows that lanes agree
}
__device__ __forceinline__ Interval interval(const Interval& of_warp) { return of_warp; }
__device__ __forceinline__ Interval interval(const Bounds& of_warp) { return {of_warp.begin, of_warp.end}; }

template <int WARPS, class OfWarp>
__device__ __forceinline__ Interval block_union(const OfWarp (&of_warp)[WARPS]) {
  __syncthreads();
  return warp_union(interval(of_warp[threadIdx.x % WARPS]));
}

// Sets hidden scores to -infinity; column 0 is key s0, and `seen` has an interval for each of the warp's rows.
template <int M, int N>
__device__ __forceinline__ void hide(float (&s)[M][N / 8][4], const Interval* seen, int s0) {
  const int lane = threadIdx.x % 32, g = lane / 4, c = lane % 4;
  #pragma unroll
  for (int m = 0; m < M; m++)
    #pragma unroll
    for (int r = 0; r < 2; r++) {
      const Interval of_row = seen[16 * m + 8 * r + g];
      const int first = of_row.first - s0 - 2 * c, last = of_row.last - s0 - 2 * c;
      #pragma unroll
      for (int n = 0; n < N / 8; n++)
        #pragma unroll
        for (int j = 0; j < 2; j++)
          if (8 * n + j < first || 8 * n + j >= last) s[m][n][2 * r + j] = -INFINITE;
    }
}

// The same if rows are keys, from s0 on, and columns are queries, from t0 on.
template <int M, int N>
__device__ __forceinline__ void hide_columns(
    float (&s)[M][N / 8][4], const INTERVAL* first, const INTERVAL* last, int t0, int T, int S, int s0) {
  const int lane = threadIdx.x % 32, g = lane / 4, c = lane % 4;
  #pragma unroll
  for (int n = 0; n < N / 8; n++)
    #pragma unroll
    for (int j = 0; j < 2; j++) {
      const Interval seen = interval(first, last, t0 + 8 * n + 2 * c + j, T, S);
      const int begin = seen.first - s0 - g, end = seen.last - s0 - g;
      #pragma unroll
      for (int m = 0; m < M; m++)
        #pragma unroll
        for (int r = 0; r < 2; r++)
          if (16 * m + 8 * r < begin || 16 * m + 8 * r >= end) s[m][n][2 * r + j] = -INFINITE;
    }
}

// Each block has its own sums of dq: (gridDim.x, B, H, steps), each in the order in which lanes hold them.
__device__ __forceinline__ float4* dq_part(float* sums, int split, int batch, int B, int head, int H, int step, int steps) {
  return reinterpret_cast<float4*>(sums) + ((((Index)split * B + batch) * H + head) * steps + step) * (Backward::STEP * W / 4);
}


// ------------------------------------------------------------------------------------------------ tiles in shared memory

// Chunk i of a row. One access reads chunk i of eight rows, from eight different groups of four banks.
template <class pointer>
__device__ __forceinline__ pointer chunk(pointer tile, int row, int i) { return tile + row * PITCH + (i ^ row % 8) * PER_CHUNK; }

// The same in a tile of scores, whose rows are N long: 2, 4 or 8 chunks.
template <int N, class pointer>
__device__ __forceinline__ pointer score_chunk(pointer tile, int row, int i) {
  constexpr int chunks = N / PER_CHUNK;
  static_assert(8 % chunks == 0, "rows that share 128 bytes begin at different chunks");
  return tile + row * N + (i ^ row / (8 / chunks) % chunks) * PER_CHUNK;
}

// The address of chunk j + i of a row from that of its chunk j < 2, for an even i: one instruction, and no extra register.
// Tiles begin at multiples of 128 bytes.
__device__ __forceinline__ unsigned further(unsigned address, int i) { return (address ^ i % 8 * 16) + i / 8 * 128; }

// Rows of global memory that a block copies into tiles, N at a time. A thread copies the same 16 bytes of some rows.
struct Rows {
  const Element* mine;                              // 16 bytes of the first row that this thread copies
  int stride;

  __device__ __forceinline__ Rows(const Element* from, int stride)
      : mine(from + (Index)(threadIdx.x / CHUNKS) * stride + threadIdx.x % CHUNKS * PER_CHUNK), stride(stride) {}

  __device__ __forceinline__ void skip(int rows) { mine += (Index)rows * stride; }

  // Copies the next N rows, without waiting; from the count-th on there are none, and the tile gets zeros. `apart` selects
  // another array with the same strides, that many elements further on.
  template <int N, int THREADS>
  __device__ __forceinline__ void load(Element* tile, int count, Index apart = 0) const {
    load<N, THREADS>(tile, Interval{0, count}, apart);
  }

  template <int N, int THREADS>
  __device__ __forceinline__ void load(Element* tile, Interval there, Index apart = 0) const {
    const int first = threadIdx.x / CHUNKS, column = threadIdx.x % CHUNKS;
    if (column * PER_CHUNK >= W) return;
    const int begin = there.first - first, end = column * PER_CHUNK < D ? there.last - first : 0;
    #pragma unroll
    for (int i = 0; i < N; i += THREADS / CHUNKS)
      copy_async_16(chunk(tile, first + i, column), mine + (Index)i * stride + apart, i >= begin && i < end);
  }
};

template <class E>
__device__ __forceinline__ void put_pair(E* p, float x, float y) { *reinterpret_cast<unsigned*>(p) = pack(x, y, E()); }
__device__ __forceinline__ void put_pair(float* p, float x, float y) { *reinterpret_cast<float2*>(p) = {x, y}; }

// Writes a warp's sums to rows of global memory through its own rows of shared memory, so that each write is 16 bytes.
template <int M>
__device__ __forceinline__ void store_rows(
    Element* to, Index stride, int count, const float (&acc)[M][W / 8][4], Element* tile) {
  const int lane = threadIdx.x % 32, g = lane / 4, c = lane % 4;
  #pragma unroll
  for (int m = 0; m < M; m++)
    #pragma unroll
    for (int n = 0; n < W / 8; n++)
      #pragma unroll
      for (int r = 0; r < 2; r++) {
        const int column = 8 * n + 2 * c;
        Element* const to_chunk = chunk(tile, 16 * m + 8 * r + g, column / PER_CHUNK);
        put_pair(to_chunk + column % PER_CHUNK, acc[m][n][2 * r], acc[m][n][2 * r + 1]);
      }
  __syncwarp();
  const int first = lane / CHUNKS, column = lane % CHUNKS;
  #pragma unroll
  for (int i = 0; i < 16 * M; i += 32 / CHUNKS) {
    const int row = first + i;
    const uint4 sixteen_bytes = *reinterpret_cast<const uint4*>(chunk(tile, row, column));
    if (row < count && column * PER_CHUNK < D) *reinterpret_cast<uint4*>(to + row * stride + column * PER_CHUNK) = sixteen_bytes;
  }
}


// ------------------------------------------------------------------------------------------------ products
//
// acc[m][n][2 r + j] is row 16 m + 8 r + g, column 8 n + 2 c + j, with g = lane / 4 and c = lane % 4: tensor_cores.cuh says why.

template <class E>
struct Product {
  // acc += a b^T: the warp's 16 M rows of a with N rows of b, over W
  template <int M, int N>
  static __device__ __forceinline__ void rows_by_rows(float (&acc)[M][N / 8][4], const E* a, const E* b) {
    const int lane = threadIdx.x % 32;
    const unsigned mine_of_a = shared_address(chunk(a, lane % 16, lane / 16));
    const unsigned mine_of_b = shared_address(chunk(b, lane % 8 + lane / 16 * 8, lane / 8 % 2));
    #pragma unroll
    for (int k = 0; k < W / 16; k++) {
      unsigned x[M][4], y[4];
      #pragma unroll
      for (int m = 0; m < M; m++) load_matrices(x[m], further(mine_of_a, 2 * k) + 16 * m * PITCH * 2);
      #pragma unroll
      for (int n = 0; n < N / 8; n += 2) {                      // eight rows of b and the next eight
        load_matrices(y, further(mine_of_b, 2 * k) + 8 * n * PITCH * 2);
        #pragma unroll
        for (int m = 0; m < M; m++) {
          multiply_add(acc[m][n], x[m], y, E());
          multiply_add(acc[m][n + 1], x[m], y + 2, E());
        }
      }
    }
  }

  // acc += s b: s from registers, rounded to E; over the N rows of b
  template <int M, int N>
  static __device__ __forceinline__ void scores_by_rows(float (&acc)[M][W / 8][4], const float (&s)[M][N / 8][4], const E* b) {
    const int lane = threadIdx.x % 32;
    const unsigned mine_of_b = shared_address(chunk(b, lane % 16, lane / 16));
    #pragma unroll
    for (int k = 0; k < N / 16; k++) {
      unsigned x[M][4], y[4];
      #pragma unroll
      for (int m = 0; m < M; m++)
        #pragma unroll
        for (int i = 0; i < 4; i++) {
          const float* pair = &s[m][2 * k + i / 2][i % 2 * 2];
          x[m][i] = pack(pair[0], pair[1], E());
        }
      #pragma unroll
      for (int n = 0; n < W / 8; n += 2) {
        load_matrices_transposed(y, further(mine_of_b, n) + 16 * k * PITCH * 2);
        #pragma unroll
        for (int m = 0; m < M; m++) {
          multiply_add(acc[m][n], x[m], y, E());
          multiply_add(acc[m][n + 1], x[m], y + 2, E());
        }
      }
    }
  }

  // acc += this warp's part of s^T b; s (keys x queries) and b are tiles in shared memory
  template <int KEYS, int STEP, int M, int N>
  static __device__ __forceinline__ void columns_by_rows(float (&acc)[M][N][4], const E* s, const E* b, int query, int sixteen) {
    const int lane = threadIdx.x % 32;
    const unsigned mine_of_s = shared_address(score_chunk<STEP>(s, lane % 8 + lane / 16 * 8, query / 8 + lane / 8 % 2));
    const unsigned mine_of_b = shared_address(chunk(b, lane % 16, 2 * sixteen + lane / 16));
    #pragma unroll 4
    for (int k = 0; k < KEYS / 16; k++) {
      unsigned x[M][4], y[4];
      #pragma unroll
      for (int m = 0; m < M; m++) load_matrices_transposed(x[m], (mine_of_s ^ 32 * m) + 16 * k * STEP * 2);
      #pragma unroll
      for (int n = 0; n < N; n += 2) {
        if (!DqTiling::EVEN && sixteen + n / 2 >= W / 16) break;
        load_matrices_transposed(y, (mine_of_b ^ 16 * n) + 16 * k * PITCH * 2);
        #pragma unroll
        for (int m = 0; m < M; m++) {
          multiply_add(acc[m][n], x[m], y, E());
          multiply_add(acc[m][n + 1], x[m], y + 2, E());
        }
      }
    }
  }
};

template <>
struct Product<float> {
  template <int M, int N>
  static __device__ __forceinline__ void rows_by_rows(float (&acc)[M][N / 8][4], const float* a, const float* b) {
    const int lane = threadIdx.x % 32, g = lane / 4, c = lane % 4;
    #pragma unroll 2
    for (int k = 0; k < W / 4; k++) {
      float4 x[M][2];
      #pragma unroll
      for (int m = 0; m < M; m++)
        #pragma unroll
        for (int r = 0; r < 2; r++) x[m][r] = *reinterpret_cast<const float4*>(chunk(a, 16 * m + 8 * r + g, k));
      #pragma unroll
      for (int n = 0; n < N / 8; n++)
        #pragma unroll
        for (int j = 0; j < 2; j++) {
          const float4 y = *reinterpret_cast<const float4*>(chunk(b, 8 * n + 2 * c + j, k));
          #pragma unroll
          for (int m = 0; m < M; m++)
            #pragma unroll
            for (int r = 0; r < 2; r++)                          // four products at a time: fewer roundings of a large sum
              acc[m][n][2 * r + j] += fmaf(x[m][r].x, y.x, fmaf(x[m][r].y, y.y, fmaf(x[m][r].z, y.z, x[m][r].w * y.w)));
        }
    }
  }

  template <int M, int N>
  static __device__ __forceinline__ void scores_by_rows(
      float (&acc)[M][W / 8][4], const float (&s)[M][N / 8][4], const float* b) {
    const int lane = threadIdx.x % 32, c = lane % 4;
    const float* const even = b + c / 2 * PER_CHUNK + c % 2 * 2;            // chunk c / 2 of row 0
    const float* const odd = b + (c / 2 ^ 1) * PER_CHUNK + c % 2 * 2;       // and of row 1, its row left out
    #pragma unroll
    for (int k = 0; k < N; k++) {
      float x[M][2];
      #pragma unroll
      for (int m = 0; m < M; m++)
        #pragma unroll
        for (int r = 0; r < 2; r++) x[m][r] = __shfl_sync(~0u, s[m][k / 8][2 * r + k % 2], lane - c + k % 8 / 2);
      #pragma unroll
      for (int n = 0; n < W / 8; n++) {
        const float2 y = *reinterpret_cast<const float2*>((k % 2 ? odd : even) + k * PITCH + (2 * n ^ k % 8 / 2 * 2) * PER_CHUNK);
        #pragma unroll
        for (int m = 0; m < M; m++)
          #pragma unroll
          for (int r = 0; r < 2; r++) {
            acc[m][n][2 * r] = fmaf(x[m][r], y.x, acc[m][n][2 * r]);
            acc[m][n][2 * r + 1] = fmaf(x[m][r], y.y, acc[m][n][2 * r + 1]);
          }
      }
    }
  }

  template <int KEYS, int STEP, int M, int N>
  static __device__ __forceinline__ void columns_by_rows(
      float (&acc)[M][N][4], const float* s, const float* b, int query, int sixteen) {
    const int lane = threadIdx.x % 32, g = lane / 4, c = lane % 4;
    #pragma unroll 2
    for (int k = 0; k < KEYS; k++) {
      float x[M][2];
      #pragma unroll
      for (int m = 0; m < M; m++)
        #pragma unroll
        for (int r = 0; r < 2; r++) x[m][r] = score_chunk<STEP>(s, k, query / 4 + 4 * m + 2 * r + g / 4)[g % 4];
      #pragma unroll
      for (int n = 0; n < N; n++) {
        if (!DqTiling::EVEN && sixteen + n / 2 >= W / 16) break;
        const float2 y = *reinterpret_cast<const float2*>(chunk(b, k, 4 * sixteen + 2 * n + c / 2) + c % 2 * 2);
        #pragma unroll
        for (int m = 0; m < M; m++)
          #pragma unroll
          for (int r = 0; r < 2; r++) {
            acc[m][n][2 * r] = fmaf(x[m][r], y.x, acc[m][n][2 * r]);
            acc[m][n][2 * r + 1] = fmaf(x[m][r], y.y, acc[m][n][2 * r + 1]);
          }
      }
    }
  }
};
