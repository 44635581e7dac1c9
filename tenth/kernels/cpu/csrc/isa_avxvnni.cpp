#define TENTH_ISA avxvnni
#define TENTH_AVX2
#define TENTH_AVXVNNI
#define TENTH_OPS ops_avxvnni
#define TENTH_NAME "avxvnni"
#include "isa.inc"
