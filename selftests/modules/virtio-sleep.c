// SPDX-License-Identifier: GPL-2.0
/*
 * Puts a virtio device to sleep and wakes it up in the task that asks for it, so that its
 * allocations can be made to fail. What the system does beside that, it does not: nothing is
 * frozen.
 *
 * What is written to the parameter "device" is done at once:
 *
 *	freeze NAME	as virtio_device_freeze()
 *	restore NAME	as virtio_device_restore()
 *
 * (A kernel that cannot sleep is built without these two, as user-mode Linux with several CPUs is.)
 */

#include <linux/device.h>
#include <linux/module.h>
#include <linux/moduleparam.h>
#include <linux/string.h>
#include <linux/virtio.h>
#include <linux/virtio_config.h>
#include <uapi/linux/virtio_ids.h>

/* Of no device. It is there to find the bus by. */
static const struct virtio_device_id none[] = { { 0 } };

static int never(struct virtio_device *vdev)
{
	return -ENODEV;
}

static struct virtio_driver sleeper = {
	.driver.name = KBUILD_MODNAME,
	.id_table = none,
	.probe = never,
};

static int freeze(struct virtio_device *vdev, struct virtio_driver *drv)
{
	vdev->failed = vdev->config->get_status(vdev) & VIRTIO_CONFIG_S_FAILED;
	return drv->freeze ? drv->freeze(vdev) : -EOPNOTSUPP;
}

static int restore(struct virtio_device *vdev, struct virtio_driver *drv)
{
	int r;

	virtio_reset_device(vdev);
	virtio_add_status(vdev, VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER);
	r = vdev->config->finalize_features(vdev);
	if (r)
		return r;
	if (virtio_has_feature(vdev, VIRTIO_F_VERSION_1))
		virtio_add_status(vdev, VIRTIO_CONFIG_S_FEATURES_OK);
	r = drv->restore ? drv->restore(vdev) : -EOPNOTSUPP;
	if (r)
		virtio_add_status(vdev, VIRTIO_CONFIG_S_FAILED);
	return r;
}

static int set_device(const char *text, const struct kernel_param *param)
{
	struct virtio_driver *drv;
	struct device *dev;
	char what[8], name[24];
	int r = -ENODEV;

	if (sscanf(text, "%7s %23s", what, name) != 2)
		return -EINVAL;
	dev = bus_find_device_by_name(sleeper.driver.bus, NULL, name);
	if (!dev)
		return r;
	device_lock(dev);
	if (dev->driver) {
		drv = drv_to_virtio(dev->driver);
		if (!strcmp(what, "freeze"))
			r = freeze(dev_to_virtio(dev), drv);
		else if (!strcmp(what, "restore"))
			r = restore(dev_to_virtio(dev), drv);
		else
			r = -EINVAL;
	}
	device_unlock(dev);
	put_device(dev);
	return r;
}

static const struct kernel_param_ops device_ops = {
	.set = set_device,
};
module_param_cb(device, &device_ops, NULL, 0200);
MODULE_PARM_DESC(device, "freeze NAME or restore NAME: a device of the virtio bus");

module_virtio_driver(sleeper);

MODULE_DESCRIPTION("Sleep of one virtio device, for tests");
MODULE_AUTHOR("Ferrule");
MODULE_LICENSE("GPL");
