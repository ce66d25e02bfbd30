// SPDX-License-Identifier: GPL-2.0
// Module: balloon
// Refused: E0382

//! A block that was split is none any more.

use ferrule::mm::{
    balloon::{Allocated, Pages},
    blocks::Block, //
};
use kernel::prelude::*;

pub fn split(block: Block, pages: &mut Pages<Allocated>) -> Result<u32> {
    let order = block.order();
    block.split(0, pages)?;
    #[cfg(bad)]
    drop(block);
    Ok(order)
}
