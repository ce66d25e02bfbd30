// SPDX-License-Identifier: GPL-2.0

#include <linux/mm.h>

/* Unlike virtio_has_feature(), this does not BUG() on a bit that the driver did not ask for. */
__ferrule bool ferrule_virtio_test_bit(const struct virtio_device *vdev, unsigned int bit)
{
	return __virtio_test_bit(vdev, bit);
}

__ferrule void ferrule_virtio_clear_bit(struct virtio_device *vdev, unsigned int bit)
{
	__virtio_clear_bit(vdev, bit);
}

__ferrule bool ferrule_virtio_is_little_endian(struct virtio_device *vdev)
{
	return virtio_is_little_endian(vdev);
}

__ferrule int ferrule_virtio_find_vqs(struct virtio_device *vdev, unsigned int n,
				      struct virtqueue **vqs, struct virtqueue_info *infos)
{
	return virtio_find_vqs(vdev, n, vqs, infos, NULL);
}

__ferrule void ferrule_virtio_del_vqs(struct virtio_device *vdev)
{
	vdev->config->del_vqs(vdev);
}

/* Does nothing when the device is ready already. */
__ferrule void ferrule_virtio_device_ready(struct virtio_device *vdev)
{
	if (!(vdev->config->get_status(vdev) & VIRTIO_CONFIG_S_DRIVER_OK))
		virtio_device_ready(vdev);
}

/*
 * As virtio_cread_le() does: up to four bytes at once, eight bytes again and again until the
 * generation did not change in between.
 */
__ferrule int ferrule_virtio_cread(struct virtio_device *vdev, unsigned int offset, void *buf,
				   unsigned int len)
{
	if (!vdev->config->get)
		return -EINVAL;
	if (len <= 4)
		vdev->config->get(vdev, offset, buf, len);
	else
		__virtio_cread_many(vdev, offset, buf, 1, len);
	return 0;
}

__ferrule int ferrule_virtio_cwrite(struct virtio_device *vdev, unsigned int offset,
				    const void *buf, unsigned int len)
{
	if (!vdev->config->set)
		return -EINVAL;
	vdev->config->set(vdev, offset, buf, len);
	return 0;
}

__ferrule bool ferrule_virtio_trylock(struct virtio_device *vdev)
{
	return device_trylock(&vdev->dev);
}

__ferrule void ferrule_virtio_unlock(struct virtio_device *vdev)
{
	device_unlock(&vdev->dev);
}

/* A kernel that does not sleep has neither. */
__ferrule int ferrule_virtio_freeze(struct virtio_device *vdev)
{
#ifdef CONFIG_PM_SLEEP
	return virtio_device_freeze(vdev);
#else
	return -EOPNOTSUPP;
#endif
}

__ferrule int ferrule_virtio_restore(struct virtio_device *vdev)
{
#ifdef CONFIG_PM_SLEEP
	return virtio_device_restore(vdev);
#else
	return -EOPNOTSUPP;
#endif
}

/* A scatterlist entry takes memory of the linear map only: neither vmalloc memory nor a stack. */
__ferrule bool ferrule_sg_mappable(const void *buf, unsigned int len)
{
	return len && virt_addr_valid(buf) && virt_addr_valid(buf + len - 1);
}

__ferrule void ferrule_device_set_wakeup_capable(struct device *dev)
{
	device_set_wakeup_capable(dev, true);
}

__ferrule void ferrule_pm_stay_awake(struct device *dev)
{
	pm_stay_awake(dev);
}

__ferrule void ferrule_pm_relax(struct device *dev)
{
	pm_relax(dev);
}
