/* SPDX-License-Identifier: GPL-2.0 */

int ferrule_cpu_node(u32 cpu);
int ferrule_node_distance(int from, int to);
