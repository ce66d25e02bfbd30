// SPDX-License-Identifier: GPL-2.0

//! What a host knows of the guest's memory, and what the guest may not say about it.

use roaring::RoaringBitmap;

/// Pages of 4 KiB, by their frame numbers.
#[derive(Default)]
pub struct Model {
    /// What is in the balloon by the page frame number queues.
    inflated: RoaringBitmap,
    /// What was discarded through the reporting queue. It may be in the balloon or not: that the host
    /// is not told.
    discarded: RoaringBitmap,
    /// The round of hints that the guest is in.
    pub round: Option<u32>,
    /// What the guest did that it may not do.
    pub violations: Vec<String>,
    /// Whether only what came by the inflate queue may go by the deflate queue and count in `actual`.
    pub is_strict: bool,
    /// Whether there is nothing to be held against the guest, since the host has lied to it.
    pub is_void: bool,
}

const MAX_VIOLATIONS: usize = 20;

impl Model {
    /// Something that is wrong whatever the host has said.
    pub fn accuse(&mut self, what: String) {
        if self.violations.len() < MAX_VIOLATIONS {
            self.violations.push(what);
        }
    }

    fn blame(&mut self, what: impl FnOnce() -> String) {
        if !self.is_void {
            self.accuse(what());
        }
    }

    pub fn inflate(&mut self, unit: u32) {
        if !self.inflated.insert(unit) {
            self.blame(|| format!("page {unit:#x} inflated twice"));
        }
    }

    pub fn deflate(&mut self, unit: u32) {
        // A block that was split comes back by the page.
        let was_in = self.inflated.remove(unit);
        let was_discarded = self.discarded.remove(unit);
        if !was_in && (self.is_strict || !was_discarded) {
            self.blame(|| format!("page {unit:#x} deflated, but not in the balloon"));
        }
    }

    pub fn discard(&mut self, first: u32, count: u32) {
        let units = first..first.saturating_add(count);
        if let Some(unit) = self.inflated.range(units.clone()).next() {
            self.blame(|| format!("page {unit:#x} reported, but in the balloon"));
        }
        self.discarded.insert_range(units);
    }

    /// The guest says that it does not use memory: then that is not in the balloon. What was
    /// discarded may be the guest's again, and nobody has said so.
    pub fn hint(&mut self, first: u32, count: u32) {
        let units = first..first.saturating_add(count);
        if let Some(unit) = self.inflated.range(units).next() {
            self.blame(|| format!("page {unit:#x} hinted, but in the balloon"));
        }
        if self.round.is_none() {
            self.blame(|| format!("page {first:#x} hinted, but no round was begun"));
        }
    }

    /// The guest begins a round of hints, or ends the one that it is in.
    pub fn begin_round(&mut self, command: u32) {
        self.round = (command > 1).then_some(command);
    }

    /// The guest says how large the balloon is. One page may just be on its way from one place to
    /// another; what is not known by its page can only be what was discarded.
    pub fn check_actual(&mut self, actual: u32) {
        let known = self.inflated.len() as u32;
        let may_be = if self.is_strict {
            known
        } else {
            known + self.discarded.len() as u32
        };
        if actual.saturating_add(1) < known || actual > may_be.saturating_add(1) {
            self.blame(|| format!("actual is {actual}, but {known} to {may_be} pages are in"));
        }
    }

    /// The guest resets the device; it is to have taken everything out.
    pub fn reset(&mut self) {
        let count = self.inflated.len();
        if count > 0 {
            self.blame(|| format!("reset with {count} pages in the balloon"));
        }
        self.inflated.clear();
        self.discarded.clear();
        self.round = None;
        self.is_void = false;
    }

    pub fn inflated(&self) -> u64 {
        self.inflated.len()
    }

    pub fn discarded(&self) -> u64 {
        self.discarded.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accusations(f: impl FnOnce(&mut Model)) -> usize {
        let mut model = Model::default();
        f(&mut model);
        model.violations.len()
    }

    #[test]
    fn what_is_right_is_no_violation() {
        let count = accusations(|model| {
            model.inflate(1);
            model.inflate(2);
            model.check_actual(2);
            // A block of four pages, of which one comes back by the page.
            model.discard(16, 4);
            model.check_actual(6);
            model.deflate(17);
            model.check_actual(5);
            model.deflate(1);
            model.deflate(2);
            model.reset();
        });
        assert_eq!(count, 0);
    }

    #[test]
    fn what_is_wrong_is_one() {
        let twice = |model: &mut Model| {
            model.inflate(1);
            model.inflate(1);
        };
        assert_eq!(accusations(twice), 1);
        assert_eq!(accusations(|model| model.deflate(1)), 1);
        assert_eq!(accusations(|model| model.check_actual(2)), 1);
        let left = |model: &mut Model| {
            model.inflate(1);
            model.reset();
        };
        assert_eq!(accusations(left), 1);
        let reported = |model: &mut Model| {
            model.inflate(5);
            model.discard(4, 2);
        };
        assert_eq!(accusations(reported), 1);
        let hinted = |model: &mut Model| {
            model.begin_round(7);
            model.inflate(5);
            model.hint(4, 2);
        };
        assert_eq!(accusations(hinted), 1);
        let late = |model: &mut Model| {
            model.begin_round(7);
            model.hint(4, 2);
            model.begin_round(0);
            model.hint(8, 2);
        };
        assert_eq!(accusations(late), 1);
        let few = |model: &mut Model| {
            (0..3).for_each(|unit| model.inflate(unit));
            model.check_actual(1);
        };
        assert_eq!(accusations(few), 1);
    }

    #[test]
    fn who_keeps_to_the_page_may_not_be_vague() {
        let strict = || Model {
            is_strict: true,
            ..Model::default()
        };
        let mut model = strict();
        model.inflate(1);
        model.inflate(2);
        model.check_actual(2);
        model.deflate(1);
        model.deflate(2);
        model.check_actual(0);
        model.reset();
        assert!(model.violations.is_empty());
        model.discard(16, 4);
        model.check_actual(4);
        model.deflate(16);
        assert_eq!(model.violations.len(), 2);
    }

    #[test]
    fn who_was_lied_to_is_not_accused_until_the_reset() {
        let mut model = Model {
            is_void: true,
            ..Model::default()
        };
        model.deflate(1);
        model.inflate(2);
        model.reset();
        assert!(model.violations.is_empty());
        model.deflate(2);
        assert_eq!(model.violations.len(), 1);
    }
}
