/* SPDX-License-Identifier: GPL-2.0 */

/* Casts to a sparse type, which bindgen does not evaluate. */
enum ferrule_blk_status {
	FERRULE_BLK_STS_OK = 0,
	FERRULE_BLK_STS_NOTSUPP = (__force u8)BLK_STS_NOTSUPP,
	FERRULE_BLK_STS_NOSPC = (__force u8)BLK_STS_NOSPC,
	FERRULE_BLK_STS_IOERR = (__force u8)BLK_STS_IOERR,
	FERRULE_BLK_STS_DM_REQUEUE = (__force u8)BLK_STS_DM_REQUEUE,
	FERRULE_BLK_STS_AGAIN = (__force u8)BLK_STS_AGAIN,
};

void ferrule_bio_set_dev(struct bio *bio, struct block_device *bdev);
unsigned int ferrule_bio_count_splits(struct bio *bio);
sector_t ferrule_bdev_nr_sectors(struct block_device *bdev);
bool ferrule_bdev_is_zoned(struct block_device *bdev);
bool ferrule_bdev_is_dead(struct block_device *bdev);
unsigned int ferrule_bio_submitter(struct bio *bio);
bool ferrule_bio_is_swap_in(struct bio *bio);
