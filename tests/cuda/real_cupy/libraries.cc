// cuBLAS as CuPy's own functions call it, and NCCL, on a CPU. How the package calls cuBLAS is in emulator/cublas.cc.
#include "device.h"

#include <condition_variable>
#include <cstring>
#include <memory>

using namespace device;

enum Type { F32 = 0, F64 = 1, F16 = 2, BF16 = 14 };
static float half_to_float(uint16_t bits) { _Float16 x; memcpy(&x, &bits, 2); return float(x); }
static double read(const void* from, int type, long long i) {
  if (type == F64) return ((const double*)from)[i];
  if (type == F32) return ((const float*)from)[i];
  const uint16_t two = ((const uint16_t*)from)[i];
  if (type == F16) return half_to_float(two);
  const uint32_t bits = uint32_t(two) << 16;
  float value;
  memcpy(&value, &bits, 4);
  return value;
}
static void write(void* to, int type, long long i, double value) {
  const float single = float(value);
  uint32_t bits;
  memcpy(&bits, &single, 4);
  const _Float16 half = _Float16(single);
  if (type == F64) ((double*)to)[i] = value;
  if (type == F32) ((float*)to)[i] = single;
  if (type == F16) memcpy((uint16_t*)to + i, &half, 2);
  if (type == BF16) ((uint16_t*)to)[i] = uint16_t((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

struct Handle { Stream* stream = nullptr; int math = 0; };
struct Matrix { const void* at; int type, leading; long long stride; };

static void multiply(int ta, int tb, int m, int n, int k, double alpha, Matrix A, Matrix B, double beta, void* C, int type, int ldc,
                     long long stride, int batch) {
  for (int i = 0; i < batch; i++)
    for (int column = 0; column < n; column++)
      for (int row = 0; row < m; row++) {
        double sum = 0;
        for (int l = 0; l < k; l++)
          sum += read(A.at, A.type, i * A.stride + (ta ? row * (long long)A.leading + l : l * (long long)A.leading + row)) *
                 read(B.at, B.type, i * B.stride + (tb ? l * (long long)B.leading + column : column * (long long)B.leading + l));
        const long long at = i * stride + column * (long long)ldc + row;
        write(C, type, at, alpha * sum + (beta == 0 ? 0 : beta * read(C, type, at)));
      }
}

static double number(const void* at, int type) { return type == F64 ? *(const double*)at : *(const float*)at; }

static int product(Handle* h, const char* name, int ta, int tb, int m, int n, int k, const void* alpha, Matrix A, Matrix B, const void* beta,
                   void* C, int type, int ldc, long long stride, int batch) {
  const double a = number(alpha, A.type), b = number(beta, A.type);   // read before the call returns
  return enqueue(h->stream, name, [=] {
    if (settings.computes) multiply(ta, tb, m, n, k, a, A, B, b, C, type, ldc, stride, batch);
  }) ? 13 : 0;
}

extern "C" {

int cublasCreate(Handle** to) { return *to = new Handle, 0; }
int cublasDestroy(Handle* h) { return delete h, 0; }
int cublasGetVersion(Handle*, int* to) { return *to = settings.runtime * 10, 0; }
int cublasSetStream(Handle* h, Stream* stream) { return h->stream = stream, 0; }
int cublasGetStream(Handle* h, Stream** to) { return *to = h->stream, 0; }
int cublasSetMathMode(Handle* h, int mode) { return h->math = mode, 0; }
int cublasGetMathMode(Handle* h, int* to) { return *to = h->math, 0; }
int cublasSetPointerMode(Handle*, int) { return 0; }
int cublasGetPointerMode(Handle*, int* to) { return *to = 0, 0; }
int cublasGemmEx(Handle* h, int ta, int tb, int m, int n, int k, const void* alpha, const void* A, int at, int lda, const void* B, int bt, int ldb,
                 const void* beta, void* C, int ct, int ldc, int, int) {
  return product(h, "a product by CuPy", ta, tb, m, n, k, alpha, {A, at, lda, 0}, {B, bt, ldb, 0}, beta, C, ct, ldc, 0, 1);
}
int cublasGemmEx_v11(Handle* h, int ta, int tb, int m, int n, int k, const void* alpha, const void* A, int at, int lda, const void* B, int bt,
                     int ldb, const void* beta, void* C, int ct, int ldc, int, int) {
  return product(h, "a product by CuPy", ta, tb, m, n, k, alpha, {A, at, lda, 0}, {B, bt, ldb, 0}, beta, C, ct, ldc, 0, 1);
}
int cublasGemmStridedBatchedEx(Handle* h, int ta, int tb, int m, int n, int k, const void* alpha, const void* A, int at, int lda, long long sa,
                               const void* B, int bt, int ldb, long long sb, const void* beta, void* C, int ct, int ldc, long long sc, int batch,
                               int, int) {
  return product(h, "products by CuPy", ta, tb, m, n, k, alpha, {A, at, lda, sa}, {B, bt, ldb, sb}, beta, C, ct, ldc, sc, batch);
}
int cublasGemmStridedBatchedEx_v11(Handle* h, int ta, int tb, int m, int n, int k, const void* alpha, const void* A, int at, int lda, long long sa,
                                   const void* B, int bt, int ldb, long long sb, const void* beta, void* C, int ct, int ldc, long long sc,
                                   int batch, int, int) {
  return product(h, "products by CuPy", ta, tb, m, n, k, alpha, {A, at, lda, sa}, {B, bt, ldb, sb}, beta, C, ct, ldc, sc, batch);
}
#define GEMM(name, number, type) \
  int name##gemm(Handle* h, int ta, int tb, int m, int n, int k, const number* alpha, const number* A, int lda, const number* B, int ldb, \
                 const number* beta, number* C, int ldc) { \
    return product(h, "a product by CuPy", ta, tb, m, n, k, alpha, {A, type, lda, 0}, {B, type, ldb, 0}, beta, C, type, ldc, 0, 1); \
  } \
  int name##gemv(Handle* h, int ta, int m, int n, const number* alpha, const number* A, int lda, const number* x, int incx, const number* beta, \
                 number* y, int incy) { \
    if (incx != 1 || incy != 1) return problem("gemv with strides", 7); \
    return product(h, "a product by CuPy", ta, 0, ta ? n : m, 1, ta ? m : n, alpha, {A, type, lda, 0}, {x, type, ta ? m : n, 0}, beta, y, type, \
                   ta ? n : m, 0, 1); \
  } \
  int name##gemmBatched(Handle* h, int ta, int tb, int m, int n, int k, const number* alpha, const number** A, int lda, const number** B, int ldb, \
                        const number* beta, number** C, int ldc, int batch) { \
    const double x = *alpha, y = *beta; \
    return enqueue(h->stream, "products by CuPy, of pointers", [=] { \
      if (!settings.computes) return; \
      for (int i = 0; i < batch; i++) multiply(ta, tb, m, n, k, x, {A[i], type, lda, 0}, {B[i], type, ldb, 0}, y, C[i], type, ldc, 0, 1); \
    }) ? 13 : 0; \
  }
GEMM(cublasS, float, F32)
GEMM(cublasD, double, F64)

// ------------------------------------------------------------------------------------------------ NCCL

// Ranks are threads of this process, each with a GPU. A collective is done when the last of them has come; as in NCCL, the types
// and counts of all have to agree.
struct Id { char bytes[128]; };
struct World {
  std::mutex mutex;
  std::condition_variable changed;
  int size = 0, arrived = 0, generation = 0;
  std::vector<const void*> inputs;
  std::vector<void*> outputs;
  long long count = 0;
  int type = 0, operation = 0, root = 0;                             // 0 sum, 2 maximum, 3 minimum
  std::string kind, wrong;
};
struct Communicator { World* world; int rank, device; };
static std::map<std::string, World*> worlds;
static int made;

static size_t bytes_of(int type) { return type <= 1 ? 1 : type <= 3 ? 4 : type <= 5 ? 8 : type == 6 || type == 9 ? 2 : type == 7 ? 4 : 8; }
static int kind_of(int type) { return type == 6 ? F16 : type == 9 ? BF16 : type == 7 ? F32 : type == 8 ? F64 : -1; }

static void together(World& w) {  // once, by the last to arrive
  const int kind = kind_of(w.type);
  std::vector<double> sums(kind < 0 ? 0 : w.count);
  if (w.kind == "broadcast") {
    for (int r = 0; r < w.size; r++) memmove(w.outputs[r], w.inputs[w.root], w.count * bytes_of(w.type));
    return;
  }
  if (kind < 0) { w.wrong = "a sum of a type that is no float"; return; }
  for (long long i = 0; i < w.count; i++) {
    sums[i] = read(w.inputs[0], kind, i);
    for (int r = 1; r < w.size; r++) {
      const double x = read(w.inputs[r], kind, i);
      if (w.operation == 0) { write(&sums[i], F64, 0, sums[i] + x); float f = float(sums[i]); if (kind != F64) sums[i] = f; }
      else if (w.operation == 2 ? x > sums[i] : x < sums[i]) sums[i] = x;
    }
  }
  for (int r = 0; r < w.size; r++)
    if (w.kind != "reduce" || r == w.root) for (long long i = 0; i < w.count; i++) write(w.outputs[r], kind, i, sums[i]);
}

static int collective(Communicator* c, const std::string& kind, const void* input, void* output, size_t n, int type, int operation, int root, Stream* s) {
  {
    LOCKED;
    if (resolve(s)->capture) return problem("a collective in a capture", 1);
    if (!is_device_memory(input, n * bytes_of(type)) || !is_device_memory(output, n * bytes_of(type)))
      return problem(kind + " of what is no device memory", 4);
    if (current_device() != c->device) return problem(kind + " while another GPU is the current one", 4);
    drain(resolve(s), resolve(s)->queued);
  }
  World& w = *c->world;
  std::unique_lock<std::mutex> lock(w.mutex);
  if (w.arrived == 0) w.count = n, w.type = type, w.operation = operation, w.root = root, w.kind = kind, w.wrong.clear();
  if (w.count != (long long)n || w.type != type || w.operation != operation || w.root != root || w.kind != kind) w.wrong = "ranks disagree about " + kind;
  w.inputs[c->rank] = input;
  w.outputs[c->rank] = output;
  const int mine = w.generation;
  if (++w.arrived == w.size) {
    if (w.wrong.empty() && settings.computes) together(w);
    w.arrived = 0;
    w.generation++;
    w.changed.notify_all();
  } else {
    w.changed.wait(lock, [&] { return w.generation != mine; });
  }
  if (w.wrong.empty()) return 0;
  LOCKED;
  return problem(w.wrong, 5);
}

const char* ncclGetErrorString(int error) { return error == 4 ? "invalid argument" : error == 5 ? "invalid usage" : "unhandled system error"; }
int ncclGetVersion(int* to) { return *to = 22605, 0; }
int ncclGetUniqueId(Id* to) {
  LOCKED;
  memset(to, 0, sizeof *to);                                         // and zeros among its bytes, as a real one has them
  snprintf(to->bytes + 8, 32, "world %d", made++);
  return 0;
}
int ncclCommInitRank(Communicator** to, int size, Id id, int rank) {
  if (rank < 0 || rank >= size) return 4;
  LOCKED;
  World*& world = worlds[std::string(id.bytes, sizeof id.bytes)];
  if (!world) world = new World;
  world->size = size;
  world->inputs.resize(size);
  world->outputs.resize(size);
  return *to = new Communicator{world, rank, current_device()}, 0;
}
int ncclCommDestroy(Communicator*) { return 0; }
int ncclCommAbort(Communicator*) { return 0; }
int ncclCommCuDevice(Communicator* c, int* to) { return *to = c->device, 0; }
int ncclCommUserRank(Communicator* c, int* to) { return *to = c->rank, 0; }
int ncclCommCount(Communicator* c, int* to) { return *to = c->world->size, 0; }
int ncclCommGetAsyncError(Communicator*, int* to) { return *to = 0, 0; }
int ncclGroupStart() { return 0; }
int ncclGroupEnd() { return 0; }
int ncclAllReduce(const void* input, void* output, size_t n, int type, int operation, Communicator* c, Stream* s) {
  return collective(c, "allReduce", input, output, n, type, operation, 0, s);
}
int ncclReduce(const void* input, void* output, size_t n, int type, int operation, int root, Communicator* c, Stream* s) {
  return collective(c, "reduce", input, output, n, type, operation, root, s);
}
int ncclBroadcast(const void* input, void* output, size_t n, int type, int root, Communicator* c, Stream* s) {
  return collective(c, "broadcast", input, output, n, type, 0, root, s);
}
int ncclBcast(void* data, size_t n, int type, int root, Communicator* c, Stream* s) {
  return collective(c, "broadcast", data, data, n, type, 0, root, s);
}
}
