// The door to OpenVINO: compiled kernels as operators of a core, their tasks on the threads of whoever infers.
//
// One library serves all kernels: it holds nothing of any of them. What a kernel takes and gives is told before the
// library is added to a core, in the thread that adds it: `portolan_offer` for each kernel, then `add_extension`.
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "oneapi/tbb/blocked_range.h"
#include "oneapi/tbb/parallel_for.h"
#include "oneapi/tbb/task_arena.h"
#include "openvino/core/except.hpp"
#include "openvino/core/extension.hpp"
#include "openvino/frontend/onnx/extension/conversion.hpp"
#include "openvino/op/op.hpp"
#include "openvino/runtime/tensor.hpp"

namespace {

using Run = void (*)(void *const *arrays, const int64_t *sizes, void *workspace, int64_t first, int64_t last);
using Count = int64_t (*)(const int64_t *sizes);

// An argument or a result; an axis is a symbol's number, or -1 - size.
struct Side {
  ov::element::Type type;
  std::vector<int64_t> axes;
};

struct Kernel {
  std::string domain, name;
  Run run;
  Count tasks, workspace;
  std::vector<Side> inputs, outputs;
  std::vector<bool> may_be_empty;  // for each symbol
  ov::DiscreteTypeInfo type;
};

constexpr int64_t PARTS = 64, LIMIT = int64_t(1) << 31;

// A thread's own memory for kernels, kept for the next call.
struct Space {
  void *place = nullptr;
  size_t bytes = 0;
  ~Space() { std::free(place); }
  void *of(size_t wanted) {
    if (wanted > bytes) {
      std::free(place);
      bytes = 0;
      if (!(place = std::aligned_alloc(64, wanted))) throw std::bad_alloc();
      bytes = wanted;
    }
    return place;
  }
};
thread_local Space space;
thread_local std::vector<std::shared_ptr<const Kernel>> offered;

// Types are told apart by pointers to names, which outlive every model.
const char *lasting(const std::string &text) {
  static auto &names = *new std::set<std::string>();
  return names.insert(text).first->c_str();
}

class Call : public ov::op::Op {
 public:
  Call(std::shared_ptr<const Kernel> kernel, const ov::OutputVector &inputs) : Op(inputs), kernel_(std::move(kernel)) {
    constructor_validate_and_infer_types();
  }

  using ov::op::Op::evaluate;

  // A type for each kernel: passes that join equal nodes must not join calls of different kernels.
  const ov::DiscreteTypeInfo &get_type_info() const override { return kernel_->type; }

  bool visit_attributes(ov::AttributeVisitor &visitor) override {
    std::string domain = kernel_->domain, name = kernel_->name;
    visitor.on_attribute("domain", domain);
    visitor.on_attribute("name", name);
    return true;
  }

  std::shared_ptr<ov::Node> clone_with_new_inputs(const ov::OutputVector &inputs) const override {
    return std::make_shared<Call>(kernel_, inputs);
  }

  void validate_and_infer_types() override {
    const Kernel &k = *kernel_;
    std::vector<ov::Dimension> sizes(k.may_be_empty.size(), ov::Dimension::dynamic());
    NODE_VALIDATION_CHECK(this, get_input_size() == k.inputs.size(), "another number of arguments than the kernel's");
    for (size_t i = 0; i < k.inputs.size(); i++) {
      const auto &axes = k.inputs[i].axes;
      const auto &shape = get_input_partial_shape(i);
      NODE_VALIDATION_CHECK(this, get_input_element_type(i) == k.inputs[i].type || get_input_element_type(i).is_dynamic(),
                            k.name, ": argument ", i, " is of another type than the kernel's");
      if (shape.rank().is_dynamic()) continue;
      NODE_VALIDATION_CHECK(this, shape.size() == axes.size(), k.name, ": argument ", i, " has ", shape.size(),
                            " axes and not ", axes.size());
      for (size_t d = 0; d < axes.size(); d++) {
        ov::Dimension known = axes[d] < 0 ? ov::Dimension(-1 - axes[d]) : sizes[axes[d]];
        NODE_VALIDATION_CHECK(this, ov::Dimension::merge(known, known, shape[d]), k.name, ": argument ", i, ", axis ", d,
                              ": its size differs from that of the same axis elsewhere");
        if (axes[d] >= 0) sizes[axes[d]] = known;
      }
    }
    for (size_t o = 0; o < k.outputs.size(); o++) {
      ov::PartialShape shape;
      for (int64_t axis : k.outputs[o].axes) shape.push_back(axis < 0 ? ov::Dimension(-1 - axis) : sizes[axis]);
      set_output_type(o, k.outputs[o].type, shape);
    }
  }

  bool has_evaluate() const override { return true; }

