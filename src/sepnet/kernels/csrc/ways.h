/* Which way each depthwise convolution goes, as far as Python has told. */
#ifndef SEPNET_WAYS_H
#define SEPNET_WAYS_H

#include "internal.h"

typedef struct {
    int by_torch; /* SEPNET_FORWARD_BY_TORCH | SEPNET_BACKWARD_BY_TORCH */
    int64_t most_threads; /* that are worth while */
} sepnet_way;

/* Whether Python has told, and what. The description's threads do not matter. */
int sepnet_way_of(const sepnet_depthwise *conv, sepnet_way *way);

#endif
