// The door to XLA: one kernel behind its foreign function interface, its tasks shared with XLA's own threads.
//
// Before this file come: NAME, HANDLER, ENTRY (and its _tasks and _workspace), SYMBOLS, INPUTS, OUTPUTS, MOST_AXES, and
// the tables of types, ranks and axes, as for the door to ONNX Runtime.
#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <string>

#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

extern "C" {
void ENTRY(void *const *, const int64_t *, void *, int64_t, int64_t);
int64_t ENTRY_TASKS(const int64_t *);
int64_t ENTRY_WORKSPACE(const int64_t *);
}

namespace {

// One call. Helpers hold it too: one that starts late finds no part left, and nothing that is gone.
struct Call {
  void *arrays[INPUTS + OUTPUTS];
  int64_t sizes[SYMBOLS + 1];
  int64_t tasks, parts;
  size_t space;
  std::atomic<int64_t> next{0}, done{0};
  std::atomic<bool> failed{false};
  std::mutex lock;
  std::condition_variable ended;

  void Work() {
    void *place = nullptr;
    for (int64_t n; (n = next.fetch_add(1)) < parts;) {
      if (!place) place = std::aligned_alloc(64, space);
      if (place) ENTRY(arrays, sizes, place, tasks * n / parts, tasks * (n + 1) / parts);
      else failed = true;
      if (done.fetch_add(1) + 1 == parts) {
        std::lock_guard<std::mutex> held(lock);
        ended.notify_all();
      }
    }
    std::free(place);
  }
};

ffi::Error Wrong(const char *what, int input) {
  return ffi::Error(ffi::ErrorCode::kInvalidArgument,
                    std::string(NAME) + ": argument " + std::to_string(input) + ": " + what);
}

ffi::Error Run(ffi::ThreadPool pool, ffi::RemainingArgs args, ffi::RemainingRets rets) {
  auto call = std::make_shared<Call>();
  bool nothing = false;
  for (int s = 0; s < SYMBOLS; s++) call->sizes[s] = -1;
  if (args.size() != INPUTS || rets.size() != OUTPUTS) return Wrong("another number of arrays", 0);
  for (int i = 0; i < INPUTS; i++) {
    auto got = args.get<ffi::AnyBuffer>(i);
    if (!got.has_value()) return got.error();
    auto dims = got->dimensions();
    if ((int)dims.size() != input_ranks[i]) return Wrong("another number of axes than the kernel's", i);
    if ((int)got->element_type() != input_types[i]) return Wrong("another type than the kernel's", i);
    for (int d = 0; d < input_ranks[i]; d++) {
      int64_t axis = input_axes[i][d];
      if (dims[d] >= INT64_C(1) << 31) return Wrong("more than 32 bits can count", i);
      if (axis < 0 ? dims[d] != -1 - axis : call->sizes[axis] >= 0 && call->sizes[axis] != dims[d])
        return Wrong("its size differs from that of the same axis elsewhere", i);
      if (axis >= 0) call->sizes[axis] = dims[d];
    }
    call->arrays[i] = got->untyped_data();
  }
  for (int o = 0; o < OUTPUTS; o++) {
    auto made = rets.get<ffi::AnyBuffer>(o);
    if (!made.has_value()) return made.error();
    auto dims = (*made)->dimensions();
    for (auto size : dims) nothing |= size == 0;
    if ((int)dims.size() != output_ranks[o]) return Wrong("a result of another number of axes", o);
    for (int d = 0; d < output_ranks[o]; d++) {
      int64_t axis = output_axes[o][d];
      if (dims[d] != (axis < 0 ? -1 - axis : call->sizes[axis])) return Wrong("a result of another size", o);
    }
    call->arrays[INPUTS + o] = (*made)->untyped_data();
  }
  if (nothing) return ffi::Error::Success();
  for (int i = 0; i < INPUTS; i++)
    for (int d = 0; d < input_ranks[i]; d++) {
      int64_t axis = input_axes[i][d];
      if (axis >= 0 && call->sizes[axis] == 0 && !may_be_empty[axis])
        return Wrong("it is empty, and read at places that do not depend on that", i);
    }
  call->tasks = ENTRY_TASKS(call->sizes);
  call->space = ((size_t)ENTRY_WORKSPACE(call->sizes) + 127) / 64 * 64;
  call->parts = call->tasks < 64 ? call->tasks : 64;
  int64_t helpers = pool.num_threads() - 1;
  for (int64_t n = 0; n < helpers && n + 1 < call->parts; n++) pool.Schedule([call] { call->Work(); });
  call->Work();
  std::unique_lock<std::mutex> held(call->lock);
  call->ended.wait(held, [&] { return call->done.load() >= call->parts; });
  return call->failed ? ffi::Error::Internal(std::string(NAME) + ": out of memory") : ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(HANDLER, Run,
                              ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().RemainingArgs().RemainingRets());
