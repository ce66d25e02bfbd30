// SPDX-License-Identifier: GPL-2.0

#include <linux/topology.h>

__ferrule int ferrule_cpu_node(u32 cpu)
{
	if (cpu >= nr_cpu_ids || !cpu_possible(cpu))
		return NUMA_NO_NODE;
	return cpu_to_node(cpu);
}

__ferrule int ferrule_node_distance(int from, int to)
{
	return node_distance(from, to);
}
