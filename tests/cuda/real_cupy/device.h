// What the files of cuda_on_cpu share: a GPU whose memory is the host's, and whose streams are queues of functions.
#pragma once
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <utility>
#include <vector>

namespace device {

// What the tests choose before CUDA is used, and may change between its uses: see cuda_on_cpu.py.
struct Settings {
  int capability = 90;            // sm_90
  int devices = 1;
  int runtime = 13000;            // CUDA's version, as the runtime and the driver say it
  bool computes = true;           // or else launches are looked at and not run, and nothing is copied
  bool lazy = false;              // work is done as late as it may be: when somebody waits for it
  long long memory = 64LL << 30;  // of each device
};
extern Settings settings;
extern std::recursive_mutex mutex;
#define LOCKED std::lock_guard<std::recursive_mutex> locked(device::mutex)

enum Error {  // cudaError_t and CUresult
  OK = 0, INVALID_VALUE = 1, NO_MEMORY = 2, INVALID_DEVICE = 101, INVALID_IMAGE = 200, NO_BINARY = 209, NOT_FOUND = 500,
  NOT_READY = 600, ILLEGAL_ADDRESS = 700, OUT_OF_RESOURCES = 701, NOT_SUPPORTED = 801, CAPTURE_UNSUPPORTED = 900,
  CAPTURE_INVALIDATED = 901, CAPTURE_UNJOINED = 904, CAPTURE_ISOLATION = 905, CAPTURE_IMPLICIT = 906, CAPTURED_EVENT = 907,
};

struct Node { std::string kind; std::function<void()> run; };
struct Graph { std::vector<Node> nodes; bool invalid = false; };

struct Stream;
struct Op { std::function<void()> run; std::vector<std::pair<Stream*, uint64_t>> after; };
struct Stream {
  bool blocking = true;           // waits for the legacy stream, and that one for it
  int device = 0;
  std::deque<Op> queue;
  uint64_t queued = 0, done = 0;  // numbers of ops
  Graph* capture = nullptr;       // where ops go while it is captured
  bool is_origin = false;         // of the capture
  bool joined = true;             // the origin has waited for what was captured here
  int mode = 0;                   // of the capture: 0 global, 1 of this thread, 2 relaxed
};

int current_device();
Stream* resolve(Stream*);         // the handles 0, 1 and 2 stand for default streams
// Runs `run` on a stream in its turn, or records it; an error of CUDA, or 0.
int enqueue(Stream*, std::string kind, std::function<void()> run);
void drain(Stream*, uint64_t number);
void drain_all();
// Whether somebody may wait for this stream, or call what waits for the whole device (null): an error of CUDA, or 0.
int may_wait(Stream*, const char* what);
bool is_capturing(int least_strict = 2);

bool is_device_memory(const void*, size_t bytes = 1);
void count(const std::string& what, long long n = 1);
int problem(const std::string& what, int error);  // written down; returns the error

}  // namespace device
