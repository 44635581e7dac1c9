#define TENTH_ISA avx512
#define TENTH_AVX512
#define TENTH_OPS ops_avx512
#define TENTH_NAME "avx512"
#include "isa.inc"
