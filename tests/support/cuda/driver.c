/* A libcuda for machines without a GPU: memory is the process's own, modules are shared libraries, and a launch runs
 * threads one after another. As much of the driver as Portolan calls, with its signatures. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <elf.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
typedef void (*launch_t)(void **, unsigned, unsigned);
/* STUB_GPUS is how many there are; STUB_INIT how it starts: an error's number, `hang` or `crash`. */
static int gpus(void) { return getenv("STUB_GPUS") ? atoi(getenv("STUB_GPUS")) : 1; }
int cuInit(unsigned flags) {
  const char *how = getenv("STUB_INIT");
  if (how && !strcmp(how, "hang")) for (;;) pause();
  if (how && !strcmp(how, "crash")) abort();
  return how ? atoi(how) : flags ? 1 : 0;
}
int cuDeviceGetCount(int *n) { *n = gpus(); return 0; }
int cuDeviceGet(int *device, int n) { *device = n; return n < gpus() ? 0 : 101; }
int cuDeviceTotalMem_v2(size_t *size, int device) { *size = (size_t)(device + 1) << 33; return 0; }
int cuDeviceGetAttribute(int *value, int what, int device) { *value = what == 75 ? 9 : 0; return what == 75 || what == 76 ? 0 : 1; }
int cuDevicePrimaryCtxRetain(void **context, int device) { *context = &cuInit; return device < gpus() ? 0 : 101; }
int cuCtxSetCurrent(void *context) { return context == (void *)&cuInit ? 0 : 201; }
int cuDeviceGetName(char *name, int size, int device) { snprintf(name, size, device ? "no GPU either" : "no GPU"); return 0; }
int cuDriverGetVersion(int *version) { *version = 13000; return 0; }
int cuGetErrorName(int code, const char **name) {
  *name = code == 100 ? "CUDA_ERROR_NO_DEVICE" : code == 200 ? "CUDA_ERROR_INVALID_IMAGE"
        : code == 803 ? "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH" : "CUDA_ERROR";
  return 0;
}
int cuModuleLoadData(void **module, const void *image) {
  if (memcmp(image, ELFMAG, SELFMAG)) return 200;
  const Elf64_Ehdr *head = image;
  size_t size = head->e_shoff + (size_t)head->e_shnum * head->e_shentsize;
  char path[64];
  int file = memfd_create("module", 0);
  if (write(file, image, size) != (ssize_t)size) return 2;
  snprintf(path, sizeof path, "/proc/self/fd/%d", file);
  *module = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  return *module ? 0 : 200;
}
int cuModuleGetFunction(void **function, void *module, const char *name) {
  char whole[512];
  snprintf(whole, sizeof whole, "launch_%s", name);
  *function = dlsym(module, whole);
  return *function ? 0 : 500;
}
/* Between two guards, and filled: what is not written must not look right by chance. */
int cuMemAlloc_v2(uint64_t *place, size_t size) {
  char *whole = malloc(size + 128);
  memset(whole, 0xA5, size + 128);
  memcpy(whole, &size, sizeof size);
  *place = (uint64_t)(uintptr_t)(whole + 64);
  return size ? 0 : 1;
}
int cuMemFree_v2(uint64_t place) {
  unsigned char *data = (unsigned char *)(uintptr_t)place;
  size_t size;
  memcpy(&size, data - 64, sizeof size);
  for (int i = 0; i < 48; i++) if (data[-1 - i] != 0xA5 || data[size + i] != 0xA5) abort();
  free(data - 64);
  return 0;
}
int cuMemcpyHtoD_v2(uint64_t to, const void *from, size_t size) { memcpy((void *)(uintptr_t)to, from, size); return 0; }
int cuMemcpyDtoH_v2(void *to, uint64_t from, size_t size) { memcpy(to, (void *)(uintptr_t)from, size); return 0; }
int cuCtxSynchronize(void) { return 0; }
int cuLaunchKernel(launch_t function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                   unsigned shared, void *stream, void **args, void **extra) {
  if (!gx || gy != 1 || gz != 1 || !bx || bx > 1024 || by != 1 || bz != 1 || shared || stream || extra) return 1;
  function(args, gx, bx);
  return 0;
}
