// SPDX-License-Identifier: GPL-2.0

#include <linux/log2.h>
#include <linux/mm.h>
#include <linux/sort.h>

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

__ferrule void ferrule_put_pages(struct page **pages, unsigned long count)
{
	release_pages(pages, count);
}

static int compare_pages(const void *a, const void *b)
{
	unsigned long one = page_to_pfn(*(struct page *const *)a);
	unsigned long other = page_to_pfn(*(struct page *const *)b);

	return one < other ? -1 : one > other;
}

__ferrule void ferrule_sort_pages(struct page **pages, unsigned long count)
{
	sort(pages, count, sizeof(*pages), compare_pages, NULL);
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

#ifdef CONFIG_VM_EVENT_COUNTERS
/*
 * One of all_vm_events(), in no order with others. Over possible CPUs, for all_vm_events() keeps
 * CPUs from going: what one that goes has counted is in its own numbers until it is in another's.
 */
__ferrule unsigned long ferrule_vm_event(enum vm_event_item item)
{
	unsigned long sum = 0;
	int cpu;

	for_each_possible_cpu(cpu)
		sum += per_cpu(vm_event_states, cpu).event[item];
	return sum;
}
#endif

__ferrule int ferrule_next_memory_node(int after)
{
	int nid = after < 0 ? first_node(node_states[N_MEMORY]) :
			      next_node(after, node_states[N_MEMORY]);

	return nid < MAX_NUMNODES ? nid : NUMA_NO_NODE;
}

__ferrule unsigned long ferrule_node_free_pages(int nid)
{
	struct zone *zones = NODE_DATA(nid)->node_zones;
	unsigned long pages = 0;
	int i;

	for (i = 0; i < MAX_NR_ZONES; i++)
		pages += zone_page_state(&zones[i], NR_FREE_PAGES);
	return pages;
}

/*
 * Free pages where the kernel's own memory can be: not in ZONE_MOVABLE, CMA or highmem. ULONG_MAX
 * when that is everywhere.
 */
__ferrule unsigned long ferrule_free_kernel_pages(void)
{
	unsigned long pages = 0, cma = 0;
	bool elsewhere = false;
	int nid, i;

	for_each_node_state(nid, N_MEMORY) {
		struct zone *zones = NODE_DATA(nid)->node_zones;

		for (i = 0; i < MAX_NR_ZONES; i++) {
			if (!managed_zone(&zones[i]))
				continue;
			if (i >= ZONE_MOVABLE || is_highmem(&zones[i])) {
				elsewhere = true;
				continue;
			}
			pages += zone_page_state(&zones[i], NR_FREE_PAGES);
			if (zone_cma_pages(&zones[i])) {
				elsewhere = true;
				cma += zone_page_state(&zones[i], NR_FREE_CMA_PAGES);
			}
		}
	}
	/* The two are not read at one time. */
	return elsewhere ? pages - min(pages, cma) : ULONG_MAX;
}

/*
 * How many pages are free beyond a watermark of each zone, and what lower zones keep for others:
 * of all zones, and of the one that has most.
 */
__ferrule unsigned long ferrule_free_above(enum zone_watermarks mark, unsigned long *most)
{
	unsigned long pages = 0;
	int nid, i, j;

	*most = 0;
	for_each_node_state(nid, N_MEMORY) {
		struct zone *zones = NODE_DATA(nid)->node_zones;

		for (i = 0; i < MAX_NR_ZONES; i++) {
			unsigned long free, kept = 0;

			if (!managed_zone(&zones[i]))
				continue;
			for (j = i; j < MAX_NR_ZONES; j++)
				kept = max_t(unsigned long, kept, zones[i].lowmem_reserve[j]);
			kept += wmark_pages(&zones[i], mark) + zones[i].nr_free_highatomic;
			free = zone_page_state(&zones[i], NR_FREE_PAGES);
			if (free > kept) {
				pages += free - kept;
				*most = max(*most, free - kept);
			}
		}
	}
	return pages;
}

/* Fewer pages need not lie together. */
#define LEAST_TOGETHER 16

#define MOST_IN_BULK 16ul

/*
 * One by one. With init_on_alloc the bulk allocator clears all of its pages with preemption
 * disabled, and the host may take its time to populate them: a minute was seen for 16.
 */
static unsigned long alloc_singly(gfp_t gfp, int nid, unsigned long count, struct page **pages)
{
	unsigned long n;

	for (n = 0; n < count; n++) {
		pages[n] = alloc_pages_node(nid, gfp, 0);
		if (!pages[n])
			break;
	}
	return n;
}

/* Single pages that lie together. */
static bool alloc_together(gfp_t gfp, int nid, unsigned int order, struct page **pages)
{
	struct page *block = order <= MAX_PAGE_ORDER ? alloc_pages_node(nid, gfp, order) : NULL;
	unsigned int i;

	if (!block)
		return false;
	split_page(block, order);
	for (i = 0; i < 1U << order; i++)
		pages[i] = block + i;
	return true;
}

/*
 * As balloon_page_alloc(), many at a time. Elements of the array have to be NULL. In the
 * background: kswapd reclaims, and the caller does not. Otherwise pages that lie together come
 * first, if any are free: a host's huge page is split once then, and emptied whole.
 */
__ferrule unsigned long ferrule_alloc_balloon_pages(int nid, bool only_there, bool in_background,
						    unsigned long count, struct page **pages)
{
	gfp_t gfp = __GFP_NOMEMALLOC | __GFP_NORETRY | __GFP_NOWARN;

	gfp |= IS_ENABLED(CONFIG_BALLOON_MIGRATION) ? GFP_HIGHUSER_MOVABLE : GFP_HIGHUSER;
	if (only_there)
		gfp |= __GFP_THISNODE;
	if (in_background)
		gfp &= ~__GFP_DIRECT_RECLAIM;
	else if (count >= LEAST_TOGETHER && is_power_of_2(count) &&
		 alloc_together(gfp & ~__GFP_RECLAIM, nid, ilog2(count), pages))
		return count;
	count = min(count, MOST_IN_BULK);
	return want_init_on_alloc(gfp) ? alloc_singly(gfp, nid, count, pages) :
					 alloc_pages_bulk_node(gfp, nid, count, pages);
}

__ferrule unsigned int ferrule_page_block_order(void)
{
	return pageblock_order;
}

static bool has_cma(void)
{
	int nid, i;

	if (!IS_ENABLED(CONFIG_CMA))
		return false;
	for_each_node_state(nid, N_MEMORY) {
		for (i = 0; i < MAX_NR_ZONES; i++) {
			if (zone_cma_pages(&NODE_DATA(nid)->node_zones[i]))
				return true;
		}
	}
	return false;
}

/*
 * What is free in one piece. To compact: memory of this node may be compacted for it, but nothing
 * is reclaimed. That is what __GFP_NORETRY with __GFP_THISNODE means to the allocator, for
 * transparent huge pages. To wake kswapd, if there is none: it reclaims up to twice as much.
 *
 * Whole page blocks cannot be migrated. So they must not be where only what can be may be: not in
 * ZONE_MOVABLE, by the zone, and not in CMA. But they come from the free memory for what can be
 * moved, where there is no CMA: they would turn page blocks of that into unmovable ones, and these
 * stay so. What is smaller is going to be single pages, which can be migrated.
 */
__ferrule struct page *ferrule_alloc_block(int nid, bool only_there, unsigned int order,
					   bool compact, bool wake_kswapd)
{
	gfp_t gfp = __GFP_NOMEMALLOC | __GFP_NOWARN | __GFP_HARDWALL;

	if (compact)
		gfp |= __GFP_DIRECT_RECLAIM | __GFP_IO | __GFP_FS | __GFP_NORETRY | __GFP_THISNODE;
	if (wake_kswapd)
		gfp |= __GFP_KSWAPD_RECLAIM;
	if (only_there)
		gfp |= __GFP_THISNODE;
	if (order < pageblock_order) {
		if (IS_ENABLED(CONFIG_BALLOON_MIGRATION))
			gfp |= __GFP_HIGHMEM | __GFP_MOVABLE;
	} else if (!has_cma()) {
		gfp |= __GFP_MOVABLE;
	}
	return alloc_pages_node(nid, gfp, order);
}

__ferrule void ferrule_free_block(struct page *block, unsigned int order)
{
	__free_pages(block, order);
}

/* Makes single pages of it, each with a reference. */
__ferrule void ferrule_split_block(struct page *block, unsigned int order)
{
	split_page(block, order);
}

/* As balloon_page_enqueue() for each of its pages, which cannot be migrated. */
__ferrule void ferrule_block_inflated(struct page *block, unsigned int order, bool managed)
{
	unsigned int i;

	/* Nobody should look at its contents: a dump, for example. */
	for (i = 0; i < 1U << order; i++)
		__SetPageOffline(block + i);
	if (managed)
		adjust_managed_page_count(block, -(1L << order));
	mod_node_page_state(page_pgdat(block), NR_BALLOON_PAGES, 1L << order);
	count_vm_events(BALLOON_INFLATE, 1UL << order);
}

__ferrule void ferrule_block_deflated(struct page *block, unsigned int order, bool managed)
{
	unsigned int i;

	for (i = 0; i < 1U << order; i++)
		__ClearPageOffline(block + i);
	if (managed)
		adjust_managed_page_count(block, 1L << order);
	mod_node_page_state(page_pgdat(block), NR_BALLOON_PAGES, -(1L << order));
	count_vm_events(BALLOON_DEFLATE, 1UL << order);
}

__ferrule unsigned long ferrule_page_private(const struct page *page)
{
	return page_private(page);
}

__ferrule void ferrule_set_page_private(struct page *page, unsigned long value)
{
	set_page_private(page, value);
}

__ferrule struct page *ferrule_nth_page(struct page *block, unsigned int n)
{
	return block + n;
}

__ferrule void ferrule_sg_set_block(struct scatterlist *sg, struct page *block, unsigned int order)
{
	sg_set_page(sg, block, PAGE_SIZE << order, 0);
}

__ferrule bool ferrule_want_init_on_free(void)
{
	return want_init_on_free();
}

__ferrule bool ferrule_page_poisoning_enabled(void)
{
	return page_poisoning_enabled_static();
}

__ferrule struct shrinker *ferrule_shrinker_alloc(const char *name)
{
	return shrinker_alloc(0, "%s", name);
}

__ferrule int ferrule_register_memory_notifier(struct notifier_block *block)
{
	return register_memory_notifier(block);
}

__ferrule void ferrule_unregister_memory_notifier(struct notifier_block *block)
{
	unregister_memory_notifier(block);
}

/* How many pages are about to go offline, and the first one's number; 0 if it is another event. */
__ferrule unsigned long ferrule_going_offline(unsigned long event, const void *data,
					      unsigned long *first)
{
#ifdef CONFIG_MEMORY_HOTPLUG
	const struct memory_notify *notify = data;

	if (event == MEM_GOING_OFFLINE) {
		*first = notify->start_pfn;
		return notify->nr_pages;
	}
#endif
	return 0;
}
