// The CUDA driver and NVRTC on a CPU. A program is compiled by the real NVRTC; the cubin is read as a driver reads it, and each
// launch is refused where a driver would refuse it. What runs is the program's text, compiled by g++ for the emulator: emulate.py.
#include "device.h"

#include <dlfcn.h>
#include <elf.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>

using namespace device;

typedef const char* (*EmulatorLaunch)(void (*)(void**), const unsigned*, const unsigned*, unsigned long, void**, int, unsigned);
extern "C" int shared_bytes_of_a_block();

struct Function {
  std::string name;
  uint64_t program = 0;
  int static_shared = 0, registers = 0, spilled = 0, most_threads = 1024, most_dynamic = 0, asked_dynamic = 0;
  std::vector<int> parameters;    // their bytes
  void (*invoke)(void**) = nullptr;
  EmulatorLaunch launch = nullptr;
};
struct Module { std::map<std::string, Function> functions; };

static uint64_t hash(const char* at, size_t n) {  // FNV-1a
  uint64_t h = 1469598103934665603ULL;
  for (size_t i = 0; i < n; i++) h = (h ^ (unsigned char)at[i]) * 1099511628211ULL;
  return h;
}
static std::string file_of(uint64_t program, const char* folder, const char* suffix) {
  char name[64];
  snprintf(name, sizeof name, "/%016llx%s", (unsigned long long)program, suffix);
  return getenv(folder) + std::string(name);
}
static std::string text_of(uint64_t program) { return file_of(program, "CUDA_ON_CPU_TEXTS", ".cu"); }
static size_t size_of_elf(const char* base) {
  const Elf64_Ehdr* h = (const Elf64_Ehdr*)base;
  const size_t sections = h->e_shoff + size_t(h->e_shnum) * h->e_shentsize, programs = h->e_phoff + size_t(h->e_phnum) * h->e_phentsize;
  return sections > programs ? sections : programs;
}

// What .nv.info of a kernel says (as `cuobjdump -elf` shows it): launch bounds, and the bytes of each parameter.
static void read_info(Function& f, const unsigned char* at, const unsigned char* end) {
  std::map<int, int> bytes;
  while (at + 4 <= end) {
    const int format = at[0], attribute = at[1], size = format == 4 ? at[2] | at[3] << 8 : 0;
    const unsigned char* value = at + 4;
    unsigned words[3] = {};
    memcpy(words, value, size < 12 ? size : 12);
    if (attribute == 0x05 && size >= 12) f.most_threads = words[0] * words[1] * words[2];       // EIATTR_MAX_THREADS
    if (attribute == 0x17 && size >= 12) bytes[words[1] & 0xFFFF] = words[2] >> 18;             // EIATTR_KPARAM_INFO
    at = value + size;
  }
  for (auto& [ordinal, n] : bytes) f.parameters.push_back(n);
}

static int is_able(int of_binary) {  // a cubin runs on GPUs of its major version, and of its minor one or later
  return of_binary / 10 == settings.capability / 10 && of_binary <= settings.capability;
}

// Bind what runs: the program's text, compiled by g++. A sentence if that fails.
static std::string bind(Function& f) {
  if (f.launch) return "";
  const bool checked = getenv("NUMLLAMA_EMULATOR_ASAN");
  const std::string text = text_of(f.program), library = file_of(f.program, "CUDA_ON_CPU_PROGRAMS", checked ? ".asan.so" : ".so");
  if (FILE* there = fopen(library.c_str(), "r")) fclose(there);
  else if (system((std::string(getenv("CUDA_ON_CPU_EMULATE")) + " '" + text + "' '" + library + "'").c_str())) return "g++ could not compile it";
  void* opened = dlopen(library.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!opened) return dlerror();
  f.invoke = (void (*)(void**))dlsym(opened, ("invoke_" + f.name).c_str());
  f.launch = (EmulatorLaunch)dlsym(opened, "emulator_launch");
  return f.invoke && f.launch ? "" : "it is not in its library";
}

static int order = 2;             // of threads and blocks: shuffled
static unsigned seed;

