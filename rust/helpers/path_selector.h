/* SPDX-License-Identifier: GPL-2.0 */

/* They are exported, but their header, block/blk-stat.h, is private to the block layer. */
void blk_stat_enable_accounting(struct request_queue *q);
void blk_stat_disable_accounting(struct request_queue *q);

void ferrule_path_time_requests(struct dm_path *path, bool on);
int ferrule_path_node(struct dm_path *path);
