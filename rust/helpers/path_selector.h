/* SPDX-License-Identifier: GPL-2.0 */

void ferrule_path_time_requests(struct dm_path *path, bool on);
