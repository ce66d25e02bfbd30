/* SPDX-License-Identifier: GPL-2.0 */
/* Headers whose items `ferrule` binds. The list of files is in bindgen_parameters. */

#include <linux/bio.h>
#include <linux/blk-cgroup.h>
#include <linux/blkdev.h>
#include <linux/device-mapper.h>
#include <linux/virtio.h>
#include <linux/virtio_balloon.h>
#include <linux/virtio_config.h>
#include <linux/virtio_ids.h>
#include <linux/balloon.h>
#include <linux/page_reporting.h>
#include <linux/shrinker.h>
#include <linux/workqueue.h>

#include <dm-mpath.h>
#include <dm-path-selector.h>

#include "helpers.h"
