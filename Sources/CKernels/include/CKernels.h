#pragma once
// The fused kernels register themselves as torch operators `martlet::*` when the library is loaded.
// Swift calls this once so that the linker keeps them and start-up order is certain.
#ifdef __cplusplus
extern "C" {
#endif
void martlet_kernels_load(void);
#ifdef __cplusplus
}
#endif
