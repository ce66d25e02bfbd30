// SPDX-License-Identifier: GPL-2.0
// Module: dm-qos
// Refused: E0521

//! The words of a table line are there while the target is made.

use ferrule::device_mapper::args::Args;

pub fn keep(_: impl Sized + 'static) {}

pub fn take(args: &mut Args<'_>) {
    #[cfg(bad)]
    keep(args.next());
    #[cfg(not(bad))]
    keep(args.next().map(|word| word.to_bytes().len()));
}
