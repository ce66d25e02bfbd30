// SPDX-License-Identifier: GPL-2.0
// Module: balloon
// Refused: E0382

//! Free pages that were handed on are not used any more.

use ferrule::mm::reporting::FreePages;

pub fn report(pages: FreePages) {
    drop(pages);
    #[cfg(bad)]
    drop(pages);
}
