// SPDX-License-Identifier: GPL-2.0

//! Virtio drivers.
//!
//! # Writing a driver
//!
//! 1. Declare the features that it knows with [`virtio_features!`](crate::virtio_features), and the
//!    devices that it is for with [`virtio_device_table!`](crate::virtio_device_table).
//! 2. Implement [`Buffer`] for what goes through each kind of queue. (Pages go by themselves: see
//!    [`Lend`].)
//! 3. Implement [`Driver`]: [`probe`](Driver::probe) asks for the queues with
//!    [`Device::find_vqs`], takes each out of [`Queues`] as a [`VirtQueue`] of its buffers,
//!    keeps what it needs ([`Config`], queues) in its data and calls [`Device::ready`].
//! 4. Make it a module with [`module_virtio_driver!`](crate::module_virtio_driver).
//!
//! | C | here |
//! | --- | --- |
//! | `struct virtio_driver`, `module_virtio_driver` | [`Driver`], [`module_virtio_driver!`](crate::module_virtio_driver) |
//! | `MODULE_DEVICE_TABLE(virtio, ...)` | [`virtio_device_table!`](crate::virtio_device_table) |
//! | `feature_table`, `virtio_has_feature` | [`Driver::Feature`], [`Features::has`] |
//! | `__virtio_clear_bit` in `validate` | [`Offer::clear`], [`Offer::clear_transport`] |
//! | `struct virtio_balloon_config` and its like | [`BalloonConfig`] and other [`Layout`]s |
//! | `virtio_cread_le_feature`, `virtio_cwrite_le` | [`Config::read`], [`Config::write`] of a [`Field`] |
//! | `cpu_to_virtio32` ... | [`ByteOrder`] |
//! | `virtio_find_vqs` | [`Device::find_vqs`] |
//! | `virtio_reset_device`, `del_vqs` | [`Device::delete_vqs`] |
//! | `virtqueue_add_outbuf`, `virtqueue_add_inbuf` | [`VirtQueue::add`] of a [`Buffer`], or what else can be [lent](Lend) |
//! | `virtqueue_kick`, `virtqueue_get_buf` | [`VirtQueue::kick`], [`VirtQueue::get`] |
//! | `virtqueue_notify` | [`VirtQueue::notify`] |
//! | `wait_event(..., virtqueue_get_buf())` | [`VirtQueue::wait`], [`VirtQueue::wait_until`] |
//! | `virtqueue_disable_cb`, `virtqueue_enable_cb` | [`VirtQueue::disable_notify`], [`VirtQueue::enable_notify`] |
//! | `vq_callback_t` | [`Notify`], [`Handler`] |
//! | `virtio_device_freeze`, `virtio_device_restore` | [`EarlyFreezer`] |
//! | `pm_stay_awake`, `pm_relax` | [`WakeupSource`] |
//!
//! # Ownership
//!
//! In C a driver must not touch a buffer between adding it and getting it back, must not free it
//! before, and must not use queues or configuration space after it has deleted or lost them. Here:
//!
//! - A queue owns its buffers. [`VirtQueue::add`] takes one; it comes back from
//!   [`VirtQueue::get`], or is dropped when the queue is deleted, which is after the device was
//!   reset. The length that a device says it has written is bounded by the buffer.
//! - What a driver keeps of its device, queues and [`Config`], may be kept for ever, also by work or
//!   an interrupt handler that is late. Once the device is unbound it only answers
//!   [`ENODEV`](kernel::error::code::ENODEV).
//! - Reset, deletion of the queues and the drop of the driver's data come in this order,
//!   by the [`Adapter`].
//!
//! # Contexts
//!
//! Functions of [`VirtQueue`] lock a spinlock of the queue with interrupts off and can be called
//! anywhere, but [`VirtQueue::wait`]. [`Handler::used`] and [`Driver::config_changed`] are called in
//! hard interrupt context. Everything else is for process context.
//!
//! For an example see `balloon/`.
//!
//! C headers: `include/linux/virtio.h`, `include/linux/virtio_config.h`

mod config;
mod device;
mod driver;
mod early;
mod virtqueue;
mod wait;
mod wakeup;

use crate::bindings;
use device::Link;

pub(crate) use self::wait::WaitQueue;

pub use self::{
    config::{
        virtio_features,
        BalloonConfig,
        ByteOrder,
        Config,
        Feature,
        Features,
        Field,
        Layout,
        LittleEndian,
        TransportFeature, //
    },
    device::{
        Device,
        Offer, //
    },
    driver::{
        module_virtio_driver,
        virtio_device_table,
        Adapter,
        DeviceId,
        Driver,
        IdTable, //
    },
    early::EarlyFreezer,
    virtqueue::{
        AddError,
        Buffer,
        Direction,
        Either,
        Handler,
        Lend,
        Notify,
        QueueInfo,
        Queues,
        Used,
        VirtQueue, //
    },
    wakeup::WakeupSource, //
};

/// # Safety
///
/// Only to be called by the virtio core, for a queue that [`Device::find_vqs`] found.
unsafe extern "C" fn used_callback(vq: *mut bindings::virtqueue) {
    // SAFETY: By the requirements of this function.
    unsafe { Link::interrupt(vq) };
}
