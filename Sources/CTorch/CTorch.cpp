#include "CTorch.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Parallel.h>
#include <ATen/autocast_mode.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/GradMode.h>
#include <c10/core/impl/alloc_cpu.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/variable.h>
#include <torch/version.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

namespace {

thread_local std::string lastError;

/// Runs `body`; turns any C++ exception into status 1 and its message without the backtrace.
template <typename Body>
int guarded(const Body& body) {
  try {
    body();
    return 0;
  } catch (const c10::Error& error) {
    lastError = error.what_without_backtrace();
  } catch (const std::exception& error) {
    lastError = error.what();
  } catch (...) {
    lastError = "unknown C++ exception";
  }
  // Some messages carry the location that raised them; the first paragraph is what the reader needs.
  for (const char* mark : {"\nException raised from", "\nC++ CapturedTraceback", "\nDispatcher:"}) {
    const auto position = lastError.find(mark);
    if (position != std::string::npos) lastError.resize(position);
  }
  return 1;
}

at::Tensor borrow(ctorch_tensor tensor) {
  return at::Tensor(c10::intrusive_ptr<at::TensorImpl>::unsafe_reclaim_from_nonowning(reinterpret_cast<at::TensorImpl*>(tensor)));
}

at::TensorImpl* impl(ctorch_tensor tensor) { return reinterpret_cast<at::TensorImpl*>(tensor); }

ctorch_tensor give(at::Tensor tensor) {
  if (!tensor.defined()) return nullptr;
  return reinterpret_cast<ctorch_tensor>(tensor.unsafeReleaseTensorImpl());
}

std::vector<at::Tensor> borrowAll(const ctorch_tensor* tensors, int64_t count) {
  std::vector<at::Tensor> result;
  result.reserve(count);
  for (int64_t i = 0; i < count; ++i) result.push_back(tensors[i] ? borrow(tensors[i]) : at::Tensor());
  return result;
}

/// What an argument of the schema wants, known once so that a call needs no type look-ups.
enum class Want : uint8_t { asIs, real, realOptional, tensorList, optionalTensorList, device, integerList, realList, boolList };

struct Operator {
  c10::OperatorHandle handle;
  std::vector<Want> wants;
  std::vector<c10::IValue> defaults;
  std::vector<bool> hasDefault;
};

Want wantOf(const c10::TypePtr& type) {
  using c10::TypeKind;
  switch (type->kind()) {
    case TypeKind::FloatType: return Want::real;
    case TypeKind::DeviceObjType: return Want::device;
    case TypeKind::OptionalType: {
      const Want inner = wantOf(type->expectRef<c10::OptionalType>().getElementType());
      return inner == Want::real ? Want::realOptional : inner;
    }
    case TypeKind::ListType: {
      const auto& element = type->expectRef<c10::ListType>().getElementType();
      switch (element->kind()) {
        case TypeKind::TensorType: return Want::tensorList;
        case TypeKind::OptionalType: return Want::optionalTensorList;
        case TypeKind::FloatType: return Want::realList;
        case TypeKind::BoolType: return Want::boolList;
        default: return Want::integerList;
      }
    }
    default: return Want::asIs;
  }
}

c10::IValue toIValue(const ctorch_value& value, Want want) {
  switch (value.tag) {
    case CTORCH_NONE: return c10::IValue();
    case CTORCH_TENSOR: return value.as.tensor ? c10::IValue(borrow(value.as.tensor)) : c10::IValue();
    case CTORCH_INT:
      if (want == Want::real || want == Want::realOptional) return static_cast<double>(value.as.integer);
      if (want == Want::integerList) return c10::List<int64_t>({value.as.integer});
      return value.as.integer;
    case CTORCH_DOUBLE: return value.as.real;
    case CTORCH_BOOL: return value.as.integer != 0;
    case CTORCH_COMPLEX: return c10::complex<double>(value.as.complex.real, value.as.complex.imaginary);
    case CTORCH_STRING: return std::string(value.as.string);
    case CTORCH_INT_LIST: {
      if (want == Want::boolList) {
        c10::List<bool> list;
        for (int64_t i = 0; i < value.count; ++i) list.push_back(value.as.integers[i] != 0);
        return list;
      }
      c10::List<int64_t> list;
      list.reserve(value.count);
      for (int64_t i = 0; i < value.count; ++i) list.push_back(value.as.integers[i]);
      return list;
    }
    case CTORCH_DOUBLE_LIST: {
      c10::List<double> list;
      list.reserve(value.count);
      for (int64_t i = 0; i < value.count; ++i) list.push_back(value.as.reals[i]);
      return list;
    }
    case CTORCH_TENSOR_LIST: {
      if (want == Want::optionalTensorList) {
        c10::List<std::optional<at::Tensor>> list;
        for (int64_t i = 0; i < value.count; ++i)
          list.push_back(value.as.tensors[i] ? std::optional<at::Tensor>(borrow(value.as.tensors[i])) : std::nullopt);
        return list;
      }
      c10::List<at::Tensor> list;
      list.reserve(value.count);
      for (int64_t i = 0; i < value.count; ++i) list.push_back(borrow(value.as.tensors[i]));
      return list;
    }
    case CTORCH_DEVICE:
      return c10::Device(static_cast<c10::DeviceType>(value.as.integer), static_cast<c10::DeviceIndex>(value.index));
    case CTORCH_GENERATOR: return *reinterpret_cast<at::Generator*>(value.as.generator);
    default: TORCH_CHECK(false, "unknown argument tag ", value.tag);
  }
}

ctorch_value fromIValue(c10::IValue&& value) {
  ctorch_value result{};
  if (value.isTensor()) {
    result.tag = CTORCH_TENSOR;
    result.as.tensor = give(std::move(value).toTensor());
  } else if (value.isBool()) {
    result.tag = CTORCH_BOOL;
    result.as.integer = value.toBool();
  } else if (value.isInt()) {
    result.tag = CTORCH_INT;
    result.as.integer = value.toInt();
  } else if (value.isDouble()) {
    result.tag = CTORCH_DOUBLE;
    result.as.real = value.toDouble();
  } else if (value.isComplexDouble()) {
    const auto number = value.toComplexDouble();
    result.tag = CTORCH_COMPLEX;
    result.as.complex = {number.real(), number.imag()};
  } else if (value.isTensorList()) {
    auto list = value.toTensorList();
    auto* tensors = static_cast<ctorch_tensor*>(std::malloc(std::max<size_t>(1, list.size()) * sizeof(ctorch_tensor)));
    for (size_t i = 0; i < list.size(); ++i) tensors[i] = give(list.get(i));
    result.tag = CTORCH_TENSOR_LIST;
    result.count = static_cast<int64_t>(list.size());
    result.as.tensors = tensors;
  } else if (!value.isNone()) {
    TORCH_CHECK(false, "a result of type ", value.tagKind(), " has no C form");
  }
  return result;
}

/// An autograd node whose backward is a callback.
struct CallbackNode final : torch::autograd::Node {
  std::string label;
  int (*callback)(void*, const ctorch_tensor*, int64_t, ctorch_tensor*, int64_t);
  void (*releaseContext)(void*);
  void* context;

