// SPDX-License-Identifier: GPL-2.0
/* The C helpers of the `ferrule` crate. See helpers.h. */

#include "bindings_helper.h"

/* All of it is in ferrule_helpers.bc then: see helpers.h. */
#if !defined(CONFIG_RUST_INLINE_HELPERS) || defined(FERRULE_INLINE_HELPERS)

#include "helpers/compat.c"
#include "helpers/memalloc.c"
#include "helpers/numa.c"
#include "helpers/percpu.c"
#include "helpers/workqueue.c"

#ifdef FERRULE_FEATURE_device_mapper
#include "helpers/bio.c"
#include "helpers/device_mapper.c"
#endif

#ifdef FERRULE_FEATURE_path_selector
#include "helpers/path_selector.c"
#endif

#ifdef FERRULE_FEATURE_virtio
#include "helpers/virtio.c"
#endif

#ifdef FERRULE_FEATURE_balloon
#include "helpers/mm.c"
#endif

#ifdef FERRULE_FEATURE_power
#include "helpers/power.c"
#endif

#endif
