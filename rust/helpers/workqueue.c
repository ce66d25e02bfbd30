// SPDX-License-Identifier: GPL-2.0

#include <linux/cpumask.h>

__ferrule struct workqueue_struct *ferrule_alloc_workqueue(const char *name, unsigned int flags)
{
	return alloc_workqueue("%s", flags, 0, name);
}

__ferrule void ferrule_flush_workqueue(struct workqueue_struct *queue)
{
	__flush_workqueue(queue);
}

__ferrule unsigned int ferrule_num_online_cpus(void)
{
	return num_online_cpus();
}
