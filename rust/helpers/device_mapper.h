/* SPDX-License-Identifier: GPL-2.0 */

#include <linux/dax.h>

void ferrule_dm_devices_below(struct block_device *bdev,
			      bool (*visit)(void *data, struct mapped_device *md), void *data);
struct gendisk *ferrule_dm_get_disk(struct dm_table *table);
void ferrule_put_disk(struct gendisk *disk);
bool ferrule_disk_is_freezing(struct gendisk *disk);

struct dax_device *ferrule_dm_dax_pgoff(struct dm_target *ti, struct dm_dev *dev, sector_t start,
					unsigned long *pgoff);
long ferrule_dax_direct_access(struct dax_device *dax_dev, unsigned long pgoff, long nr_pages,
			       enum dax_access_mode mode, void **kaddr, unsigned long *pfn);
int ferrule_dax_zero_page_range(struct dax_device *dax_dev, unsigned long pgoff, size_t nr_pages);
size_t ferrule_dax_recovery_write(struct dax_device *dax_dev, unsigned long pgoff, void *addr,
				  size_t bytes, struct iov_iter *iter);
