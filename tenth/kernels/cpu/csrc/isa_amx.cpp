#define TENTH_ISA amx
#define TENTH_AVX512
#define TENTH_AMX
#define TENTH_OPS ops_amx
#define TENTH_NAME "amx"
#include "isa.inc"
