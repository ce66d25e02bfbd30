// SPDX-License-Identifier: GPL-2.0

#include <linux/mm.h>

__ferrule void ferrule_balloon_devinfo_init(struct balloon_dev_info *balloon)
{
	balloon_devinfo_init(balloon);
}

__ferrule unsigned long ferrule_page_to_pfn(const struct page *page)
{
	return page_to_pfn(page);
}

__ferrule void ferrule_put_page(struct page *page)
{
	put_page(page);
}

__ferrule void ferrule_page_list_add_tail(struct page *page, struct list_head *pages)
{
	list_add_tail(&page->lru, pages);
}

__ferrule struct page *ferrule_page_list_pop(struct list_head *pages)
{
	struct page *page = list_first_entry_or_null(pages, struct page, lru);

	if (page)
		list_del(&page->lru);
	return page;
}

__ferrule unsigned long ferrule_global_node_page_state(enum node_stat_item item)
{
	return global_node_page_state(item);
}
