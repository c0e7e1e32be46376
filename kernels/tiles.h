/* Shared by the files that use AMX: tiles of 16 rows x 64 bytes, and Linux's permission to use them. */
#if !defined __AMX_BF16__ && !defined __AMXBF16__ /* as older clangs name it */
#error "needs a processor with AMX and a compiler that knows it"
#endif
#include <immintrin.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { TILE = 16, DEPTH = 32 };  /* rows or columns of a tile, and how many bfloat16 values its rows sum up */
enum { GET_PERMISSION = 0x1023, TILE_DATA = 18 };  /* of arch_prctl; the kernel keeps room for tiles on demand only */
#define ALWAYS_INLINE static inline __attribute__((always_inline))

/* Return 0 if Linux lets this process use tiles. */
int permitted(void) { return (int)syscall(SYS_arch_prctl, GET_PERMISSION, TILE_DATA); }

/* All tiles of a thread at their full size. */
static void configure(void) {
    struct {
        uint8_t palette, start, reserved[14];
        uint16_t bytes[16];
        uint8_t rows[16];
    } config = {.palette = 1};
    for (int i = 0; i < 8; i++) config.bytes[i] = 4 * TILE, config.rows[i] = TILE;
    _tile_loadconfig(&config);
}
