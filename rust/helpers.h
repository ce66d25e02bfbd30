/* SPDX-License-Identifier: GPL-2.0 */
/*
 * C helpers for what bindgen cannot bind: macros, inline functions and bitfields. One pair of files
 * an area, as in the kernel's rust/helpers/. Declared here so that the compiler checks each
 * definition against what the bindings say.
 */
#ifndef FERRULE_HELPERS_H
#define FERRULE_HELPERS_H

/*
 * Each module carries its own copy. Two copies that are built in are the same code: the linker
 * takes either.
 */
#define __ferrule __weak

#include "helpers/bio.h"
#include "helpers/device_mapper.h"
#include "helpers/mm.h"
#include "helpers/percpu.h"
#include "helpers/virtio.h"
#include "helpers/workqueue.h"

#endif