  ~CallbackNode() override { releaseContext(context); }
  std::string name() const override { return label; }
  torch::autograd::variable_list apply(torch::autograd::variable_list&& gradients) override {
    std::vector<ctorch_tensor> given(gradients.size());
    for (size_t i = 0; i < gradients.size(); ++i)
      given[i] = gradients[i].defined() ? reinterpret_cast<ctorch_tensor>(gradients[i].unsafeGetTensorImpl()) : nullptr;
    std::vector<ctorch_tensor> computed(num_outputs(), nullptr);
    const int status = callback(context, given.data(), static_cast<int64_t>(given.size()), computed.data(), num_outputs());
    torch::autograd::variable_list results;
    for (auto* tensor : computed)
      results.push_back(tensor ? at::Tensor(c10::intrusive_ptr<at::TensorImpl>::reclaim(impl(tensor))) : at::Tensor());
    TORCH_CHECK(status == 0, lastError);
    return results;
  }
};

std::atomic<int64_t> currentBytes{0};
std::atomic<int64_t> peakBytes{0};

/// Freed blocks of a MiB and more, kept for the next tensors of their size. glibc gives such blocks back to the system, at once
/// beyond 32 MiB, and the next tensor pays for its pages again: a page fault every 4 KiB, 1-4 us each on virtual machines, more
/// than most operators spend on the numbers in the page (a layer of S4 at 16k tokens spent half of its time so). Blocks in use and
/// kept ones are together never more than the most that has been in use at once, so keeping them does not raise the process's peak.
class LargeBlocks {
  struct Kept {
    char* block;
    uint64_t since;
  };
  std::mutex lock_;
  std::multimap<size_t, Kept> kept_;
  size_t keptBytes_ = 0, usedBytes_ = 0, mostUsed_ = 0;
  uint64_t time_ = 0;

