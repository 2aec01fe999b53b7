/* The door to ONNX Runtime: one kernel as an operator of a domain, its tasks on the session's own threads.

   Of ONNX Runtime's C interface only what is used is declared here, by its place in the table of functions, which is
   fixed for all versions from the one that is asked for (17 is the first that shares work among threads).

   Where the kernel's code defines STAGED, it can also be run as stages that follow each other's results, all at once:
   ENTRY_stages says how many there are for some sizes (0 for none), and ENTRY_shared how much memory they share.

   Before this file come the kernel's code and: NAME, ENTRY (a function), DOMAIN_NAME, SYMBOLS (their number), INPUTS,
   OUTPUTS, MOST_AXES, input_types, input_ranks, input_axes (a symbol's number, or -1 - size), and the same of outputs. */
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>

typedef struct OrtStatus OrtStatus;
typedef struct OrtValue OrtValue;
typedef struct { const void *const *(*GetApi)(uint32_t); const char *(*GetVersionString)(void); } OrtApiBase;
typedef struct OrtCustomOp OrtCustomOp;
struct OrtCustomOp {
  uint32_t version;
  void *(*CreateKernel)(const OrtCustomOp *, const void *, const void *);
  const char *(*GetName)(const OrtCustomOp *);
  const char *(*GetExecutionProviderType)(const OrtCustomOp *);
  int (*GetInputType)(const OrtCustomOp *, size_t);
  size_t (*GetInputTypeCount)(const OrtCustomOp *);
  int (*GetOutputType)(const OrtCustomOp *, size_t);
  size_t (*GetOutputTypeCount)(const OrtCustomOp *);
  void (*KernelCompute)(void *, void *);
  void (*KernelDestroy)(void *);
  int (*GetInputCharacteristic)(const OrtCustomOp *, size_t);
  int (*GetOutputCharacteristic)(const OrtCustomOp *, size_t);
  int (*GetInputMemoryType)(const OrtCustomOp *, size_t);
  int (*GetVariadicInputMinArity)(const OrtCustomOp *);
  int (*GetVariadicInputHomogeneity)(const OrtCustomOp *);
  int (*GetVariadicOutputMinArity)(const OrtCustomOp *);
  int (*GetVariadicOutputHomogeneity)(const OrtCustomOp *);
  OrtStatus *(*CreateKernelV2)(const OrtCustomOp *, const void *, const void *, void **);
  OrtStatus *(*KernelComputeV2)(void *, void *);
  /* Left out: shape inference, versions, results in place of arguments, aliases, and whatever later versions add. */
  void *left_out[16];
};
#define API_VERSION 17
#define CALL(place, ...) ((OrtStatus *(*)(__VA_ARGS__))ort_api[place])
#define CREATE_STATUS CALL(0, int, const char *)
#define CREATE_DOMAIN CALL(26, const char *, void **)
#define DOMAIN_ADD CALL(27, void *, const OrtCustomOp *)
#define ADD_DOMAIN CALL(28, void *, void *)
#define TENSOR_DATA CALL(51, OrtValue *, void **)
#define RANK_OF CALL(61, const void *, size_t *)
#define SIZES_OF CALL(62, const void *, int64_t *, size_t)
#define SHAPE_OF CALL(65, const OrtValue *, void **)
#define GET_INPUT CALL(90, const void *, size_t, const OrtValue **)
#define GET_OUTPUT CALL(91, void *, size_t, const int64_t *, size_t, OrtValue **)
#define RELEASE_SHAPE ((void (*)(void *))ort_api[99])
#define PARALLEL_FOR CALL(274, const void *, void (*)(void *, size_t), size_t, size_t, void *)
#define TRY(e) do { OrtStatus *s_ = (e); if (s_) return s_; } while (0)
enum { FAIL = 1, INVALID = 2, PARTS = 64 };

static const void *const *ort_api;

/* Memory that calls take and give back, so that no task waits for another's and none is asked of the system twice. All
   nodes share it, whatever their sizes are: they run one after another, mostly. Before each place stands its size. */
enum { HEAD = 64 };
static struct { atomic_flag busy; int count, nodes; char *kept[PARTS]; } store = {ATOMIC_FLAG_INIT};
typedef struct {
  void *const *arrays; const int64_t *sizes; int64_t tasks, parts; size_t space; atomic_int failed;
} Call;

static void lock(void) { while (atomic_flag_test_and_set_explicit(&store.busy, memory_order_acquire)) { } }
static void unlock(void) { atomic_flag_clear_explicit(&store.busy, memory_order_release); }
static size_t size_of(const char *place) { return *(const size_t *)place; }

