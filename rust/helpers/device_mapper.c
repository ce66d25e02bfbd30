// SPDX-License-Identifier: GPL-2.0

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
