// SPDX-License-Identifier: GPL-2.0
// Module: balloon
// Refused: E0200

//! Memory of several parts comes from the crate.

use ferrule::virtio::Lend;

pub struct Mine;

#[cfg(bad)]
impl Lend for Mine {
    fn direction(&self) -> ferrule::virtio::Direction {
        ferrule::virtio::Direction::FromDevice
    }

    fn lend<R>(
        &mut self,
        f: impl FnOnce(*mut kernel::bindings::scatterlist, u32) -> R,
    ) -> kernel::error::Result<R> {
        Ok(f(core::ptr::null_mut(), 1))
    }

    fn size(&mut self) -> usize {
        1
    }
}

pub fn size(lent: &mut impl Lend) -> usize {
    lent.size()
}
