/* SPDX-License-Identifier: GPL-2.0 */

struct workqueue_struct *ferrule_alloc_workqueue(const char *name, unsigned int flags);
void ferrule_flush_workqueue(struct workqueue_struct *queue);
unsigned int ferrule_num_online_cpus(void);