  bool evaluate(ov::TensorVector &outputs, const ov::TensorVector &inputs) const override {
    const Kernel &k = *kernel_;
    std::vector<int64_t> sizes = measured(inputs);
    std::vector<void *> arrays;
    bool nothing = false;
    for (const auto &tensor : inputs) arrays.push_back(const_cast<void *>(tensor.data()));
    for (size_t o = 0; o < k.outputs.size(); o++) {
      ov::Shape shape;
      for (int64_t axis : k.outputs[o].axes) shape.push_back(axis < 0 ? -1 - axis : sizes[axis]);
      for (size_t size : shape) nothing |= size == 0;
      outputs[o].set_shape(shape);
      arrays.push_back(outputs[o].data());
    }
    if (nothing) return true;
    for (size_t s = 0; s < k.may_be_empty.size(); s++)
      OPENVINO_ASSERT(sizes[s] || k.may_be_empty[s], k.name, ": an axis is empty, and read at places that do not depend on that");
    shared(arrays.data(), sizes.data());
    return true;
  }

 private:
  std::vector<int64_t> measured(const ov::TensorVector &inputs) const {
    const Kernel &k = *kernel_;
    std::vector<int64_t> sizes(k.may_be_empty.size(), -1);
    OPENVINO_ASSERT(inputs.size() == k.inputs.size(), k.name, ": another number of arguments than the kernel's");
    for (size_t i = 0; i < inputs.size(); i++) {
      const ov::Shape &shape = inputs[i].get_shape();
      const auto &axes = k.inputs[i].axes;
      OPENVINO_ASSERT(shape.size() == axes.size() && inputs[i].get_element_type() == k.inputs[i].type &&
                          inputs[i].is_continuous(),
                      k.name, ": argument ", i, " is not what the kernel takes");
      for (size_t d = 0; d < axes.size(); d++) {
        const int64_t size = shape[d], wanted = axes[d] < 0 ? -1 - axes[d] : sizes[axes[d]];
        OPENVINO_ASSERT(size < LIMIT, k.name, ": argument ", i, ", axis ", d, ": more than 32 bits can count");
        OPENVINO_ASSERT(wanted == size || (axes[d] >= 0 && wanted < 0), k.name, ": argument ", i, ", axis ", d,
                        ": its size differs from that of the same axis elsewhere");
        if (axes[d] >= 0) sizes[axes[d]] = size;
      }
    }
    return sizes;
  }

  // Runs the tasks on the threads of the arena that infers, which are as many as it was asked for.
  void shared(void *const *arrays, const int64_t *sizes) const {
    const Kernel &k = *kernel_;
    const int64_t tasks = k.tasks(sizes), parts = tasks < PARTS ? tasks : PARTS;
    OPENVINO_ASSERT(tasks >= 0, k.name, ": sizes that the kernel cannot take");
    const size_t bytes = (static_cast<size_t>(k.workspace(sizes)) + 127) / 64 * 64;
    if (parts <= 1 || oneapi::tbb::this_task_arena::max_concurrency() == 1) {
      if (tasks) k.run(arrays, sizes, space.of(bytes), 0, tasks);
      return;
    }
    oneapi::tbb::parallel_for(oneapi::tbb::blocked_range<int64_t>(0, parts), [&](const auto &range) {
      k.run(arrays, sizes, space.of(bytes), tasks * range.begin() / parts, tasks * range.end() / parts);
    });
  }

  std::shared_ptr<const Kernel> kernel_;
};

std::vector<Side> sides(const int64_t *&table, int64_t count) {
  const ov::element::Type types[] = {ov::element::f32, ov::element::f16, ov::element::bf16, ov::element::i8,
                                     ov::element::i32};
  std::vector<Side> made;
  for (int64_t n = 0; n < count; n++) {
    const int64_t type = *table++, rank = *table++;
    made.push_back({types[type], std::vector<int64_t>(table, table + rank)});
    table += rank;
  }
  return made;
}

}  // namespace

// Offers a kernel to the core that this thread adds the library to next. The table holds, for each argument and then
// each result, its type (f32, f16, bf16, i8, i32), its rank and its axes; and for each symbol whether it may be 0.
OPENVINO_EXTENSION_C_API void portolan_offer(const char *domain, const char *name, Run run, Count tasks, Count workspace,
                                             int64_t inputs, int64_t outputs, int64_t symbols, const int64_t *table) {
  auto made = std::make_shared<Kernel>();
  made->domain = domain;
  made->name = name;
  made->run = run;
  made->tasks = tasks;
  made->workspace = workspace;
  made->inputs = sides(table, inputs);
  made->outputs = sides(table, outputs);
  made->may_be_empty.assign(table, table + symbols);
  made->type = ov::DiscreteTypeInfo(lasting(made->name), lasting(made->domain), &ov::op::Op::get_type_info_static());
  made->type.hash();
  offered.push_back(made);
}

OPENVINO_EXTENSION_C_API void OV_CREATE_EXTENSION(std::vector<ov::Extension::Ptr> &extensions) {
  for (const auto &kernel : std::exchange(offered, {})) {
    auto convert = [kernel](const ov::frontend::NodeContext &node) -> ov::OutputVector {
      ov::OutputVector inputs;
      for (size_t i = 0; i < kernel->inputs.size(); i++) inputs.push_back(node.get_input(static_cast<int>(i)));
      return std::make_shared<Call>(kernel, inputs)->outputs();
    };
    extensions.push_back(
        std::make_shared<ov::frontend::onnx::ConversionExtension>(kernel->name, kernel->domain, convert));
  }
}
