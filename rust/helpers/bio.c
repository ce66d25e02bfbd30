// SPDX-License-Identifier: GPL-2.0

__ferrule void ferrule_bio_set_dev(struct bio *bio, struct block_device *bdev)
{
	bio_set_dev(bio, bdev);
}

/* In how many parts a disk is divided to tell those apart of whom nothing else is known. */
#define FERRULE_PARTS	64

__ferrule unsigned int ferrule_bio_submitter(struct bio *bio)
{
#ifdef CONFIG_BLK_CGROUP
	struct cgroup_subsys_state *css = bio_blkcg_css(bio);

	if (css && css->parent)
		return css->id;
#endif
	if (!(current->flags & PF_KTHREAD))
		return task_tgid_nr(current);
	return bio->bi_iter.bi_sector /
	       (bdev_nr_sectors(bio->bi_bdev) / FERRULE_PARTS + 1);
}

/* Reads into the swap cache have no REQ_SWAP, writes from it have. */
__ferrule bool ferrule_bio_is_swap_in(struct bio *bio)
{
	return bio_op(bio) == REQ_OP_READ && bio_has_data(bio) &&
	       folio_test_swapcache(page_folio(bio_page(bio)));
}

/* As get_max_io_size() in block/blk-merge.c, for the operations that carry data. */
static unsigned int ferrule_max_io_sectors(struct bio *bio, const struct queue_limits *lim)
{
	unsigned int pbs = lim->physical_block_size >> SECTOR_SHIFT;
	unsigned int lbs = lim->logical_block_size >> SECTOR_SHIFT;
	unsigned int max_sectors = lim->max_sectors;
	unsigned int start, end;

	if (bio_op(bio) == REQ_OP_ZONE_APPEND)
		max_sectors = lim->max_zone_append_sectors;
	if (lim->chunk_sectors)
		max_sectors = min(max_sectors,
				  blk_boundary_sectors_left(bio->bi_iter.bi_sector,
							    lim->chunk_sectors));

	start = bio->bi_iter.bi_sector & (pbs - 1);
	end = (start + max_sectors) & ~(pbs - 1);
	if (end > start)
		return end - start;
	return max_sectors & ~(lbs - 1);
}

/*
 * How many I/Os the device that the bio is directed to makes of it: what __bio_split_to_limits()
 * would do, without doing it. The bio must carry data.
 */
__ferrule unsigned int ferrule_bio_count_splits(struct bio *bio)
{
	const struct queue_limits *lim = bdev_limits(bio->bi_bdev);
	const struct bvec_iter iter = bio->bi_iter;
	const blk_opf_t opf = bio->bi_opf;
	const u8 gap_bit = bio->bi_bvec_gap_bit;
	unsigned int n = 1;
	unsigned int segs;
	int split;

	/* Cannot be split: one piece whatever it is. */
	if (opf & REQ_ATOMIC)
		return 1;
	/* bio_split_io_at() refuses to split these, and takes polling away from what it splits. */
	bio->bi_opf &= ~(REQ_NOWAIT | REQ_POLLED);
	/* Boundaries are those of the whole disk. */
	bio->bi_iter.bi_sector += get_start_sect(bio->bi_bdev);
	for (;;) {
		split = bio_split_io_at(bio, lim, &segs,
					ferrule_max_io_sectors(bio, lim) << SECTOR_SHIFT,
					lim->dma_alignment);
		/* Zero: the rest fits. Negative: the device will refuse it. */
		if (split <= 0)
			break;
		n++;
		bio_advance_iter(bio, &bio->bi_iter, split << SECTOR_SHIFT);
	}
	bio->bi_iter = iter;
	bio->bi_opf = opf;
	bio->bi_bvec_gap_bit = gap_bit;
	return n;
}

__ferrule sector_t ferrule_bdev_nr_sectors(struct block_device *bdev)
{
	return bdev_nr_sectors(bdev);
}

__ferrule bool ferrule_bdev_is_zoned(struct block_device *bdev)
{
	return bdev_is_zoned(bdev);
}

/* Has the disk been taken away, or begun to be? */
__ferrule bool ferrule_bdev_is_dead(struct block_device *bdev)
{
	struct gendisk *disk = bdev->bd_disk;

	return test_bit(GD_DEAD, &disk->state) || blk_queue_dying(disk->queue);
}
