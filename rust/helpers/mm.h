/* SPDX-License-Identifier: GPL-2.0 */
#ifndef FERRULE_HELPERS_MM_H
#define FERRULE_HELPERS_MM_H

#include <linux/balloon.h>
#include <linux/memory.h>
#include <linux/mmzone.h>
#include <linux/oom.h>
#include <linux/poison.h>
#include <linux/scatterlist.h>
#include <linux/shrinker.h>
#include <linux/vmstat.h>

void ferrule_balloon_devinfo_init(struct balloon_dev_info *balloon);
unsigned long ferrule_page_to_pfn(const struct page *page);
void ferrule_put_page(struct page *page);
void ferrule_put_pages(struct page **pages, unsigned long count);
void ferrule_sort_pages(struct page **pages, unsigned long count);
void ferrule_page_list_add_tail(struct page *page, struct list_head *pages);
struct page *ferrule_page_list_pop(struct list_head *pages);
unsigned long ferrule_global_node_page_state(enum node_stat_item item);

#ifdef CONFIG_VM_EVENT_COUNTERS
unsigned long ferrule_vm_event(enum vm_event_item item);
#endif
int ferrule_next_memory_node(int after);
unsigned long ferrule_node_free_pages(int nid);
unsigned long ferrule_free_kernel_pages(void);
unsigned long ferrule_free_above(enum zone_watermarks mark, unsigned long *most);
unsigned long ferrule_alloc_balloon_pages(int nid, bool only_there, bool in_background,
					  unsigned long count, struct page **pages);
unsigned int ferrule_page_block_order(void);
struct page *ferrule_alloc_block(int nid, bool only_there, unsigned int order, bool compact,
				 bool wake_kswapd);
void ferrule_free_block(struct page *block, unsigned int order);
void ferrule_split_block(struct page *block, unsigned int order);
void ferrule_block_inflated(struct page *block, unsigned int order, bool managed);
void ferrule_block_deflated(struct page *block, unsigned int order, bool managed);
unsigned long ferrule_page_private(const struct page *page);
void ferrule_set_page_private(struct page *page, unsigned long value);
struct page *ferrule_nth_page(struct page *block, unsigned int n);
void ferrule_sg_set_block(struct scatterlist *sg, struct page *block, unsigned int order);
bool ferrule_want_init_on_free(void);
bool ferrule_page_poisoning_enabled(void);
struct shrinker *ferrule_shrinker_alloc(const char *name);
int ferrule_register_memory_notifier(struct notifier_block *block);
void ferrule_unregister_memory_notifier(struct notifier_block *block);
unsigned long ferrule_going_offline(unsigned long event, const void *data, unsigned long *first);

enum ferrule_mm {
	FERRULE_MAX_PAGE_ORDER = MAX_PAGE_ORDER,
	FERRULE_PAGE_POISON = PAGE_POISON,
};

#endif
