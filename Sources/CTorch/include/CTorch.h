#pragma once
// A plain C interface to libtorch. It stays small because operators are called *through the dispatcher* by name; typed
// entries exist only for what the dispatcher can't do: tensors over foreign memory, autograd, modes, generators, memory.
//
// Conventions: functions that can fail return 0 on success and 1 on failure, with the message in `ctorch_error()` of the
// same thread (never a C++ exception, never a backtrace). A `ctorch_tensor` is one owned reference: release it once.

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct ctorch_tensor_impl *ctorch_tensor;
typedef struct ctorch_operator_impl *ctorch_operator;
typedef struct ctorch_generator_impl *ctorch_generator;

enum {
  CTORCH_NONE = 0,
  CTORCH_TENSOR,
  CTORCH_INT,
  CTORCH_DOUBLE,
  CTORCH_BOOL,
  CTORCH_COMPLEX,
  CTORCH_STRING,
  CTORCH_INT_LIST,
  CTORCH_DOUBLE_LIST,
  CTORCH_TENSOR_LIST,  // null entries stand for absent optional tensors
  CTORCH_DEVICE,
  CTORCH_GENERATOR,
};

/// One argument or result of an operator.
typedef struct {
  int32_t tag;
  int32_t index;  // device index
  int64_t count;  // length of a list
  union {
    ctorch_tensor tensor;
    int64_t integer;  // also bool, dtype and device type
    double real;
    struct {
      double real, imaginary;
    } complex;
    const char *string;
    const int64_t *integers;
    const double *reals;
    const ctorch_tensor *tensors;
    ctorch_generator generator;
  } as;
} ctorch_value;

const char *ctorch_error(void);
const char *ctorch_version(void);

// Operators
int ctorch_operator_find(const char *name, const char *overload, ctorch_operator *result);
const char *ctorch_operator_schema(ctorch_operator op);  // valid until the next call on this thread
/// Arguments beyond `count` take the schema's defaults. Results: tensors are owned by the caller; a list of tensors is one
/// result with tag CTORCH_TENSOR_LIST whose array is released with `ctorch_free`.
int ctorch_call(ctorch_operator op, const ctorch_value *arguments, int64_t count, ctorch_value *results, int64_t capacity,
                int64_t *result_count);
void ctorch_free(const void *memory);

// Tensors
void ctorch_release(ctorch_tensor tensor);
void ctorch_retain(ctorch_tensor tensor);
int ctorch_from_memory(void *data, const int64_t *shape, const int64_t *strides, int64_t rank, int dtype,
                       void (*release)(void *context), void *context, ctorch_tensor *result);
int ctorch_copy_from(const void *data, size_t bytes, const int64_t *shape, int64_t rank, int dtype, ctorch_tensor *result);
int64_t ctorch_rank(ctorch_tensor tensor);
int64_t ctorch_size(ctorch_tensor tensor, int64_t dimension);
int64_t ctorch_stride(ctorch_tensor tensor, int64_t dimension);
int64_t ctorch_count(ctorch_tensor tensor);
int64_t ctorch_item_size(ctorch_tensor tensor);
int ctorch_dtype(ctorch_tensor tensor);
void ctorch_device(ctorch_tensor tensor, int *type, int *index);
bool ctorch_is_contiguous(ctorch_tensor tensor);
bool ctorch_is_same(ctorch_tensor a, ctorch_tensor b);
int ctorch_data(ctorch_tensor tensor, void **result);  // CPU only
/// Address of the storage: equal for views of one another.
uintptr_t ctorch_storage_identity(ctorch_tensor tensor);
int ctorch_item(ctorch_tensor tensor, double *real, double *imaginary, int64_t *integer);

// Autograd
bool ctorch_requires_grad(ctorch_tensor tensor);
int ctorch_set_requires_grad(ctorch_tensor tensor, bool flag);
bool ctorch_is_leaf(ctorch_tensor tensor);
int ctorch_grad(ctorch_tensor tensor, ctorch_tensor *result);  // null where there is none
int ctorch_set_grad(ctorch_tensor tensor, ctorch_tensor grad);  // null clears
int ctorch_backward(const ctorch_tensor *roots, const ctorch_tensor *root_grads, int64_t count, bool retain_graph,
                    bool create_graph);
int ctorch_gradient(const ctorch_tensor *roots, const ctorch_tensor *root_grads, int64_t count, const ctorch_tensor *inputs,
                    int64_t input_count, bool retain_graph, bool create_graph, bool allow_unused, ctorch_tensor *results);
/// Joins `outputs` (computed without gradient) to the graph of `inputs`: `backward` receives the outputs' gradients (null:
/// zero) and fills one owned gradient per input (null: none); it returns 0, or 1 after `ctorch_set_error`.
int ctorch_custom_function(const char *name, const ctorch_tensor *inputs, int64_t input_count, const ctorch_tensor *outputs,
                           int64_t output_count,
                           int (*backward)(void *context, const ctorch_tensor *grads, int64_t grad_count, ctorch_tensor *results,
                                           int64_t result_count),
                           void (*release)(void *context), void *context, ctorch_tensor *results);
void ctorch_set_error(const char *message);
bool ctorch_grad_enabled(void);
void ctorch_set_grad_enabled(bool flag);
bool ctorch_autocast_enabled(int device_type);
void ctorch_set_autocast(int device_type, bool flag, int dtype);

// Generators
int ctorch_generator_create(uint64_t seed, int device_type, int device_index, ctorch_generator *result);
void ctorch_generator_release(ctorch_generator generator);
int ctorch_generator_state(ctorch_generator generator, ctorch_tensor *result);
int ctorch_generator_set_state(ctorch_generator generator, ctorch_tensor state);

// Threads, devices, memory
int ctorch_threads(void);
void ctorch_set_threads(int count);
bool ctorch_device_available(int device_type);
/// Counts the bytes of CPU tensors from now on. Called once at start.
void ctorch_count_memory(void);
int64_t ctorch_memory_current(void);
int64_t ctorch_memory_peak(void);
/// Bytes of freed blocks that are kept for the next tensors; and gives them back to the system.
int64_t ctorch_memory_kept(void);
void ctorch_memory_release(void);
void ctorch_memory_reset_peak(void);

#ifdef __cplusplus
}
#endif
