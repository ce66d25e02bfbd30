// SPDX-License-Identifier: GPL-2.0
/*
 * "first-path": the cheapest path selector there can be. It returns the first path of the table
 * whatever happens, so what an I/O through it costs is dm-multipath's part. In C and without any
 * check, so that nothing of what others do is in it. For benchmarks.
 */

#include <linux/module.h>

#include "dm-path-selector.h"

static int first_create(struct path_selector *ps, unsigned int argc, char **argv)
{
	ps->context = NULL;
	return 0;
}

static void first_destroy(struct path_selector *ps)
{
}

static int first_add_path(struct path_selector *ps, struct dm_path *path, int argc, char **argv,
			  char **error)
{
	if (!ps->context)
		ps->context = path;
	return 0;
}

static struct dm_path *first_select_path(struct path_selector *ps, size_t nr_bytes)
{
	return ps->context;
}

static void first_fail_path(struct path_selector *ps, struct dm_path *path)
{
}

static int first_reinstate_path(struct path_selector *ps, struct dm_path *path)
{
	return 0;
}

static struct path_selector_type first_path = {
	.name = "first-path",
	.module = THIS_MODULE,
	.create = first_create,
	.destroy = first_destroy,
	.add_path = first_add_path,
	.select_path = first_select_path,
	.fail_path = first_fail_path,
	.reinstate_path = first_reinstate_path,
};

static int __init first_path_init(void)
{
	return dm_register_path_selector(&first_path);
}

static void __exit first_path_exit(void)
{
	dm_unregister_path_selector(&first_path);
}

module_init(first_path_init);
module_exit(first_path_exit);

MODULE_DESCRIPTION("Multipath path selector that always takes the first path");
MODULE_LICENSE("GPL");
