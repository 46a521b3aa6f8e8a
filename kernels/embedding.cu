// Embedding:  out[n] = weight[tokens[n]];   dweight[v] += sum of dout[n] over tokens[n] = v   numllama/ops/embedding.py
//
// Rows:    forward: blockDim.y rows per block. Backward: one block per position in the sorted tokens and piece of
//          columns; a block whose token equals the one before it exits immediately, the others add up their token's rows.
// Fused:   backward sorts (by counting, for each token, those that come before it), sums and adds to the buffer. Sums run over
//          ascending n: no atomics, the same bits each time.
// Floor:   forward reads and writes N C elements. Backward reads dout, N C elements, and updates a row for each distinct token.

typedef TOKEN Token;

// An id outside the vocabulary, which the caller should have rejected, must not become an address: its row is NaN.
extern "C" __global__ void __launch_bounds__(256) embedding_forward(
    Element* __restrict__ out, const Token* __restrict__ tokens, const Element* __restrict__ weight, int N, int V, int C) {
  const Index n = Index(blockIdx.x) * blockDim.y + threadIdx.y;
  if (n >= N) return;
  const Index token = Index(tokens[n]);
  const bool valid = token >= 0 && token < V;
  for (int c = threadIdx.x * WIDTH; c < C; c += blockDim.x * WIDTH) {
    Vector<Element, WIDTH> v;
    if (valid) v = load<WIDTH>(weight + token * C + c);
    else for (int i = 0; i < WIDTH; i++) v.at[i] = element(minus_infinity() - minus_infinity());
    store(out + n * C + c, v);
  }
}

// order[k] is the index of the k-th token in ascending order (a stable sort); sorted[k] is that token. A thread counts the
// tokens before its own: N * N comparisons, which for 16384 tokens take as long as reading a few megabytes.
extern "C" __global__ void __launch_bounds__(64) embedding_sort(int* order, int* sorted, const Token* tokens, int N) {
  __shared__ int tile[256];
  const int n = blockIdx.x * 64 + threadIdx.x, mine = n < N ? int(tokens[n]) : 0;
  int before = 0;
  for (int start = 0; start < N; start += 256) {
    const int there = min(256, N - start);
    for (int i = threadIdx.x; i < there; i += 64) tile[i] = int(tokens[start + i]);
    __syncthreads();
    for (int i = 0; i < there; i++) before += tile[i] < mine || (tile[i] == mine && start + i < n);
    __syncthreads();
  }
  if (n >= N) return;
  order[before] = n;
  sorted[before] = mine;
}

#define ROWS 8  // read together, so that latencies overlap; the 1 below lets ptxas give them all the registers they need
extern "C" __global__ void __launch_bounds__(128, 1) embedding_backward(
    Real* dweight, const Element* __restrict__ dout, const int* __restrict__ order, const int* __restrict__ sorted,
    int N, int V, int C) {
  const int first = blockIdx.x, token = sorted[first], c = (blockIdx.y * blockDim.x + threadIdx.x) * WIDTH;
  if ((first > 0 && sorted[first - 1] == token) || token < 0 || token >= V || c >= C) return;
  Real sums[WIDTH] = {};
  for (int k = first; k < N && sorted[k] == token; k += ROWS) {
    Vector<Element, WIDTH> rows[ROWS];
#pragma unroll
    for (int i = 0; i < ROWS; i++) {
      const bool mine = k + i < N && sorted[min(k + i, N - 1)] == token;
      if (mine) rows[i] = load<WIDTH>(dout + Index(order[k + i]) * C + c);
      else for (int j = 0; j < WIDTH; j++) rows[i].at[j] = element(Real(0));
    }
#pragma unroll
    for (int j = 0; j < WIDTH; j++) {  // ROWS first: a sum of short sums is more accurate than one long sum
      Real sum = 0;
#pragma unroll
      for (int i = 0; i < ROWS; i++) sum += real(rows[i].at[j]);
      sums[j] += sum;
    }
  }
  Real* const to = dweight + Index(token) * C + c;
  Vector<Real, WIDTH> old = load<WIDTH>(to);
#pragma unroll
  for (int j = 0; j < WIDTH; j++) old.at[j] += sums[j];
  store(to, old);
}