extern "C" {

void device_order(int of_threads) { LOCKED; order = of_threads; }

int cuGetErrorName(int error, const char** to) {
  switch (error) {
    case INVALID_VALUE: *to = "CUDA_ERROR_INVALID_VALUE"; break;
    case NO_BINARY: *to = "CUDA_ERROR_NO_BINARY_FOR_GPU"; break;
    case NOT_FOUND: *to = "CUDA_ERROR_NOT_FOUND"; break;
    case OUT_OF_RESOURCES: *to = "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES"; break;
    case CAPTURE_INVALIDATED: *to = "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED"; break;
    default: *to = "CUDA_ERROR_UNKNOWN";
  }
  return OK;
}
int cuGetErrorString(int error, const char** to) { return *to = error == INVALID_VALUE ? "invalid argument" : "an error", OK; }
int cuCtxGetCurrent(void** to) { return *to = (void*)(uintptr_t)(current_device() + 1), OK; }
int cuCtxSetCurrent(void*) { return OK; }
int cuCtxGetDevice(int* to) { return *to = current_device(), OK; }
int cuDevicePrimaryCtxRelease(int) { return OK; }
int cuStreamGetCtx(Stream* s, void** to) { return *to = (void*)(uintptr_t)(resolve(s)->device + 1), OK; }

int cuModuleLoadData(Module** to, const void* image) {
  LOCKED;
  const char* base = (const char*)image;
  const Elf64_Ehdr* header = (const Elf64_Ehdr*)base;
  if (memcmp(header->e_ident, ELFMAG, 4)) return problem("an image that is no cubin", INVALID_IMAGE);
  const int flags = header->e_flags, binary = header->e_ident[EI_ABIVERSION] >= 8 ? flags >> 8 & 0xFF : flags & 0xFF;
  if (!is_able(binary)) return problem("a cubin for sm_" + std::to_string(binary), NO_BINARY);
  *to = new Module;
  count("modules");
  const Elf64_Shdr* sections = (const Elf64_Shdr*)(base + header->e_shoff);
  const char* names = base + sections[header->e_shstrndx].sh_offset;
  auto& functions = (*to)->functions;
  for (int i = 0; i < header->e_shnum; i++) {
    const Elf64_Shdr& section = sections[i];
    const std::string name = names + section.sh_name;
    if (name.rfind(".text.", 0) == 0) functions[name.substr(6)].registers = section.sh_info >> 24;
    if (name.rfind(".nv.shared.", 0) == 0 && name.rfind(".nv.shared.reserved", 0) != 0)
      functions[name.substr(11)].static_shared = section.sh_size - (binary >= 80 && section.sh_size >= 1024 ? 1024 : 0);
    if (name.rfind(".nv.info.", 0) == 0) {
      const unsigned char* at = (const unsigned char*)base + section.sh_offset;
      read_info(functions[name.substr(9)], at, at + section.sh_size);
    }
  }
  const uint64_t program = hash(base, size_of_elf(base));
  for (auto& [name, f] : functions) {
    f.name = name;
    f.program = program;
    f.most_dynamic = 48 * 1024 - f.static_shared;                    // without asking: 48 KiB with what is static
  }
  return OK;
}
int cuModuleLoad(Module**, const char*) { return NOT_FOUND; }
int cuModuleUnload(Module*) { return OK; }
int cuModuleGetGlobal(void**, size_t*, Module*, const char*) { return NOT_FOUND; }
int cuModuleGetFunction(Function** to, Module* module, const char* name) {
  LOCKED;
  auto found = module->functions.find(name);
  if (found == module->functions.end()) return NOT_FOUND;
  return *to = &found->second, OK;
}
int cuFuncGetAttribute(int* to, int attribute, Function* f) {
  switch (attribute) {
    case 0: *to = f->most_threads; break;
    case 1: *to = f->static_shared; break;
    case 4: *to = f->registers; break;
    case 8: *to = f->most_dynamic; break;
    default: *to = 0;
  }
  return OK;
}
int cuFuncSetAttribute(Function* f, int attribute, int value) {
  LOCKED;
  if (attribute != 8) return OK;
  if (value < 0 || f->static_shared + value > shared_bytes_of_a_block())
    return problem(f->name + " asks for " + std::to_string(f->static_shared) + " + " + std::to_string(value) + " bytes of shared memory, but sm_" +
                   std::to_string(settings.capability) + " has " + std::to_string(shared_bytes_of_a_block()), INVALID_VALUE);
  return f->most_dynamic = value, OK;
}
int cuOccupancyMaxActiveBlocksPerMultiprocessor(int* n, Function*, int, size_t) { return *n = 2, OK; }
int cuOccupancyMaxPotentialBlockSize(int* grid, int* block, Function*, void*, size_t, int) { return *grid = 132, *block = 256, OK; }

int cuLaunchKernel(Function* f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned shared, Stream* s,
                   void** arguments, void** extra) {
  LOCKED;
  const unsigned threads = bx * by * bz;
  char where[200];
  snprintf(where, sizeof where, "%.80s of grid (%u, %u, %u), block (%u, %u, %u), shared memory %d + %u", f->name.c_str(), gx, gy, gz, bx, by,
           bz, f->static_shared, shared);
  const auto refused = [&](const std::string& why, int error) { return problem(std::string(where) + ": " + why, error); };
  if (!gx || !gy || !gz || gx > 0x7FFFFFFF || gy > 65535 || gz > 65535) return refused("no such grid", INVALID_VALUE);
  if (!threads || threads > 1024 || bz > 64) return refused("no such block", INVALID_VALUE);
  if (int(threads) > f->most_threads) return refused("more threads than __launch_bounds__", INVALID_VALUE);
  if (int(shared) > f->most_dynamic) return refused("more dynamic shared memory than " + std::to_string(f->most_dynamic), INVALID_VALUE);
  if ((f->registers + 7) / 8 * 8 * ((threads + 31) / 32 * 32) > 65536) return refused("more registers than there are", OUT_OF_RESOURCES);
  if (extra || (!arguments && !f->parameters.empty())) return refused("no arguments", INVALID_VALUE);
  count("launches");
  count("kernel " + f->name);
  std::vector<std::vector<char>> values;
  for (size_t i = 0; i < f->parameters.size(); i++) values.emplace_back((char*)arguments[i], (char*)arguments[i] + f->parameters[i]);
  return enqueue(s, f->name, [=] {
    if (!settings.computes) return;
    const std::string failed = bind(*f);
    if (!failed.empty()) return (void)problem(f->name + " is not emulated: " + failed, 0);
    std::vector<void*> addresses;
    for (auto& value : values) addresses.push_back((void*)value.data());
    const unsigned grid[] = {gx, gy, gz}, block[] = {bx, by, bz};
    if (const char* error = f->launch(f->invoke, grid, block, shared, addresses.data(), order, ++seed)) problem(f->name + ": " + error, 0);
  });
}
int cuLaunchCooperativeKernel(Function*, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, Stream*, void**) { return NOT_SUPPORTED; }

// ------------------------------------------------------------------------------------------------ NVRTC

static void* real(const char* name) {
  static void* library = dlopen(getenv("CUDA_ON_CPU_NVRTC"), RTLD_NOW | RTLD_LOCAL);
  if (!library) fprintf(stderr, "no NVRTC: %s\n", dlerror()), abort();
  return dlsym(library, name);
}
#define FORWARD(result, name, parameters, arguments) result name parameters { return ((result (*) parameters)real(#name)) arguments; }
FORWARD(const char*, nvrtcGetErrorString, (int error), (error))
FORWARD(int, nvrtcVersion, (int* major, int* minor), (major, minor))
FORWARD(int, nvrtcDestroyProgram, (void** program), (program))
FORWARD(int, nvrtcGetPTXSize, (void* program, size_t* n), (program, n))
FORWARD(int, nvrtcGetPTX, (void* program, char* to), (program, to))
FORWARD(int, nvrtcGetCUBINSize, (void* program, size_t* n), (program, n))
FORWARD(int, nvrtcGetProgramLogSize, (void* program, size_t* n), (program, n))
FORWARD(int, nvrtcGetProgramLog, (void* program, char* to), (program, to))
FORWARD(int, nvrtcAddNameExpression, (void* program, const char* name), (program, name))
FORWARD(int, nvrtcGetLoweredName, (void* program, const char* name, const char** to), (program, name, to))
FORWARD(int, nvrtcGetNumSupportedArchs, (int* n), (n))
FORWARD(int, nvrtcGetSupportedArchs, (int* to), (to))
static std::map<void*, std::string> texts;
int nvrtcCreateProgram(void** program, const char* text, const char* name, int n, const char** headers, const char** names) {
  const int error = ((int (*)(void**, const char*, const char*, int, const char**, const char**))real("nvrtcCreateProgram"))(program, text, name, n, headers, names);
  LOCKED;
  texts[*program] = text;
  count("programs compiled");
  return error;
}
FORWARD(int, nvrtcCompileProgram, (void* program, int n, const char** options), (program, n, options))
int nvrtcGetCUBIN(void* program, char* to) {  // and its text is kept under its hash: CuPy keeps cubins on disk, and loads them from there
  const int error = ((int (*)(void*, char*))real("nvrtcGetCUBIN"))(program, to);
  size_t n = 0;
  nvrtcGetCUBINSize(program, &n);
  LOCKED;
  const std::string made = text_of(hash(to, size_of_elf(to))), part = made + "." + std::to_string((unsigned long long)to);
  if (FILE* file = fopen(part.c_str(), "w")) {
    fputs(texts[program].c_str(), file);
    fclose(file);
    rename(part.c_str(), made.c_str());
  }
  return error;
}
}
