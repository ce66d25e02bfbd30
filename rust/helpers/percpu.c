// SPDX-License-Identifier: GPL-2.0

#include <linux/percpu.h>

/* The bindings know no address spaces: a pointer to per-CPU data crosses as a plain one. */
#define ferrule_percpu(p) ((__force u64 __percpu *)(p))

__ferrule u64 *ferrule_alloc_percpu_u64(size_t n)
{
	return (__force u64 *)__alloc_percpu(array_size(n, sizeof(u64)), sizeof(u64));
}

__ferrule void ferrule_free_percpu_u64(u64 *counters)
{
	free_percpu(ferrule_percpu(counters));
}

__ferrule void ferrule_this_cpu_add_u64(u64 *counter, u64 value)
{
	this_cpu_add(*ferrule_percpu(counter), value);
}

__ferrule void ferrule_this_cpu_add_two_u64(u64 *counters, u64 first, u64 second)
{
	this_cpu_add(ferrule_percpu(counters)[0], first);
	this_cpu_add(ferrule_percpu(counters)[1], second);
}

__ferrule u64 ferrule_this_cpu_add_return_u64(u64 *counter, u64 value)
{
	return this_cpu_add_return(*ferrule_percpu(counter), value);
}

__ferrule u64 ferrule_per_cpu_sum_u64(u64 *counter)
{
	u64 sum = 0;
	int cpu;

	for_each_possible_cpu(cpu)
		sum += READ_ONCE(*per_cpu_ptr(ferrule_percpu(counter), cpu));
	return sum;
}
