// Marks small functions that the cpu's code and kernels share.
#pragma once

#if defined(__CUDACC__)
#define MOE_EP_HOST_DEVICE __host__ __device__ __forceinline__
#define MOE_EP_CONSTEXPR __host__ __device__ constexpr
#else
#define MOE_EP_HOST_DEVICE inline
#define MOE_EP_CONSTEXPR constexpr
#endif
