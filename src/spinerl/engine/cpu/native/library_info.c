/* What Python reads, and checks, when it loads the library. */

#include "gemm.h"
#include "kernels.h"

static const library_info_t info = {
    .info_size = sizeof(library_info_t),
    .abi_version = ABI_VERSION,
    .decode_attention_size = sizeof(decode_attention_args),
    .extend_attention_size = sizeof(extend_attention_args),
    .layer_weights_size = sizeof(layer_weights),
    .layer_state_size = sizeof(layer_state),
    .decoder_step_size = sizeof(decoder_step_args),
    .lanes = LANES,
    .panel = PANEL,
    .tile = TILE,
    .num_parts = NUM_PARTS,
    .rows_per_task = ROWS_PER_TASK,
    .num_saved = NUM_SAVED,
    .has_wide_registers = REG_BYTES >= 32, /* grad_weight and grad_input pay: with less, oneDNN is faster */
    .head_dims = {16, 32, 64, 128, 256},   /* as in `decode_attention_task` */
};

const library_info_t *library_info(void) { return &info; }
