// SPDX-License-Identifier: GPL-2.0
// Module: balloon
// Refused: E0521

//! A page is lent for its migration; its number can be kept.

use ferrule::mm::balloon::PageRef;

pub fn keep(_: impl Sized + 'static) {}

pub fn migrate(page: PageRef<'_>) {
    #[cfg(bad)]
    keep(page);
    #[cfg(not(bad))]
    keep(page.pfn());
}
