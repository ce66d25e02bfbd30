// SPDX-License-Identifier: GPL-2.0
// Module: dm-qos
// Refused: E0521

//! Work that is to run later goes on a queue that never goes.

use ferrule::{
    work::{OwnedWork, Run},
    workqueue::OwnedQueue, //
};
use kernel::{
    time::Delta,
    workqueue::{system, Queue}, //
};

pub fn enqueue<T: Run>(work: &OwnedWork<T>, borrowed: &Queue, queue: &OwnedQueue) {
    work.enqueue(queue);
    work.enqueue(borrowed);
    #[cfg(bad)]
    let queue = borrowed;
    #[cfg(not(bad))]
    let queue = system();
    work.enqueue_after(queue, Delta::from_millis(1));
}
