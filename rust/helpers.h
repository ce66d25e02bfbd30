/* SPDX-License-Identifier: GPL-2.0 */
/*
 * C helpers for what bindgen cannot bind: macros, inline functions and bitfields. One pair of files
 * an area, as in the kernel's rust/helpers/. Declared here so that the compiler checks each
 * definition against what the bindings say.
 */
#ifndef FERRULE_HELPERS_H
#define FERRULE_HELPERS_H

/*
 * With CONFIG_RUST_INLINE_HELPERS the Rust code calls none of them: Makefile.ferrule has them
 * linked into it as bitcode and inlined, as the kernel does with its own. Otherwise each module
 * carries its own copy. Two copies that are built in are the same code: the linker takes either.
 */
#ifdef FERRULE_INLINE_HELPERS
#define __ferrule __always_inline
#else
#define __ferrule __weak
#endif

#include "helpers/bio.h"
#include "helpers/compat.h"
#include "helpers/device_mapper.h"
#include "helpers/memalloc.h"
#include "helpers/mm.h"
#include "helpers/numa.h"
#include "helpers/path_selector.h"
#include "helpers/percpu.h"
#include "helpers/power.h"
#include "helpers/virtio.h"
#include "helpers/workqueue.h"

#endif
