// SPDX-License-Identifier: GPL-2.0

#include <dm-core.h>

/*
 * Which mapped devices a table uses is known to device mapper's core only: its header asks
 * targets to leave that alone. But there is no other way to see that a device lies on another.
 */
#define FERRULE_MAX_STACK	16

static void ferrule_devices_below(struct block_device *bdev,
				  bool (*visit)(void *data, struct mapped_device *md),
				  void *data, unsigned int depth)
{
	struct mapped_device *md = dm_get_md(disk_devt(bdev->bd_disk));
	struct dm_dev_internal *dd;
	struct dm_table *map;
	int idx;

	if (!md)
		return;
	if (visit(data, md) && depth < FERRULE_MAX_STACK) {
		idx = srcu_read_lock(&md->io_barrier);
		map = srcu_dereference(md->map, &md->io_barrier);
		/* Devices come to a table while it is made. */
		if (map)
			list_for_each_entry(dd, &map->devices, list)
				ferrule_devices_below(dd->dm_dev->bdev, visit, data, depth + 1);
		srcu_read_unlock(&md->io_barrier, idx);
	}
	dm_put(md);
}

__ferrule void ferrule_dm_devices_below(struct block_device *bdev,
					bool (*visit)(void *data, struct mapped_device *md),
					void *data)
{
	ferrule_devices_below(bdev, visit, data, 0);
}

__ferrule struct gendisk *ferrule_dm_get_disk(struct dm_table *table)
{
	struct gendisk *disk = dm_disk(dm_table_get_md(table));

	get_device(disk_to_dev(disk));
	return disk;
}

__ferrule void ferrule_put_disk(struct gendisk *disk)
{
	put_device(disk_to_dev(disk));
}

/* bdev_freeze() holds this while the file system writes what it has. */
__ferrule bool ferrule_disk_is_freezing(struct gendisk *disk)
{
	return mutex_is_locked(&disk->part0->bd_fsfreeze_mutex);
}

#if IS_ENABLED(CONFIG_FS_DAX)
/* As linear_dax_pgoff() in drivers/md/dm-linear.c. */
__ferrule struct dax_device *ferrule_dm_dax_pgoff(struct dm_target *ti, struct dm_dev *dev,
						  sector_t start, unsigned long *pgoff)
{
	sector_t sector = start + dm_target_offset(ti, (sector_t)*pgoff << PAGE_SECTORS_SHIFT);

	*pgoff = (get_start_sect(dev->bdev) + sector) >> PAGE_SECTORS_SHIFT;
	return dev->dax_dev;
}

__ferrule long ferrule_dax_direct_access(struct dax_device *dax_dev, unsigned long pgoff,
					 long nr_pages, enum dax_access_mode mode, void **kaddr,
					 unsigned long *pfn)
{
	return dax_direct_access(dax_dev, pgoff, nr_pages, mode, kaddr, pfn);
}

__ferrule int ferrule_dax_zero_page_range(struct dax_device *dax_dev, unsigned long pgoff,
					  size_t nr_pages)
{
	return dax_zero_page_range(dax_dev, pgoff, nr_pages);
}

__ferrule size_t ferrule_dax_recovery_write(struct dax_device *dax_dev, unsigned long pgoff,
					    void *addr, size_t bytes, struct iov_iter *iter)
{
	return dax_recovery_write(dax_dev, pgoff, addr, bytes, iter);
}
#endif
