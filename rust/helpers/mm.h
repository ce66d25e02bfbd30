/* SPDX-License-Identifier: GPL-2.0 */
#ifndef FERRULE_HELPERS_MM_H
#define FERRULE_HELPERS_MM_H

#include <linux/balloon.h>
#include <linux/mmzone.h>
#include <linux/poison.h>
#include <linux/scatterlist.h>
#include <linux/vmstat.h>

void ferrule_balloon_devinfo_init(struct balloon_dev_info *balloon);
unsigned long ferrule_page_to_pfn(const struct page *page);
void ferrule_put_page(struct page *page);
void ferrule_page_list_add_tail(struct page *page, struct list_head *pages);
struct page *ferrule_page_list_pop(struct list_head *pages);
unsigned long ferrule_global_node_page_state(enum node_stat_item item);

struct page *ferrule_alloc_block(unsigned int order);
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

enum ferrule_mm {
	FERRULE_MAX_PAGE_ORDER = MAX_PAGE_ORDER,
	FERRULE_PAGE_POISON = PAGE_POISON,
};

#endif
