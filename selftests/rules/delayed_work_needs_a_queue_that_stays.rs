// SPDX-License-Identifier: GPL-2.0
// Module: dm-qos
// Refused: E0308

//! Work that is to run later goes on a queue that never goes.

use ferrule::{
    work::{OwnedWork, Run},
    workqueue::OwnedQueue, //
};
use kernel::{
    time::Delta,
    workqueue::system, //
};

pub fn enqueue<T: Run>(work: &OwnedWork<T>, queue: &OwnedQueue) {
    work.enqueue(queue);
    #[cfg(not(bad))]
    let queue = system();
    work.enqueue_after(queue, Delta::from_millis(1));
}
