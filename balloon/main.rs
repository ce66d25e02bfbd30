// SPDX-License-Identifier: GPL-2.0

//! Memory balloon of a virtio guest, as `drivers/virtio/virtio_balloon.c`.
//!
//! - [`driver`] binds the device.
//! - [`resize`] moves the balloon to its size.
//! - [`host`] tells the host which pages it has.
//! - [`discard`] has the host discard memory by the piece.
//! - [`hint`] tells a host that migrates the guest which memory is free.
//! - [`stats`] answers the host's requests for statistics.
//! - [`progress`] shows in debugfs what the balloon does.
//! - [`policy`] decides how much to move and what messages look like: plain integers and bytes, also
//!   tested on the host. [`store`] is what it stands on.
//!
//! See Documentation/balloon.rst.

#[deny(unsafe_code)]
mod discard;
#[deny(unsafe_code)]
mod driver;
#[deny(unsafe_code)]
mod hint;
#[deny(unsafe_code)]
mod host;
#[deny(unsafe_code)]
mod policy;
#[deny(unsafe_code)]
mod progress;
#[deny(unsafe_code)]
mod resize;
#[deny(unsafe_code)]
mod stats;
#[deny(unsafe_code)]
mod store;
#[deny(unsafe_code)]
mod tests;

ferrule::virtio_device_table!(DEVICES, [ferrule::virtio::DeviceId::BALLOON]);

ferrule::module_virtio_driver! {
    type: driver::Driver,
    name: "virtio_balloon_rs",
    authors: ["Ferrule"],
    description: "Virtio memory balloon driver",
    license: "GPL",
    params: {
        blocks: u8 {
            default: 1,
            description: "Take memory in blocks through the reporting queue, where the host has one (0: single pages through the inflate queue only, as the virtio specification has it)",
        },
        min_available_mb: u32 {
            default: 0,
            description: "MiB of available memory that the balloon leaves to the guest, and gives back if it has less (0: leave 64, or an eighth of its memory, give back if the host allows)",
        },
    },
}