static void *taken(size_t bytes) {
  char *found = 0, *small = 0;
  lock();
  for (int i = store.count - 1; i >= 0 && !found; i--) if (size_of(store.kept[i]) >= bytes) {
    found = store.kept[i];
    store.kept[i] = store.kept[--store.count];
  }
  if (!found && store.count) small = store.kept[--store.count]; /* a larger one takes its place */
  unlock();
  free(small);
  if (!found && (found = aligned_alloc(64, bytes + HEAD))) *(size_t *)found = bytes;
  return found ? found + HEAD : 0;
}

static void returned(void *place) {
  char *spare = (char *)place - HEAD;
  lock();
  if (store.nodes && store.count < PARTS) { store.kept[store.count++] = spare; spare = 0; }
  unlock();
  free(spare);
}

static void part(void *given, size_t number) {
  Call *c = given;
  void *space = taken(c->space);
  if (!space) { atomic_store(&c->failed, 1); return; }
  int64_t n = (int64_t)number;
  ENTRY(c->arrays, c->sizes, space, c->tasks * n / c->parts, c->tasks * (n + 1) / c->parts);
  returned(space);
}

#ifdef STAGED
#define OF_ENTRY_(entry, what) entry##what
#define OF_ENTRY(entry, what) OF_ENTRY_(entry, what)
typedef struct { Call call; void *shared; } Staged;

static void stage(void *given, size_t number) {
  Staged *s = given;
  (void)number;
  void *space = taken(s->call.space);
  if (!space) { atomic_store(&s->call.failed, 1); return; }
  OF_ENTRY(ENTRY, _stage)(s->call.arrays, s->call.sizes, s->shared, space);
  returned(space);
}

static OrtStatus *staged(void *context, const Call *call, int64_t stages) {
  const size_t bytes = ((size_t)OF_ENTRY(ENTRY, _shared)(call->sizes) + 127) / 64 * 64;
  Staged s = {*call, taken(bytes)};
  if (!s.shared) return CREATE_STATUS(FAIL, NAME ": out of memory");
  OF_ENTRY(ENTRY, _begin)(s.shared);
  OrtStatus *status = PARALLEL_FOR(context, stage, (size_t)stages, (size_t)stages, &s);
  returned(s.shared);
  TRY(status);
  return atomic_load(&s.call.failed) ? CREATE_STATUS(FAIL, NAME ": out of memory") : 0;
}
#endif

static OrtStatus *wrong(const char *what, int input, int axis) {
  char text[256];
  snprintf(text, sizeof text, "%s: input %d, axis %d: %s", NAME, input, axis, what);
  return CREATE_STATUS(INVALID, text);
}

static OrtStatus *measured(int input, const OrtValue *value, int64_t *sizes) {
  void *info;
  size_t rank;
  int64_t dims[MOST_AXES + 1];
  TRY(SHAPE_OF(value, &info));
  OrtStatus *status = RANK_OF(info, &rank);
  if (!status && (int)rank == input_ranks[input]) status = SIZES_OF(info, dims, rank);
  RELEASE_SHAPE(info);
  TRY(status);
  if ((int)rank != input_ranks[input]) return wrong("another number of axes than the kernel's", input, (int)rank);
  for (int d = 0; d < (int)rank; d++) {
    int64_t axis = input_axes[input][d];
    if (dims[d] >= INT64_C(1) << 31) return wrong("more than 32 bits can count", input, d);
    if (axis < 0 ? dims[d] != -1 - axis : sizes[axis] >= 0 && sizes[axis] != dims[d])
      return wrong("its size differs from that of the same axis elsewhere", input, d);
    if (axis >= 0) sizes[axis] = dims[d];
  }
  return 0;
}

/* Whether there is nothing to read although there are results to write, in an array that is read all the same. */
static OrtStatus *missing(const int64_t *sizes) {
  for (int i = 0; i < INPUTS; i++)
    for (int d = 0; d < input_ranks[i]; d++) {
      int64_t axis = input_axes[i][d];
      if (axis >= 0 && sizes[axis] == 0 && !may_be_empty[axis])
        return wrong("it is empty, and read at places that do not depend on that", i, d);
    }
  return 0;
}

