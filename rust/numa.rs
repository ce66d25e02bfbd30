// SPDX-License-Identifier: GPL-2.0

//! NUMA nodes: where CPUs and devices are, and how far that is from each other.
//!
//! | here | C |
//! | --- | --- |
//! | [`Node::of_cpu`] | `cpu_to_node()` |
//! | [`Node::distance`] | `node_distance()` |
//!
//! C header: [`include/linux/topology.h`](srctree/include/linux/topology.h)

use crate::bindings;
use kernel::prelude::*;

/// How far a node is from itself, as firmware gives distances (ACPI, SLIT).
pub const LOCAL_DISTANCE: u32 = 10;

/// A node of the machine.
///
/// # Invariants
///
/// It is a possible one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Node(c_int);

impl Node {
    /// The node with this number, if it is one. The number must be one that C has given, for a CPU or a
    /// device.
    pub(crate) fn from_raw(id: c_int) -> Option<Self> {
        // INVARIANT: C gives possible nodes, or `NUMA_NO_NODE`, which is negative.
        (id >= 0).then_some(Self(id))
    }

    /// Where a CPU is; [`None`] if it is no possible one, or nobody knows. Any context.
    pub fn of_cpu(cpu: u32) -> Option<Self> {
        // SAFETY: It checks the number.
        Self::from_raw(unsafe { bindings::ferrule_cpu_node(cpu) })
    }

    /// How far it is from another one, as the firmware says: [`LOCAL_DISTANCE`] to itself, 254 at most.
    /// Any context.
    pub fn distance(self, other: Node) -> u32 {
        // SAFETY: By the type invariants both are possible nodes.
        let distance = unsafe { bindings::ferrule_node_distance(self.0, other.0) };
        distance.max(0) as u32
    }
}

#[kernel::macros::kunit_tests(ferrule_numa)]
mod tests {
    use super::*;
    use kernel::cpu::nr_cpu_ids;

    #[test]
    fn a_node_is_near_to_itself() {
        for node in (0..nr_cpu_ids()).filter_map(Node::of_cpu) {
            assert_eq!(node.distance(node), LOCAL_DISTANCE);
        }
        assert!(Node::of_cpu(nr_cpu_ids()).is_none());
        assert!(Node::of_cpu(u32::MAX).is_none());
    }
}
