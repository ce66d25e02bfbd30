// SPDX-License-Identifier: GPL-2.0

__ferrule struct workqueue_struct *ferrule_alloc_workqueue(const char *name, unsigned int flags)
{
	return alloc_workqueue("%s", flags, 0, name);
}

__ferrule void ferrule_flush_workqueue(struct workqueue_struct *queue)
{
	__flush_workqueue(queue);
}
