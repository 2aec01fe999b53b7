/* OpenCL C 1.2: the names that the rest counts on. Sizes and places are 32 bits wide. */
#define IN static inline
#define int32_t int
#define uint32_t uint
#define uint16_t ushort
#define int8_t char
#define INT32_MIN INT_MIN
#define INT32_MAX INT_MAX
#define F_OF_BITS(u) as_float((uint)(u))
#define BITS_OF_F(x) as_uint((float)(x))
#define expf exp
typedef int place_t;
#include "scalar.h"
