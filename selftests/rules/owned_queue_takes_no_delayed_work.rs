// SPDX-License-Identifier: GPL-2.0
// Module: dm-qos
// Refused: E0599

//! A queue that goes takes no work of others that is to run later.

use ferrule::workqueue::OwnedQueue;
use kernel::{
    impl_has_delayed_work,
    prelude::*,
    sync::Arc,
    workqueue::{DelayedWork, WorkItem}, //
};

#[pin_data]
pub struct Item {
    #[pin]
    work: DelayedWork<Item>,
}

impl_has_delayed_work! {
    impl HasDelayedWork<Self> for Item { self.work }
}

impl WorkItem for Item {
    type Pointer = Arc<Item>;

    fn run(_: Arc<Item>) {}
}

pub fn enqueue(queue: &OwnedQueue, item: Arc<Item>) -> bool {
    #[cfg(bad)]
    let result = queue.enqueue_delayed(item, 1);
    #[cfg(not(bad))]
    let result = queue.enqueue(item);
    result.is_ok()
}
