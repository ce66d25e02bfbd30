/* SPDX-License-Identifier: GPL-2.0 */

#include <linux/sched/mm.h>

unsigned int ferrule_memalloc_noio_save(void);
void ferrule_memalloc_noio_restore(unsigned int flags);
