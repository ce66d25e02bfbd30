// SPDX-License-Identifier: GPL-2.0

//! stub

use kernel::prelude::*;

module! {
    type: M,
    name: "virtio_balloon_rs",
    authors: ["Ferrule"],
    description: "x",
    license: "GPL",
}
struct M;
impl kernel::Module for M {
    fn init(_m: &'static ThisModule) -> Result<Self> {
        Ok(M)
    }
}
