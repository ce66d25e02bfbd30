/* SPDX-License-Identifier: GPL-2.0 */
#ifndef FERRULE_HELPERS_VIRTIO_H
#define FERRULE_HELPERS_VIRTIO_H

#include <linux/virtio.h>
#include <linux/virtio_config.h>

bool ferrule_virtio_test_bit(const struct virtio_device *vdev, unsigned int bit);
void ferrule_virtio_clear_bit(struct virtio_device *vdev, unsigned int bit);
bool ferrule_virtio_is_little_endian(struct virtio_device *vdev);
int ferrule_virtio_find_vqs(struct virtio_device *vdev, unsigned int n, struct virtqueue **vqs,
			    struct virtqueue_info *infos);
void ferrule_virtio_del_vqs(struct virtio_device *vdev);
void ferrule_virtio_device_ready(struct virtio_device *vdev);
int ferrule_virtio_cread(struct virtio_device *vdev, unsigned int offset, void *buf,
			 unsigned int len);
int ferrule_virtio_cwrite(struct virtio_device *vdev, unsigned int offset, const void *buf,
			  unsigned int len);
bool ferrule_virtio_trylock(struct virtio_device *vdev);
void ferrule_virtio_unlock(struct virtio_device *vdev);
int ferrule_virtio_freeze(struct virtio_device *vdev);
int ferrule_virtio_restore(struct virtio_device *vdev);
bool ferrule_sg_mappable(const void *buf, unsigned int len);

/* Functions or, without CONFIG_PM_SLEEP, inline functions. */
void ferrule_device_set_wakeup_capable(struct device *dev);
void ferrule_pm_stay_awake(struct device *dev);
void ferrule_pm_relax(struct device *dev);

#endif
