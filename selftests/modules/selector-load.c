// SPDX-License-Identifier: GPL-2.0
/*
 * A stand-in for dm-multipath that does nothing but call path selectors, from all CPUs at once.
 *
 * Selectors register with the functions exported here when the module that they are in has been
 * told so:
 *
 *	llvm-objcopy --redefine-sym dm_register_path_selector=selector_load_register \
 *		--redefine-sym dm_unregister_path_selector=selector_load_unregister MODULE.ko
 *
 * What is written to the parameter "run" is then done at once:
 *
 *	select NAME CPUS MILLISECONDS WEIGHT...
 *		a thread on each CPU selects paths of one group; "run" reads as how often, and how
 *		many nanoseconds it took them in all
 *	fail NAME PAIRS MILLISECONDS WEIGHT...
 *		the first path fails and is reinstated, with interrupts off; "run" reads as how
 *		often that was called, and how many nanoseconds it took
 *
 * A WEIGHT is a path's argument: as many as there are paths.
 */

#include <linux/completion.h>
#include <linux/kthread.h>
#include <linux/ktime.h>
#include <linux/module.h>
#include <linux/moduleparam.h>
#include <linux/mutex.h>
#include <linux/sched.h>
#include <linux/slab.h>
#include <linux/string.h>

#include "dm-path-selector.h"
#include "selector-load.h"

#define MAX_TYPES 4
#define MAX_WORDS 1100
/* Calls between looks at the clock. */
#define BATCH 256

static DEFINE_MUTEX(lock);
static struct path_selector_type types[MAX_TYPES];
static u64 calls, took_ns;

int selector_load_register(struct path_selector_type *type)
{
	int i, r = -EBUSY;

	mutex_lock(&lock);
	for (i = 0; i < MAX_TYPES; i++) {
		if (types[i].name)
			continue;
		types[i] = *type;
		r = 0;
		break;
	}
	mutex_unlock(&lock);
	return r;
}
EXPORT_SYMBOL_GPL(selector_load_register);

void selector_load_unregister(struct path_selector_type *type)
{
	int i;

	mutex_lock(&lock);
	for (i = 0; i < MAX_TYPES; i++)
		if (types[i].name && !strcmp(types[i].name, type->name))
			memset(&types[i], 0, sizeof(types[i]));
	mutex_unlock(&lock);
}
EXPORT_SYMBOL_GPL(selector_load_unregister);

/* A priority group, as dm-multipath has it. */
struct group {
	struct path_selector ps;
	struct dm_path *paths;
};

struct worker {
	struct path_selector *ps;
	struct completion *start;
	struct completion done;
	u64 for_ns;
	u64 calls;
	u64 took_ns;
	bool is_lost;
};

static int selecting(void *data)
{
	struct worker *worker = data;
	u64 begin, now;
	int i;

	wait_for_completion(worker->start);
	begin = ktime_get_ns();
	do {
		for (i = 0; i < BATCH; i++)
			if (!worker->ps->type->select_path(worker->ps, 4096))
				worker->is_lost = true;
		worker->calls += BATCH;
		cond_resched();
		now = ktime_get_ns();
	} while (now - begin < worker->for_ns);
	worker->took_ns = now - begin;
	complete(&worker->done);
	return 0;
}

static int run_select(struct group *group, unsigned int cpus, u64 for_ns)
{
	struct completion start;
	struct worker *workers;
	unsigned int cpu, started = 0;
	int r = 0;

	if (!cpus || cpus > num_online_cpus())
		return -EINVAL;
	workers = kcalloc(cpus, sizeof(*workers), GFP_KERNEL);
	if (!workers)
		return -ENOMEM;
	init_completion(&start);
	for_each_online_cpu(cpu) {
		struct worker *worker = &workers[started];
		struct task_struct *task;

		if (started == cpus)
			break;
		worker->ps = &group->ps;
		worker->start = &start;
		worker->for_ns = for_ns;
		init_completion(&worker->done);
		task = kthread_create_on_cpu(selecting, worker, cpu, "select/%u");
		if (IS_ERR(task)) {
			r = PTR_ERR(task);
			break;
		}
		wake_up_process(task);
		started++;
	}
	complete_all(&start);
	while (started--) {
		wait_for_completion(&workers[started].done);
		calls += workers[started].calls;
		took_ns += workers[started].took_ns;
		if (workers[started].is_lost)
			r = -ENXIO;
	}
	kfree(workers);
	return r;
}

