/* CUDA C++, also for hipcc: the names that the rest counts on. No header is needed. Sizes and places are 32 bits wide. */
#define IN static __device__ __forceinline__
#define INFINITY __int_as_float(0x7f800000)
#define NAN __int_as_float(0x7fffffff)
#define INT32_MIN (-2147483647 - 1)
#define INT32_MAX 2147483647
#define F_OF_BITS(u) __uint_as_float(u)
#define BITS_OF_F(x) __float_as_uint(x)
typedef signed char int8_t;
typedef unsigned short uint16_t;
typedef int int32_t;
typedef unsigned int uint32_t;
typedef int place_t;
#include "scalar.h"
