// SPDX-License-Identifier: GPL-2.0
// Module: dm-qos
// Refused: E0596

//! The numbers of all CPUs are set when nobody else has them.

use ferrule::percpu::PerCpuU32;

pub fn set(numbers: &PerCpuU32, owned: &mut PerCpuU32) -> u32 {
    #[cfg(bad)]
    numbers.set(0, 1);
    owned.set(0, 1);
    numbers.update(|old| (old + 1, old))
}
