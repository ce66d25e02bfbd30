/* SPDX-License-Identifier: GPL-2.0 */
#ifndef FERRULE_HELPERS_MM_H
#define FERRULE_HELPERS_MM_H

#include <linux/balloon.h>
#include <linux/vmstat.h>

void ferrule_balloon_devinfo_init(struct balloon_dev_info *balloon);
unsigned long ferrule_page_to_pfn(const struct page *page);
void ferrule_put_page(struct page *page);
void ferrule_page_list_add_tail(struct page *page, struct list_head *pages);
struct page *ferrule_page_list_pop(struct list_head *pages);
unsigned long ferrule_global_node_page_state(enum node_stat_item item);

#endif