  void release(std::multimap<size_t, Kept>::iterator at) {
    keptBytes_ -= at->first;
    c10::free_cpu(at->second.block);
    kept_.erase(at);
  }

 public:
  static constexpr size_t smallest = size_t{1} << 20;

  static LargeBlocks& shared() {
    static auto* blocks = new LargeBlocks();  // outlives the tensors of static variables
    return *blocks;
  }

  /// A block of `bytes` or somewhat more; `capacity` takes its size.
  char* take(size_t bytes, size_t& capacity) {
    // Eight sizes between two powers of two: lengths that vary a little share blocks.
    const size_t step = std::bit_floor(bytes) / 8;
    capacity = (bytes + step - 1) / step * step;
    const std::lock_guard<std::mutex> hold(lock_);
    const auto found = kept_.lower_bound(capacity);
    const bool fits = found != kept_.end() && found->first <= capacity + capacity / 4;
    if (fits) capacity = found->first;
    usedBytes_ += capacity;
    if (fits) {
      char* block = found->second.block;
      keptBytes_ -= capacity;
      kept_.erase(found);
      return block;
    }
    mostUsed_ = std::max(mostUsed_, usedBytes_);
    while (keptBytes_ + usedBytes_ > mostUsed_)
      release(std::min_element(kept_.begin(), kept_.end(), [](const auto& a, const auto& b) { return a.second.since < b.second.since; }));
    try {
      return static_cast<char*>(c10::alloc_cpu(capacity));
    } catch (...) {
      usedBytes_ -= capacity;
      throw;
    }
  }

  size_t kept() {
    const std::lock_guard<std::mutex> hold(lock_);
    return keptBytes_;
  }
  void releaseAll() {
    const std::lock_guard<std::mutex> hold(lock_);
    while (!kept_.empty()) release(kept_.begin());
  }

  void give(char* block, size_t capacity) {
    const std::lock_guard<std::mutex> hold(lock_);
    usedBytes_ -= capacity;
    keptBytes_ += capacity;
    kept_.emplace(capacity, Kept{block, ++time_});
  }
};

/// CPU memory with its size in a header, so that live and peak tensor bytes are known.
struct CountingAllocator final : c10::Allocator {
  struct Header {
    int64_t bytes;
    size_t capacity;  // of a large block, else 0
  };
  static constexpr size_t header = 64;  // keeps libtorch's 64-byte alignment

