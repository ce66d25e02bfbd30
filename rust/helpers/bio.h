/* SPDX-License-Identifier: GPL-2.0 */

void ferrule_bio_set_dev(struct bio *bio, struct block_device *bdev);
