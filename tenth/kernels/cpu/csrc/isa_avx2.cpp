#define TENTH_ISA avx2
#define TENTH_AVX2
#define TENTH_OPS ops_avx2
#define TENTH_NAME "avx2"
#include "isa.inc"
