/* SPDX-License-Identifier: GPL-2.0 */

u64 *ferrule_alloc_percpu_u64(size_t n);
void ferrule_free_percpu_u64(u64 *counters);
void ferrule_this_cpu_add_u64(u64 *counter, u64 value);
void ferrule_this_cpu_add_two_u64(u64 *counters, u64 first, u64 second);
u64 ferrule_this_cpu_add_return_u64(u64 *counter, u64 value);
u64 ferrule_per_cpu_sum_u64(u64 *counter);
u64 ferrule_per_cpu_read_u64(u64 *counter, u32 cpu);

u32 *ferrule_alloc_percpu_u32(void);
void ferrule_free_percpu_u32(u32 *word);
u32 ferrule_this_cpu_read_u32(u32 *word);
u64 ferrule_this_cpu_read_two_u32(u32 *first, u32 *second);
u32 ferrule_this_cpu_add_return_u32(u32 *word, u32 value);
bool ferrule_this_cpu_try_cmpxchg_u32(u32 *word, u32 *old, u32 new);
u32 *ferrule_per_cpu_ptr_u32(u32 *word, u32 cpu);
