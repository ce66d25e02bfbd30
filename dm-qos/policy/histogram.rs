// SPDX-License-Identifier: GPL-2.0

//! How long things took: a histogram of fixed size whose buckets grow with the value.
//!
//! Values below 16 have a bucket each; from there on every power of two is divided into 8 buckets, so
//! that a percentile is off by at most one part in 16. Values of 2^32 and more count as the largest.
//!
//! Nothing here but integers: tested on the host (`selftests/unit`).

/// Values below this have a bucket each.
const LINEAR: u64 = 16;
/// Buckets per power of two above.
const STEPS: u64 = 8;
/// Powers of two: 2^4 up to 2^31.
const OCTAVES: u64 = 28;
const BUCKETS: usize = (LINEAR + OCTAVES * STEPS) as usize;

/// See the module's description.
pub(crate) struct Histogram {
    counts: [u64; BUCKETS],
    count: u64,
    sum: u64,
    max: u64,
}

/// What a histogram says, in the unit of its values. All 0 when it is empty.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Summary {
    /// How many values.
    pub(crate) count: u64,
    /// Their mean.
    pub(crate) mean: u64,
    /// Half of them are not above this.
    pub(crate) p50: u64,
    /// All but one in a hundred are not above this.
    pub(crate) p99: u64,
    /// The largest.
    pub(crate) max: u64,
}

impl Histogram {
    /// An empty one.
    pub(crate) const fn new() -> Self {
        Self {
            counts: [0; BUCKETS],
            count: 0,
            sum: 0,
            max: 0,
        }
    }

    /// Forgets everything.
    pub(crate) fn clear(&mut self) {
        self.counts.fill(0);
        self.count = 0;
        self.sum = 0;
        self.max = 0;
    }

    /// Records a value.
    pub(crate) fn record(&mut self, value: u64) {
        self.counts[bucket(value)] += 1;
        self.count += 1;
        self.sum = self.sum.saturating_add(value);
        self.max = self.max.max(value);
    }

    /// Those of its buckets that are not empty: the lowest and the highest value, and how many
    /// there were.
    pub(crate) fn buckets(&self) -> impl Iterator<Item = (u64, u64, u64)> + '_ {
        let buckets = self.counts.iter().enumerate();
        buckets
            .filter(|&(_, &count)| count != 0)
            .map(|(index, &count)| {
                let (low, high) = bounds(index);
                (low, high, count)
            })
    }

    /// What was recorded.
    pub(crate) fn summary(&self) -> Summary {
        Summary {
            count: self.count,
            mean: self.sum.checked_div(self.count).unwrap_or(0),
            p50: self.percentile(50),
            p99: self.percentile(99),
            max: self.max,
        }
    }

    /// The value that `percent` of all are not above: the middle of its bucket.
    fn percentile(&self, percent: u64) -> u64 {
        // The first value of which at least that many are at or below it.
        let rank = (self.count * percent).div_ceil(100);
        let mut seen = 0;
        for (low, high, count) in self.buckets() {
            seen += count;
            if seen >= rank {
                return ((low + high) / 2).min(self.max);
            }
        }
        0
    }
}

/// The bucket of a value.
fn bucket(value: u64) -> usize {
    let value = value.min((1 << 32) - 1);
    if value < LINEAR {
        return value as usize;
    }
    let exponent = u64::from(value.ilog2());
    let step = (value >> (exponent - 3)) & (STEPS - 1);
    (LINEAR + (exponent - 4) * STEPS + step) as usize
}

/// The lowest and highest value of a bucket.
fn bounds(index: usize) -> (u64, u64) {
    let index = index as u64;
    if index < LINEAR {
        return (index, index);
    }
    let (exponent, step) = ((index - LINEAR) / STEPS + 4, (index - LINEAR) % STEPS);
    let width = 1 << (exponent - 3);
    let low = (STEPS + step) * width;
    (low, low + width - 1)
}
