// SPDX-License-Identifier: GPL-2.0

#include <linux/percpu.h>

/*
 * The bindings know no address spaces: a pointer to per-CPU data crosses as a plain one. GCC's
 * named address spaces are part of the type, and only an integer goes from one to the other.
 */
#define ferrule_percpu(type, p) ((type __percpu *)(__force uintptr_t)(p))
#define ferrule_plain(type, p) ((type *)(__force uintptr_t)(p))

__ferrule u64 *ferrule_alloc_percpu_u64(size_t n)
{
	return ferrule_plain(u64, __alloc_percpu(array_size(n, sizeof(u64)), sizeof(u64)));
}

__ferrule void ferrule_free_percpu_u64(u64 *counters)
{
	free_percpu(ferrule_percpu(u64, counters));
}

__ferrule void ferrule_this_cpu_add_u64(u64 *counter, u64 value)
{
	this_cpu_add(*ferrule_percpu(u64, counter), value);
}

__ferrule void ferrule_this_cpu_add_two_u64(u64 *counters, u64 first, u64 second)
{
	this_cpu_add(ferrule_percpu(u64, counters)[0], first);
	this_cpu_add(ferrule_percpu(u64, counters)[1], second);
}

__ferrule u64 ferrule_this_cpu_add_return_u64(u64 *counter, u64 value)
{
	return this_cpu_add_return(*ferrule_percpu(u64, counter), value);
}

__ferrule u64 ferrule_per_cpu_sum_u64(u64 *counter)
{
	u64 sum = 0;
	int cpu;

	for_each_possible_cpu(cpu)
		sum += READ_ONCE(*per_cpu_ptr(ferrule_percpu(u64, counter), cpu));
	return sum;
}

__ferrule u64 ferrule_per_cpu_read_u64(u64 *counter, u32 cpu)
{
	if (cpu >= nr_cpu_ids || !cpu_possible(cpu))
		return 0;
	return READ_ONCE(*per_cpu_ptr(ferrule_percpu(u64, counter), cpu));
}

__ferrule u32 *ferrule_alloc_percpu_u32(void)
{
	return ferrule_plain(u32, alloc_percpu(u32));
}

__ferrule void ferrule_free_percpu_u32(u32 *word)
{
	free_percpu(ferrule_percpu(u32, word));
}

__ferrule u32 ferrule_this_cpu_read_u32(u32 *word)
{
	return this_cpu_read(*ferrule_percpu(u32, word));
}

__ferrule u64 ferrule_this_cpu_read_two_u32(u32 *first, u32 *second)
{
	return (u64)this_cpu_read(*ferrule_percpu(u32, second)) << 32 |
	       this_cpu_read(*ferrule_percpu(u32, first));
}

__ferrule u32 ferrule_this_cpu_add_return_u32(u32 *word, u32 value)
{
	return this_cpu_add_return(*ferrule_percpu(u32, word), value);
}

__ferrule bool ferrule_this_cpu_try_cmpxchg_u32(u32 *word, u32 *old, u32 new)
{
	return this_cpu_try_cmpxchg(*ferrule_percpu(u32, word), old, new);
}

__ferrule u32 *ferrule_per_cpu_ptr_u32(u32 *word, u32 cpu)
{
	if (cpu >= nr_cpu_ids || !cpu_possible(cpu))
		return NULL;
	return per_cpu_ptr(ferrule_percpu(u32, word), cpu);
}
