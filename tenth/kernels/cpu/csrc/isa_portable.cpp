#define TENTH_ISA portable
#define TENTH_PORTABLE
#define TENTH_OPS ops_portable
#define TENTH_NAME "portable"
#include "isa.inc"