  static void deallocate(void* pointer) {
    if (!pointer) return;
    auto* block = static_cast<char*>(pointer) - header;
    const Header of = *reinterpret_cast<Header*>(block);
    currentBytes.fetch_sub(of.bytes, std::memory_order_relaxed);
    if (of.capacity) LargeBlocks::shared().give(block, of.capacity);
    else c10::free_cpu(block);
  }
  c10::DataPtr allocate(size_t bytes) override {
    if (bytes == 0) return {nullptr, nullptr, &deallocate, c10::Device(c10::DeviceType::CPU)};
    size_t capacity = 0;
    auto* block = bytes >= LargeBlocks::smallest ? LargeBlocks::shared().take(bytes + header, capacity)
                                                 : static_cast<char*>(c10::alloc_cpu(bytes + header));
    *reinterpret_cast<Header*>(block) = {static_cast<int64_t>(bytes), capacity};
    const int64_t now = currentBytes.fetch_add(static_cast<int64_t>(bytes), std::memory_order_relaxed) + static_cast<int64_t>(bytes);
    int64_t peak = peakBytes.load(std::memory_order_relaxed);
    while (now > peak && !peakBytes.compare_exchange_weak(peak, now, std::memory_order_relaxed)) {
    }
    return {block + header, block + header, &deallocate, c10::Device(c10::DeviceType::CPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &deallocate; }
  void copy_data(void* destination, const void* source, std::size_t count) const override {
    default_copy_data(destination, source, count);
  }
};

}  // namespace

extern "C" {

const char* ctorch_error(void) { return lastError.c_str(); }
void ctorch_set_error(const char* message) { lastError = message; }
const char* ctorch_version(void) { return TORCH_VERSION; }

int ctorch_operator_find(const char* name, const char* overload, ctorch_operator* result) {
  return guarded([&] {
    auto handle = c10::Dispatcher::singleton().findSchema({name, overload});
    TORCH_CHECK(handle, "libtorch ", TORCH_VERSION, " has no operator ", name, *overload ? "." : "", overload);
    auto op = std::make_unique<Operator>(Operator{*handle, {}, {}, {}});
    for (const auto& argument : handle->schema().arguments()) {
      op->wants.push_back(wantOf(argument.type()));
      op->hasDefault.push_back(argument.default_value().has_value());
      op->defaults.push_back(argument.default_value().value_or(c10::IValue()));
    }
    *result = reinterpret_cast<ctorch_operator>(op.release());
  });
}

const char* ctorch_operator_schema(ctorch_operator op) {
  thread_local std::string text;
  text = toString(reinterpret_cast<Operator*>(op)->handle.schema());
  return text.c_str();
}

int ctorch_call(ctorch_operator op, const ctorch_value* arguments, int64_t count, ctorch_value* results, int64_t capacity,
                int64_t* result_count) {
  return guarded([&] {
    auto& target = *reinterpret_cast<Operator*>(op);
    const int64_t expected = static_cast<int64_t>(target.wants.size());
    TORCH_CHECK(count <= expected, target.handle.schema().name(), " takes ", expected, " arguments, got ", count);
    torch::jit::Stack stack;
    stack.reserve(std::max<int64_t>(expected, 4));
    for (int64_t i = 0; i < count; ++i) stack.push_back(toIValue(arguments[i], target.wants[i]));
    for (int64_t i = count; i < expected; ++i) {
      TORCH_CHECK(target.hasDefault[i], target.handle.schema().name(), " needs argument ", i, ": ",
                  target.handle.schema().arguments()[i].name());
      stack.push_back(target.defaults[i]);
    }
    target.handle.callBoxed(stack);
    TORCH_CHECK(static_cast<int64_t>(stack.size()) <= capacity, "more results than room");
    *result_count = static_cast<int64_t>(stack.size());
    for (size_t i = 0; i < stack.size(); ++i) results[i] = fromIValue(std::move(stack[i]));
  });
}

void ctorch_free(const void* memory) { std::free(const_cast<void*>(memory)); }

void ctorch_release(ctorch_tensor tensor) {
  if (tensor) c10::intrusive_ptr<at::TensorImpl>::reclaim(impl(tensor));
}

void ctorch_retain(ctorch_tensor tensor) { c10::raw::intrusive_ptr::incref(impl(tensor)); }

int ctorch_from_memory(void* data, const int64_t* shape, const int64_t* strides, int64_t rank, int dtype,
                       void (*release)(void*), void* context, ctorch_tensor* result) {
  return guarded([&] {
    auto maker = at::for_blob(data, at::IntArrayRef(shape, rank));
    if (strides) maker.strides(at::IntArrayRef(strides, rank));
    if (release) maker.context(context, release);
    *result = give(maker.options(at::TensorOptions().dtype(static_cast<at::ScalarType>(dtype))).make_tensor());
  });
}

int ctorch_copy_from(const void* data, size_t bytes, const int64_t* shape, int64_t rank, int dtype, ctorch_tensor* result) {
  return guarded([&] {
    auto tensor = at::empty(at::IntArrayRef(shape, rank), at::TensorOptions().dtype(static_cast<at::ScalarType>(dtype)));
    TORCH_CHECK(tensor.nbytes() == bytes, "shape ", at::IntArrayRef(shape, rank), " needs ", tensor.nbytes(), " bytes, got ", bytes);
    if (bytes) std::memcpy(tensor.data_ptr(), data, bytes);
    *result = give(std::move(tensor));
  });
}

int64_t ctorch_rank(ctorch_tensor tensor) { return impl(tensor)->dim(); }
int64_t ctorch_size(ctorch_tensor tensor, int64_t dimension) { return impl(tensor)->sizes()[dimension]; }
int64_t ctorch_stride(ctorch_tensor tensor, int64_t dimension) { return impl(tensor)->strides()[dimension]; }
int64_t ctorch_count(ctorch_tensor tensor) { return impl(tensor)->numel(); }
int64_t ctorch_item_size(ctorch_tensor tensor) { return static_cast<int64_t>(impl(tensor)->itemsize()); }
int ctorch_dtype(ctorch_tensor tensor) { return static_cast<int>(c10::typeMetaToScalarType(impl(tensor)->dtype())); }
void ctorch_device(ctorch_tensor tensor, int* type, int* index) {
  const auto device = impl(tensor)->device();
  *type = static_cast<int>(device.type());
  *index = device.index();
}
bool ctorch_is_contiguous(ctorch_tensor tensor) { return impl(tensor)->is_contiguous(); }
bool ctorch_is_same(ctorch_tensor a, ctorch_tensor b) { return a == b; }

int ctorch_data(ctorch_tensor tensor, void** result) {
  return guarded([&] {
    TORCH_CHECK(impl(tensor)->device().is_cpu(), "the data of a tensor on ", impl(tensor)->device(), " can't be read directly");
    *result = borrow(tensor).data_ptr();
  });
}

uintptr_t ctorch_storage_identity(ctorch_tensor tensor) {
  return reinterpret_cast<uintptr_t>(impl(tensor)->storage().unsafeGetStorageImpl());
}

int ctorch_item(ctorch_tensor tensor, double* real, double* imaginary, int64_t* integer) {
  return guarded([&] {
    const auto scalar = borrow(tensor).item();
    *imaginary = 0;
    if (scalar.isComplex()) {
      const auto number = scalar.toComplexDouble();
      *real = number.real();
      *imaginary = number.imag();
      *integer = 0;
    } else if (scalar.isFloatingPoint()) {
      *real = scalar.toDouble();
      *integer = 0;
    } else {
      *integer = scalar.toLong();
      *real = static_cast<double>(*integer);
    }
  });
}

bool ctorch_requires_grad(ctorch_tensor tensor) { return borrow(tensor).requires_grad(); }
int ctorch_set_requires_grad(ctorch_tensor tensor, bool flag) {
  return guarded([&] { borrow(tensor).set_requires_grad(flag); });
}
bool ctorch_is_leaf(ctorch_tensor tensor) { return borrow(tensor).is_leaf(); }
int ctorch_grad(ctorch_tensor tensor, ctorch_tensor* result) {
  return guarded([&] { *result = give(borrow(tensor).grad()); });
}
int ctorch_set_grad(ctorch_tensor tensor, ctorch_tensor grad) {
  return guarded([&] { borrow(tensor).mutable_grad() = grad ? borrow(grad) : at::Tensor(); });
}

int ctorch_backward(const ctorch_tensor* roots, const ctorch_tensor* root_grads, int64_t count, bool retain_graph,
                    bool create_graph) {
  return guarded([&] {
    torch::autograd::backward(borrowAll(roots, count), borrowAll(root_grads, count), retain_graph, create_graph);
  });
}

int ctorch_gradient(const ctorch_tensor* roots, const ctorch_tensor* root_grads, int64_t count, const ctorch_tensor* inputs,
                    int64_t input_count, bool retain_graph, bool create_graph, bool allow_unused, ctorch_tensor* results) {
  return guarded([&] {
    auto gradients = torch::autograd::grad(borrowAll(roots, count), borrowAll(inputs, input_count), borrowAll(root_grads, count),
                                           retain_graph, create_graph, allow_unused);
    for (int64_t i = 0; i < input_count; ++i) results[i] = give(std::move(gradients[i]));
  });
}

int ctorch_custom_function(const char* name, const ctorch_tensor* inputs, int64_t input_count, const ctorch_tensor* outputs,
                           int64_t output_count,
                           int (*backward)(void*, const ctorch_tensor*, int64_t, ctorch_tensor*, int64_t),
                           void (*release)(void*), void* context, ctorch_tensor* results) {
  auto node = c10::make_intrusive<CallbackNode>();
  node->label = name;
  node->callback = backward;
  node->releaseContext = release;
  node->context = context;
  return guarded([&] {
    const auto given = borrowAll(inputs, input_count);
    bool differentiable = false;
    torch::autograd::edge_list edges;
    for (const auto& input : given) {
      differentiable = differentiable || input.requires_grad();
      edges.push_back(torch::autograd::impl::gradient_edge(input));
    }
    const bool record = differentiable && c10::GradMode::is_enabled();
    if (record) node->set_next_edges(std::move(edges));
    for (int64_t i = 0; i < output_count; ++i) {
      auto output = borrow(outputs[i]).detach();
      if (record && torch::autograd::isDifferentiableType(output.scalar_type())) {
        torch::autograd::create_gradient_edge(output, node);
      } else if (record) {
        node->add_input_metadata(torch::autograd::Node::undefined_input());
      }
      results[i] = give(std::move(output));
    }
  });
}

bool ctorch_grad_enabled(void) { return c10::GradMode::is_enabled(); }
void ctorch_set_grad_enabled(bool flag) { c10::GradMode::set_enabled(flag); }
bool ctorch_autocast_enabled(int device_type) { return at::autocast::is_autocast_enabled(static_cast<at::DeviceType>(device_type)); }
void ctorch_set_autocast(int device_type, bool flag, int dtype) {
  const auto device = static_cast<at::DeviceType>(device_type);
  at::autocast::set_autocast_enabled(device, flag);
  if (flag) at::autocast::set_autocast_dtype(device, static_cast<at::ScalarType>(dtype));
  if (!flag) at::autocast::clear_cache();
}

int ctorch_generator_create(uint64_t seed, int device_type, int device_index, ctorch_generator* result) {
  return guarded([&] {
    const c10::Device device(static_cast<c10::DeviceType>(device_type), static_cast<c10::DeviceIndex>(device_index));
    auto generator = device.is_cpu() ? at::detail::createCPUGenerator(seed) : at::globalContext().defaultGenerator(device).clone();
    generator.set_current_seed(seed);
    *result = reinterpret_cast<ctorch_generator>(new at::Generator(std::move(generator)));
  });
}
void ctorch_generator_release(ctorch_generator generator) { delete reinterpret_cast<at::Generator*>(generator); }
int ctorch_generator_state(ctorch_generator generator, ctorch_tensor* result) {
  return guarded([&] { *result = give(reinterpret_cast<at::Generator*>(generator)->get_state()); });
}
int ctorch_generator_set_state(ctorch_generator generator, ctorch_tensor state) {
  return guarded([&] { reinterpret_cast<at::Generator*>(generator)->set_state(borrow(state)); });
}

int ctorch_threads(void) { return at::get_num_threads(); }
void ctorch_set_threads(int count) { at::set_num_threads(count); }
bool ctorch_device_available(int device_type) {
  switch (static_cast<at::DeviceType>(device_type)) {
    case at::DeviceType::CPU: return true;
    case at::DeviceType::CUDA: return at::hasCUDA();
    case at::DeviceType::MPS: return at::hasMPS();
    default: return false;
  }
}

void ctorch_count_memory(void) {
  static CountingAllocator* allocator = [] {
    auto* made = new CountingAllocator();
    c10::SetCPUAllocator(made, /*priority=*/100);
    return made;
  }();
  (void)allocator;
}
int64_t ctorch_memory_current(void) { return currentBytes.load(); }
int64_t ctorch_memory_peak(void) { return peakBytes.load(); }
int64_t ctorch_memory_kept(void) { return static_cast<int64_t>(LargeBlocks::shared().kept()); }
void ctorch_memory_release(void) { LargeBlocks::shared().releaseAll(); }
void ctorch_memory_reset_peak(void) { peakBytes.store(currentBytes.load()); }

}  // extern "C"