static DEFINE_SPINLOCK(multipath_lock);

static int run_fail(struct group *group, unsigned int pairs)
{
	struct path_selector *ps = &group->ps;
	struct dm_path *path = &group->paths[0];
	unsigned long flags;
	u64 begin;

	while (pairs--) {
		/* As dm-multipath calls it: under its lock. */
		spin_lock_irqsave(&multipath_lock, flags);
		begin = ktime_get_ns();
		ps->type->fail_path(ps, path);
		ps->type->reinstate_path(ps, path);
		took_ns += ktime_get_ns() - begin;
		spin_unlock_irqrestore(&multipath_lock, flags);
		calls += 2;
		cond_resched();
	}
	return 0;
}

static int make_group(struct group *group, struct path_selector_type *type, unsigned int argc,
		      char **argv)
{
	char *error = "no memory";
	unsigned int i;
	int r = -ENOMEM;

	group->paths = kcalloc(argc, sizeof(*group->paths), GFP_KERNEL);
	if (group->paths)
		r = type->create(&group->ps, 0, NULL);
	if (!r)
		group->ps.type = type;
	for (i = 0; i < argc && !r; i++)
		r = type->add_path(&group->ps, &group->paths[i], 1, &argv[i], &error);
	if (r)
		pr_err("%s\n", error);
	return r;
}

static int run_words(unsigned int argc, char **argv)
{
	struct path_selector_type *type = NULL;
	struct group group = {};
	unsigned int number, ms, i;
	int r;

	if (argc < 5 || kstrtouint(argv[2], 10, &number) || kstrtouint(argv[3], 10, &ms))
		return -EINVAL;
	for (i = 0; i < MAX_TYPES; i++)
		if (types[i].name && !strcmp(types[i].name, argv[1]))
			type = &types[i];
	if (!type)
		return -ENOENT;

	calls = 0;
	took_ns = 0;
	r = make_group(&group, type, argc - 4, argv + 4);
	if (!r && !strcmp(argv[0], "select"))
		r = run_select(&group, number, (u64)ms * NSEC_PER_MSEC);
	else if (!r && !strcmp(argv[0], "fail"))
		r = run_fail(&group, number);
	else if (!r)
		r = -EINVAL;
	if (group.ps.type)
		type->destroy(&group.ps);
	kfree(group.paths);
	return r;
}

static int set_run(const char *value, const struct kernel_param *param)
{
	char *words, *next, **argv;
	unsigned int argc = 0;
	int r = -ENOMEM;

	words = kstrdup(value, GFP_KERNEL);
	argv = kcalloc(MAX_WORDS, sizeof(*argv), GFP_KERNEL);
	if (!words || !argv)
		goto out;
	next = strim(words);
	while (next && argc < MAX_WORDS) {
		argv[argc] = strsep(&next, " ");
		if (*argv[argc])
			argc++;
	}
	mutex_lock(&lock);
	r = run_words(argc, argv);
	mutex_unlock(&lock);
out:
	kfree(argv);
	kfree(words);
	return r;
}

static int get_run(char *buffer, const struct kernel_param *param)
{
	int r;

	mutex_lock(&lock);
	r = sysfs_emit(buffer, "%llu %llu\n", calls, took_ns);
	mutex_unlock(&lock);
	return r;
}

static const struct kernel_param_ops run_ops = {
	.set = set_run,
	.get = get_run,
};

module_param_cb(run, &run_ops, NULL, 0600);
MODULE_PARM_DESC(run, "what to do, and what came of it");

MODULE_DESCRIPTION("Calls multipath path selectors from all CPUs");
MODULE_LICENSE("GPL");
