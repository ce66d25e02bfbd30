// SPDX-License-Identifier: GPL-2.0
// Module: dm-qos
// Refused: E0502

//! The first bio of a list stays there for as long as somebody looks at it.

use ferrule::bio::BioList;

pub fn pop(list: &mut BioList<u64>) -> Option<u64> {
    let first = list.front()?;
    #[cfg(not(bad))]
    let sector = first.sector();
    list.pop_front()?.release().0.submit();
    #[cfg(bad)]
    let sector = first.sector();
    Some(sector)
}
