#include "CKernels.h"
#include <torch/library.h>

TORCH_LIBRARY(martlet, library) {}

extern "C" void martlet_kernels_load(void) {}
