// SPDX-License-Identifier: GPL-2.0

__ferrule void ferrule_bio_set_dev(struct bio *bio, struct block_device *bdev)
{
	bio_set_dev(bio, bdev);
}
