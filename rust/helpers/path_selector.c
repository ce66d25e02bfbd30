// SPDX-License-Identifier: GPL-2.0

__ferrule void ferrule_path_time_requests(struct dm_path *path, bool on)
{
	struct request_queue *q = bdev_get_queue(path->dev->bdev);

	if (!queue_is_mq(q))
		return;
	if (on)
		blk_stat_enable_accounting(q);
	else
		blk_stat_disable_accounting(q);
}

/* A disk has the node of the device that it is behind, an HBA for example. */
__ferrule int ferrule_path_node(struct dm_path *path)
{
	return dev_to_node(&path->dev->bdev->bd_device);
}