static OrtStatus *compute(void *kernel, void *context) {
  void *arrays[INPUTS + OUTPUTS];
  int64_t sizes[SYMBOLS + 1];
  int nothing = 0;
  (void)kernel;
  for (int s = 0; s < SYMBOLS; s++) sizes[s] = -1;
  for (int i = 0; i < INPUTS; i++) {
    const OrtValue *value;
    TRY(GET_INPUT(context, i, &value));
    TRY(measured(i, value, sizes));
    TRY(TENSOR_DATA((OrtValue *)value, &arrays[i]));
  }
  for (int o = 0; o < OUTPUTS; o++) {
    OrtValue *value;
    int64_t dims[MOST_AXES + 1];
    for (int d = 0; d < output_ranks[o]; d++) {
      int64_t axis = output_axes[o][d];
      dims[d] = axis < 0 ? -1 - axis : sizes[axis];
      nothing |= dims[d] == 0;
    }
    TRY(GET_OUTPUT(context, o, dims, output_ranks[o], &value));
    TRY(TENSOR_DATA(value, &arrays[INPUTS + o]));
  }
  if (nothing) return 0;
  TRY(missing(sizes));
  Call call = {arrays, sizes, ENTRY_TASKS(sizes), 0, ((size_t)ENTRY_WORKSPACE(sizes) + 127) / 64 * 64, 0};
#ifdef STAGED
  const int64_t stages = OF_ENTRY(ENTRY, _stages)(sizes);
  if (stages > 1) return staged(context, &call, stages);
#endif
  if (call.tasks < 0) return CREATE_STATUS(INVALID, NAME ": sizes that the kernel cannot take");
  call.parts = call.tasks < PARTS ? call.tasks : PARTS;
  if (call.parts > 1) TRY(PARALLEL_FOR(context, part, call.parts, 0, &call));
  else if (call.parts) part(&call, 0);
  return atomic_load(&call.failed) ? CREATE_STATUS(FAIL, NAME ": out of memory") : 0;
}

static OrtStatus *create(const OrtCustomOp *op, const void *api, const void *info, void **kernel) {
  (void)op, (void)api, (void)info;
  lock();
  store.nodes++;
  unlock();
  *kernel = &store;
  return 0;
}

static void destroy(void *kernel) {
  (void)kernel;
  lock();
  if (!--store.nodes) while (store.count) free(store.kept[--store.count]);
  unlock();
}

static const char *op_name(const OrtCustomOp *op) { (void)op; return NAME; }
static const char *op_provider(const OrtCustomOp *op) { (void)op; return 0; }
static size_t op_inputs(const OrtCustomOp *op) { (void)op; return INPUTS; }
static size_t op_outputs(const OrtCustomOp *op) { (void)op; return OUTPUTS; }
static int op_input_type(const OrtCustomOp *op, size_t i) { (void)op; return input_types[i]; }
static int op_output_type(const OrtCustomOp *op, size_t i) { (void)op; return output_types[i]; }
static int op_zero(const OrtCustomOp *op, size_t i) { (void)op, (void)i; return 0; }
static int op_one(const OrtCustomOp *op) { (void)op; return 1; }
static const OrtCustomOp operator_ = {
  .version = API_VERSION, .GetName = op_name, .GetExecutionProviderType = op_provider,
  .GetInputType = op_input_type, .GetInputTypeCount = op_inputs,
  .GetOutputType = op_output_type, .GetOutputTypeCount = op_outputs,
  .KernelDestroy = destroy, .GetInputCharacteristic = op_zero, .GetOutputCharacteristic = op_zero,
  .GetInputMemoryType = op_zero, .GetVariadicInputMinArity = op_one, .GetVariadicInputHomogeneity = op_one,
  .GetVariadicOutputMinArity = op_one, .GetVariadicOutputHomogeneity = op_one,
  .CreateKernelV2 = create, .KernelComputeV2 = compute};

#define EXPORTED __attribute__((visibility("default")))

/* A session takes a domain once, so of several libraries of one domain the first is registered, and told of the others
   before, in the same thread. */
typedef const OrtCustomOp *(*Offer)(const OrtApiBase *);
enum { MOST_JOINED = 1024 };
static _Thread_local Offer joined[MOST_JOINED];
static _Thread_local int joins;

EXPORTED const OrtCustomOp *portolan_operator(const OrtApiBase *base) {
  return (ort_api = base->GetApi(API_VERSION)) ? &operator_ : 0;
}

EXPORTED int portolan_join(Offer offer) {
  if (joins == MOST_JOINED) return 0;
  joined[joins++] = offer;
  return 1;
}

EXPORTED OrtStatus *RegisterCustomOps(void *options, const OrtApiBase *base) {
  void *domain;
  int others = joins;
  joins = 0;
  if (!portolan_operator(base)) return 0;
  TRY(CREATE_DOMAIN(DOMAIN_NAME, &domain));
  TRY(DOMAIN_ADD(domain, &operator_));
  for (int n = 0; n < others; n++) {
    const OrtCustomOp *other = joined[n](base);
    if (other) TRY(DOMAIN_ADD(domain, other));
  }
  return ADD_DOMAIN(options, domain);
}
