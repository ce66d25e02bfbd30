// SPDX-License-Identifier: GPL-2.0

//! Bios as a device-mapper target sees them.
//!
//! Device mapper clones each bio that it gets and gives the clone to the target that maps its
//! sectors (see [`device_mapper`](crate::device_mapper)). What a target does with one:
//!
//! 1. [`IncomingBio`] is what [`Target::map`] receives. The target looks at it (operation, size,
//!    flags), and decides.
//! 2. [`IncomingBio::remap`] directs it to one of the target's devices. The result, a
//!    [`MappedBio`], may be returned to device mapper at once ([`Map::Remapped`]).
//! 3. Or the target keeps it for as long as it likes, with data of its own in it, alone or in a
//!    [`BioList`]: [`MappedBio::hold`] makes it a [`HeldBio`], [`HeldBio::release`] a [`MappedBio`]
//!    again.
//! 4. [`MappedBio::submit`] sends a kept bio on its way. [`MappedBio::end`] completes it instead.
//! 5. Who wants to know when this one ends says so before ([`Map::Observed`],
//!    [`MappedBio::submit_observed`]). Who wants to
//!    know of all has an `end_io` ([`Target::end_io`]), which every bio then pays for.
//!
//! # C counterparts
//!
//! | here | C |
//! | --- | --- |
//! | [`Bio::op`], [`Bio::flags`] | `bio_op()`, `bio->bi_opf` |
//! | [`Bio::direction`] | `bio_data_dir()` |
//! | [`Bio::sector`], [`Bio::size`] | `bio->bi_iter` |
//! | [`MappedBio::hold`], [`HeldBio::data`] | `dm_per_bio_data()` |
//! | [`MappedBio::submit_observed`] | `dm_hook_bio()` of dm-cache, and its like in other targets |
//! | [`IncomingBio::remap`] | `bio_set_dev()`, `bio->bi_iter.bi_sector = ...` |
//! | [`MappedBio::submit`] | `dm_submit_bio_remap()` |
//! | [`MappedBio::end`] | `bio->bi_status = ...; bio_endio()` |
//! | [`BioList`] | `struct bio_list` |
//! | [`plugged`] | `blk_start_plug()`, `blk_finish_plug()` |
//!
//! # Ownership
//!
//! In C a target that returns `DM_MAPIO_SUBMITTED` promises that it will submit or end the bio some
//! day, and nothing checks that it does: a bio that is forgotten hangs its issuer, and later every
//! suspend of the device. Here a bio is a value, and whoever holds it owns the I/O. Dropping it
//! ends it with an I/O error, so that no path through a driver can lose one. Because a bio in flight
//! keeps its table alive, a held bio may be kept anywhere that is `Send`.
//!
//! A bio can be directed only to a device of the target that it came to: the lifetime of an
//! [`IncomingBio`] is that of one call of [`Target::map`], and so is that of the device that
//! [`TargetRef::device`] hands out.
//!
//! C headers: [`include/linux/bio.h`](srctree/include/linux/bio.h),
//! [`include/linux/blk_types.h`](srctree/include/linux/blk_types.h),
//! [`include/linux/device-mapper.h`](srctree/include/linux/device-mapper.h)
//!
//! [`Target::map`]: crate::device_mapper::Target::map
//! [`Target::end_io`]: crate::device_mapper::Target::end_io
//! [`Map::Remapped`]: crate::device_mapper::Map::Remapped
//! [`TargetRef::device`]: crate::device_mapper::TargetRef::device

use crate::{
    bindings,
    compat::offset_in_vector,
    device_mapper::{
        self,
        Device, //
    }, //
};
use core::{
    marker::PhantomData,
    mem::{
        self,
        ManuallyDrop,
        MaybeUninit, //
    },
    ops::Deref,
    ptr::{
        self,
        NonNull, //
    }, //
};
use kernel::page::PAGE_SIZE;

/// Bytes in a sector, the unit of addresses in the block layer whatever the device's block size.
pub const SECTOR_SIZE: u32 = 1 << bindings::SECTOR_SHIFT;

/// Which way the data of a bio goes (`bio_data_dir()`). What changes the device without carrying
/// data (flush, discard, zone management) counts as a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the device.
    Read,
    /// To the device.
    Write,
}

/// What a bio asks for (`enum req_op`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Op(u32);

#[expect(missing_docs)]
impl Op {
    pub const READ: Op = Op(bindings::req_op_REQ_OP_READ);
    pub const WRITE: Op = Op(bindings::req_op_REQ_OP_WRITE);
    pub const FLUSH: Op = Op(bindings::req_op_REQ_OP_FLUSH);
    pub const DISCARD: Op = Op(bindings::req_op_REQ_OP_DISCARD);
    pub const SECURE_ERASE: Op = Op(bindings::req_op_REQ_OP_SECURE_ERASE);
    pub const WRITE_ZEROES: Op = Op(bindings::req_op_REQ_OP_WRITE_ZEROES);
    pub const ZONE_APPEND: Op = Op(bindings::req_op_REQ_OP_ZONE_APPEND);
}

/// Flags of a bio (`REQ_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flags(u32);

impl Flags {
    /// File system metadata.
    pub const META: Flags = Flags(1 << bindings::req_flag_bits___REQ_META);
    /// Somebody important is waiting for it.
    pub const PRIO: Flags = Flags(1 << bindings::req_flag_bits___REQ_PRIO);
    /// Swap.
    pub const SWAP: Flags = Flags(1 << bindings::req_flag_bits___REQ_SWAP);
    /// Fail with [`Status::AGAIN`] rather than wait.
    pub const NOWAIT: Flags = Flags(1 << bindings::req_flag_bits___REQ_NOWAIT);
    /// Flush the device's write cache first.
    pub const PREFLUSH: Flags = Flags(1 << bindings::req_flag_bits___REQ_PREFLUSH);
    /// Complete only when on stable storage.
    pub const FUA: Flags = Flags(1 << bindings::req_flag_bits___REQ_FUA);
    /// Somebody waits for it.
    pub const SYNC: Flags = Flags(1 << bindings::req_flag_bits___REQ_SYNC);
    /// Read ahead: may be failed at any time.
    pub const RAHEAD: Flags = Flags(1 << bindings::req_flag_bits___REQ_RAHEAD);
    /// Must not be torn.
    pub const ATOMIC: Flags = Flags(1 << bindings::req_flag_bits___REQ_ATOMIC);

    /// Is any of the flags in `others` set?
    #[inline]
    pub const fn any_of(self, others: Flags) -> bool {
        self.0 & others.0 != 0
    }

    /// The flags of both.
    #[inline]
    pub const fn or(self, other: Flags) -> Flags {
        Flags(self.0 | other.0)
    }
}

/// How a bio ended (`blk_status_t`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status(bindings::blk_status_t);

impl Status {
    /// Success.
    pub const OK: Status = Status(bindings::ferrule_blk_status_FERRULE_BLK_STS_OK as u8);
    /// The device cannot do that.
    pub const NOTSUPP: Status = Status(bindings::ferrule_blk_status_FERRULE_BLK_STS_NOTSUPP as u8);
    /// No space left.
    pub const NOSPC: Status = Status(bindings::ferrule_blk_status_FERRULE_BLK_STS_NOSPC as u8);
    /// Input/output error.
    pub const IOERR: Status = Status(bindings::ferrule_blk_status_FERRULE_BLK_STS_IOERR as u8);
    /// It would have had to wait.
    pub const AGAIN: Status = Status(bindings::ferrule_blk_status_FERRULE_BLK_STS_AGAIN as u8);

    pub(crate) const DM_REQUEUE: Status =
        Status(bindings::ferrule_blk_status_FERRULE_BLK_STS_DM_REQUEUE as u8);

    pub(crate) fn from_raw(status: bindings::blk_status_t) -> Self {
        Self(status)
    }

    pub(crate) fn as_raw(self) -> bindings::blk_status_t {
        self.0
    }
}

/// Submits several bios together: what `submit` submits may be kept back, and merged, until it returns
/// (`blk_start_plug()`, `blk_finish_plug()`).
///
/// Process context.
pub fn plugged<R>(submit: impl FnOnce() -> R) -> R {
    let mut plug = MaybeUninit::<bindings::blk_plug>::uninit();
    // SAFETY: This task is told of the plug, which stays in place until it is told of its end.
    unsafe { bindings::blk_start_plug(plug.as_mut_ptr()) };
    let result = submit();
    // SAFETY: As above. (The kernel does not unwind.)
    unsafe { bindings::blk_finish_plug(plug.as_mut_ptr()) };
    result
}

/// A bio that its holder owns: what [`IncomingBio`], [`MappedBio`] and [`HeldBio`] have in common.
///
/// `D` is what the target keeps in the bios that it holds
/// ([`Target::PerBio`](crate::device_mapper::Target::PerBio)).
///
/// Dropping it ends the I/O with [`Status::IOERR`]. That may be done in any context.
///
/// # Invariants
///
/// - `bio` points to a bio that device mapper allocated (a clone, with `clone_endio()` as its end
///   function), for a target whose `per_io_data_size` is [`Self::DATA_SIZE`].
/// - This object owns it: nobody else accesses the bio, and it was neither submitted nor ended since
///   it was passed to the target. Until one of the two is done, the table that the target belongs
///   to, with the devices that it opened, exists: device mapper waits for bios in flight before it
///   destroys a table.
/// - In an [`IncomingBio`] and a [`MappedBio`], but not in that of a [`HeldBio`], `bio->bi_private` is
///   the target's `struct dm_target`.
/// - In a [`MappedBio`] and a [`HeldBio`], `bio->bi_bdev` is a device of that table.
#[repr(transparent)]
pub struct Bio<D = ()> {
    bio: NonNull<bindings::bio>,
    _data: PhantomData<D>,
}

/// What is in the space that device mapper allocates with each bio, while it is held or observed.
/// `bi_private`, which is the target's to use in a clone, points to it then.
struct PerBio<D> {
    /// The target that it came to.
    ti: *mut bindings::dm_target,
    kept: Kept<D>,
}

/// What is kept of it.
union Kept<D> {
    /// While it is held.
    data: ManuallyDrop<D>,
    /// From when it is to be observed until it ends: the end function that it had before.
    end_io: bindings::bio_end_io_t,
}

// SAFETY: By the type invariants this is the only reference to the bio, which is not tied to a
// thread, and to the `D` in it.
unsafe impl<D: Send> Send for Bio<D> {}
// SAFETY: `&self` methods only read.
unsafe impl<D: Sync> Sync for Bio<D> {}

impl<D> Bio<D> {
    /// Size of the per-bio data, as told to device mapper.
    pub(crate) const DATA_SIZE: usize = {
        // Device mapper places the data right before structures that end in a bio, at a distance
        // that is a multiple of their alignment.
        assert!(mem::align_of::<PerBio<D>>() <= mem::align_of::<bindings::bio>());
        // It counts in `unsigned int`. Nobody needs as much as this.
        assert!(mem::size_of::<PerBio<D>>() <= PAGE_SIZE);
        mem::size_of::<PerBio<D>>()
    };

    /// The per-bio data of a bio that device mapper passed to the target.
    ///
    /// # Safety
    ///
    /// `bio` must be a clone that device mapper allocated for a target whose `per_io_data_size` is
    /// [`Self::DATA_SIZE`].
    unsafe fn per_bio(bio: *mut bindings::bio) -> *mut PerBio<D> {
        // SAFETY: By the safety requirements.
        unsafe { bindings::dm_per_bio_data(bio, Self::DATA_SIZE) }.cast()
    }

    /// Takes ownership of a bio that device mapper passed to a target.
    ///
    /// # Safety
    ///
    /// As for [`Self::per_bio`], of which `ti` is one; and the caller passes on the ownership of `bio`.
    #[inline]
    pub(crate) unsafe fn from_raw(bio: *mut bindings::bio, ti: *mut bindings::dm_target) -> Self {
        // SAFETY: By the safety requirements. In a clone it is the target's to use.
        unsafe { (*bio).bi_private = ti.cast() };
        // INVARIANT: By the safety requirements.
        Self {
            // SAFETY: Device mapper passes no null pointers.
            bio: unsafe { NonNull::new_unchecked(bio) },
            _data: PhantomData,
        }
    }

    /// Gives up ownership.
    #[inline]
    pub(crate) fn into_raw(self) -> *mut bindings::bio {
        ManuallyDrop::new(self).bio.as_ptr()
    }

    #[inline]
    pub(crate) fn as_raw(&self) -> *mut bindings::bio {
        self.bio.as_ptr()
    }

    #[inline]
    fn raw(&self) -> &bindings::bio {
        // SAFETY: By the type invariants the bio is valid and nobody changes it. `&mut self` methods
        // that do change it do so through the raw pointer, while no such reference lives.
        unsafe { self.bio.as_ref() }
    }

    /// What it asks for.
    #[inline]
    pub fn op(&self) -> Op {
        Op(self.raw().bi_opf & ((1 << bindings::REQ_OP_BITS) - 1))
    }

    /// Its `REQ_*` flags.
    #[inline]
    pub fn flags(&self) -> Flags {
        Flags(self.raw().bi_opf & !((1 << bindings::REQ_OP_BITS) - 1))
    }

    /// Which way its data goes.
    #[inline]
    pub fn direction(&self) -> Direction {
        // All operations that write have an odd number.
        if self.raw().bi_opf & 1 != 0 {
            Direction::Write
        } else {
            Direction::Read
        }
    }

    /// Where it begins, in sectors: of the mapped device in an [`IncomingBio`], of the device that it
    /// is directed to in a [`MappedBio`].
    #[inline]
    pub fn sector(&self) -> u64 {
        self.raw().bi_iter.bi_sector
    }

    /// How much of the device it concerns, in bytes. A discard has a size, but carries no data.
    #[inline]
    pub fn size(&self) -> u32 {
        self.raw().bi_iter.bi_size
    }

    /// Does it carry data? Flush, discard, write zeroes, secure erase and zone management do not.
    #[inline]
    pub fn has_data(&self) -> bool {
        self.size() != 0 && matches!(self.op(), Op::READ | Op::WRITE | Op::ZONE_APPEND)
    }

    /// A number for those on whose account it is, to tell them apart:
    ///
    /// - that of the block cgroup that the bio came with, small for the first ones. Writeback has
    ///   that of who dirtied the pages, as far as the file system keeps it; what has none yet gets that
    ///   of the task at hand.
    /// - for the root cgroup, where nobody is told apart, that of the process at hand;
    /// - of kernel threads, which work for others (dm-crypt's, for example), in which of 64 parts of
    ///   the disk it begins.
    ///
    /// To be asked where the bio was submitted, in process context.
    #[inline]
    pub fn submitter(&self) -> u32 {
        // SAFETY: By the type invariants.
        unsafe { bindings::ferrule_bio_submitter(self.as_raw()) }
    }

    /// Does it read pages from swap? (They have no [`Flags::SWAP`].)
    #[inline]
    pub fn is_swap_in(&self) -> bool {
        // SAFETY: By the type invariants. The pages of a bio are there until it ends.
        unsafe { bindings::ferrule_bio_is_swap_in(self.as_raw()) }
    }

    fn end(self, status: Status) {
        let bio = self.into_raw();
        // SAFETY: We owned the bio, and passed the ownership on to `bio_endio()`.
        unsafe {
            (*bio).bi_status = status.as_raw();
            bindings::bio_endio(bio);
        }
    }
}

impl<D> Drop for Bio<D> {
    fn drop(&mut self) {
        let bio = self.bio.as_ptr();
        // SAFETY: By the type invariants we own the bio, and it is not used after this.
        unsafe {
            (*bio).bi_status = Status::IOERR.as_raw();
            bindings::bio_endio(bio);
        }
    }
}

/// A bio as it comes to [`Target::map`](crate::device_mapper::Target::map), not yet directed to
/// any device.
///
/// `'a` is the call of `map` that it came with.
///
/// See [`Bio`] for what can be asked of it and what dropping it does.
pub struct IncomingBio<'a, D = ()> {
    bio: Bio<D>,
    // Invariant in 'a, so that no other call's device fits.
    _call: PhantomData<fn(&'a ()) -> &'a ()>,
}

impl<'a, D> IncomingBio<'a, D> {
    #[inline]
    pub(crate) fn new(bio: Bio<D>) -> Self {
        Self {
            bio,
            _call: PhantomData,
        }
    }

    #[inline]
    pub(crate) fn into_bio(self) -> Bio<D> {
        self.bio
    }

    /// Directs the bio to `sector` of `device`.
    #[inline]
    pub fn remap(self, device: Device<'a>, sector: u64) -> MappedBio<D> {
        let bio = self.bio.as_raw();
        // SAFETY: By the type invariants we own the bio. The device is one of the table that the bio
        // belongs to, as both carry the lifetime of the same call, and therefore valid.
        unsafe {
            bindings::ferrule_bio_set_dev(bio, device.as_bdev());
            (*bio).bi_iter.bi_sector = sector;
        }
        // INVARIANT: It is now directed to a device of its table.
        MappedBio { bio: self.bio }
    }

    /// Completes it. The target's `end_io` is called before this returns.
    ///
    /// Any context.
    pub fn end(self, status: Status) {
        self.bio.end(status)
    }
}

impl<D> Deref for IncomingBio<'_, D> {
    type Target = Bio<D>;

    #[inline]
    fn deref(&self) -> &Bio<D> {
        &self.bio
    }
}

/// A bio that is directed to one of the target's devices.
///
/// See [`Bio`] for what can be asked of it and what dropping it does.
#[repr(transparent)]
pub struct MappedBio<D = ()> {
    bio: Bio<D>,
}

impl<D> MappedBio<D> {
    #[inline]
    pub(crate) fn into_bio(self) -> Bio<D> {
        self.bio
    }

    /// Makes the bio fit to be kept, with data of the target's own in it: its issuer will not poll
    /// the device for its completion, since the device does not have it.
    #[inline]
    pub fn hold(self, data: D) -> HeldBio<D> {
        let bio = self.bio.as_raw();
        // SAFETY: By the type invariants we own the bio, and the space in it. `bi_private` of a clone
        // is the target's to use.
        unsafe {
            (*bio).bi_opf &= !(1 << bindings::req_flag_bits___REQ_POLLED);
            let per_bio = Bio::<D>::per_bio(bio);
            per_bio.write(PerBio {
                ti: (*bio).bi_private.cast(),
                kept: Kept {
                    data: ManuallyDrop::new(data),
                },
            });
            (*bio).bi_private = per_bio.cast();
        }
        // INVARIANT: Just set.
        HeldBio {
            bio: ManuallyDrop::new(self),
        }
    }

    /// Has `ended` called when the bio ends, in place of the bio's own end function.
    ///
    /// # Safety
    ///
    /// `ended` must do what [`end_observed`] does, for this `D`, and submits or ends it before anything else
    /// is done with it.
    #[inline]
    pub(crate) unsafe fn observe(&mut self, ended: unsafe extern "C" fn(*mut bindings::bio)) {
        let bio = self.bio.as_raw();
        // SAFETY: By the type invariants we own the bio, and the space in it. `bi_private` of a clone
        // is the target's to use.
        unsafe {
            let per_bio = Bio::<D>::per_bio(bio);
            per_bio.write(PerBio {
                ti: (*bio).bi_private.cast(),
                kept: Kept {
                    end_io: (*bio).bi_end_io,
                },
            });
            (*bio).bi_private = per_bio.cast();
            (*bio).bi_end_io = Some(ended);
        }
    }

    /// As [`Self::submit`], and the target that the bio came to is told when it ends
    /// ([`Target::bio_ended`](crate::device_mapper::Target::bio_ended)).
    pub fn submit_observed(mut self) {
        // SAFETY: By the type invariants we own the bio, and the target that it came to is there. What
        // is called is of that target's kind, whose `PerBio` is `D`.
        unsafe {
            let ti = (*self.bio.as_raw()).bi_private.cast();
            self.observe(device_mapper::bio_ended_of(ti));
        }
        self.submit();
    }

    /// Submits it to the device below.
    ///
    /// Process context, without spinlocks: the device below may sleep. From
    /// [`Target::map`](crate::device_mapper::Target::map) return
    /// [`Map::Remapped`](crate::device_mapper::Map::Remapped) instead, which costs less.
    pub fn submit(self) {
        let bio = self.bio.into_raw();
        // SAFETY: We owned the bio, a clone that device mapper made, which is directed to a device
        // of its table; the adapter set `accounts_remapped_io`.
        unsafe { bindings::dm_submit_bio_remap(bio, ptr::null_mut()) };
    }

    /// Completes it without submitting it. The target's `end_io` is called before this returns.
    ///
    /// Any context.
    pub fn end(self, status: Status) {
        self.bio.end(status)
    }

    /// How many I/Os the device makes of it, 1 or more: those that remain within the device's
    /// queue limits (`max_sectors`, `max_segments`, `chunk_sectors` and so on).
    #[inline]
    pub fn count_ios(&mut self) -> u32 {
        if !self.bio.has_data() || !self.may_need_split() {
            return 1;
        }
        // SAFETY: It carries data.
        unsafe { self.count_splits() }
    }

    /// The part of [`Self::count_ios`] for large ones. A function of its own, so that others do not save
    /// registers for it.
    ///
    /// # Safety
    ///
    /// It carries data.
    #[inline(never)]
    unsafe fn count_splits(&mut self) -> u32 {
        // SAFETY: By the type invariants we own the bio, and it is directed to a valid device; it
        // carries data by the safety requirements.
        unsafe { bindings::ferrule_bio_count_splits(self.bio.as_raw()) }
    }

    /// May the device have to split it? `bio_may_need_split()`, for a bio that carries data.
    #[inline]
    fn may_need_split(&self) -> bool {
        let bio = self.bio.raw();
        let iter = bio.bi_iter;
        // SAFETY: By the type invariants it is directed to a valid device, which has a queue. Its
        // limits may change meanwhile, to others that it would be split by as well.
        let limits = unsafe { &raw const (*(*bio.bi_bdev).bd_queue).limits };
        // SAFETY: As above.
        let (chunk, alignment, longest) = unsafe {
            (
                (&raw const (*limits).chunk_sectors).read_volatile(),
                (&raw const (*limits).dma_alignment).read_volatile(),
                (&raw const (*limits).max_fast_segment_size).read_volatile(),
            )
        };
        if chunk != 0 || bio.bi_io_vec.is_null() {
            return true;
        }
        // SAFETY: A bio that carries data has as many vectors as its iterator says.
        let vector = unsafe { &*bio.bi_io_vec.add(iter.bi_idx as usize) };
        let (offset, length) = (vector.bv_offset, vector.bv_len);
        iter.bi_size > length.wrapping_sub(offset_in_vector(&iter))
            || (offset | length) & alignment != 0
            || length.wrapping_add(offset) > longest
    }

    /// Has the disk that it is directed to been taken away?
    pub fn device_is_dead(&self) -> bool {
        // SAFETY: By the type invariants it is directed to a valid device.
        unsafe { bindings::ferrule_bdev_is_dead(self.bio.raw().bi_bdev) }
    }
}

impl<D> Deref for MappedBio<D> {
    type Target = Bio<D>;

    #[inline]
    fn deref(&self) -> &Bio<D> {
        &self.bio
    }
}

/// A bio that is kept, with a `D` in it. It is `Send`.
///
/// See [`Bio`] for what can be asked of it and what dropping it does.
///
/// # Invariants
///
/// `bi_private` of the bio points to its per-bio data, which are initialised: with a `D`, and with what
/// `bi_private` was before.
#[repr(transparent)]
pub struct HeldBio<D = ()> {
    bio: ManuallyDrop<MappedBio<D>>,
}

impl<D> HeldBio<D> {
    /// Gives up ownership.
    fn into_raw(self) -> *mut bindings::bio {
        ManuallyDrop::new(self).bio.as_raw()
    }

    #[inline]
    fn data_ptr(&self) -> *mut D {
        let per_bio = self.bio.raw().bi_private.cast::<PerBio<D>>();
        // SAFETY: By the type invariants; it is no reference yet. A `ManuallyDrop` is transparent.
        unsafe { (&raw mut (*per_bio).kept.data).cast() }
    }

    /// The target's own data in this bio.
    #[inline]
    pub fn data(&self) -> &D {
        // SAFETY: By the type invariants it is initialised, and we own it.
        unsafe { &*self.data_ptr() }
    }

    /// The target's own data in this bio.
    #[inline]
    pub fn data_mut(&mut self) -> &mut D {
        // SAFETY: As above.
        unsafe { &mut *self.data_ptr() }
    }

    /// The bio alone, to be submitted or ended, and what was kept in it.
    #[inline]
    pub fn release(self) -> (MappedBio<D>, D) {
        let mut this = ManuallyDrop::new(self);
        let bio = this.bio.as_raw();
        // SAFETY: By the type invariants it is initialised, and we own it. Nobody drops it but
        // whoever gets it.
        let data = unsafe { this.data_ptr().read() };
        // INVARIANT: What was there before.
        //
        // SAFETY: As above.
        unsafe {
            let ti = (*(*bio).bi_private.cast::<PerBio<D>>()).ti;
            (*bio).bi_private = ti.cast();
        }
        // SAFETY: It is not used after this.
        (unsafe { ManuallyDrop::take(&mut this.bio) }, data)
    }
}

impl<D> Drop for HeldBio<D> {
    fn drop(&mut self) {
        // SAFETY: By the type invariants it is initialised, and we own it; the bio ends only after.
        unsafe {
            self.data_ptr().drop_in_place();
            ManuallyDrop::drop(&mut self.bio);
        }
    }
}

impl<D> Deref for HeldBio<D> {
    type Target = MappedBio<D>;

    #[inline]
    fn deref(&self) -> &MappedBio<D> {
        &self.bio
    }
}

/// Ends a bio that was observed: tells the target that it came to, and then whoever the end function
/// was of.
///
/// # Safety
///
/// Called when a bio ends on which [`MappedBio::observe`] was called, with the same `D`.
#[inline]
pub(crate) unsafe fn end_observed<D>(
    bio: *mut bindings::bio,
    tell: impl FnOnce(*mut bindings::dm_target),
) {
    // SAFETY: `observe` had it point there, and neither was used by anybody since.
    let (ti, end_io) = unsafe {
        let per_bio = (*bio).bi_private.cast::<PerBio<D>>();
        ((*per_bio).ti, (*per_bio).kept.end_io)
    };
    // Before the table may go.
    tell(ti);
    // SAFETY: The bio is as it was, but that it ended. All that is to be done once for a bio that
    // ends was done by whoever called this.
    unsafe {
        (*bio).bi_end_io = end_io;
        if let Some(end_io) = end_io {
            end_io(bio);
        }
    }
}

/// A bio that has ended, as [`Target::end_io`](crate::device_mapper::Target::end_io) sees it.
///
/// # Invariants
///
/// As [`Bio`], but borrowed from device mapper.
pub struct EndedBio<'a> {
    bio: ManuallyDrop<Bio>,
    _call: PhantomData<&'a Bio>,
}

impl EndedBio<'_> {
    /// # Safety
    ///
    /// `bio` must have come to the target's `map` before and have ended; it must be valid for as long
    /// as this object exists.
    #[inline]
    pub(crate) unsafe fn from_raw(bio: *mut bindings::bio) -> Self {
        // INVARIANT: By the safety requirements.
        Self {
            bio: ManuallyDrop::new(Bio {
                // SAFETY: Device mapper passes no null pointers.
                bio: unsafe { NonNull::new_unchecked(bio) },
                _data: PhantomData,
            }),
            _call: PhantomData,
        }
    }

    /// What it asked for.
    #[inline]
    pub fn op(&self) -> Op {
        self.bio.op()
    }

    /// Which way its data went.
    #[inline]
    pub fn direction(&self) -> Direction {
        self.bio.direction()
    }
}

/// A first-in, first-out list of bios that needs no memory of its own.
///
/// Dropping it drops the bios that are in it, each of which ends with an I/O error.
///
/// # Invariants
///
/// The bios from `head` on, linked by `bi_next` up to `tail` whose `bi_next` is null, meet the
/// invariants of a [`HeldBio`], owned by this list. When `head` is null, the list is empty.
pub struct BioList<D = ()> {
    head: *mut bindings::bio,
    tail: *mut bindings::bio,
    _data: PhantomData<HeldBio<D>>,
}

// SAFETY: The list owns its bios, which are `Send`.
unsafe impl<D: Send> Send for BioList<D> {}
// SAFETY: `&self` methods only read.
unsafe impl<D: Sync> Sync for BioList<D> {}

impl<D> BioList<D> {
    /// An empty list.
    pub const fn new() -> Self {
        // INVARIANT: It is empty.
        Self {
            head: ptr::null_mut(),
            tail: ptr::null_mut(),
            _data: PhantomData,
        }
    }

    /// Is there nothing in it?
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.head.is_null()
    }

    /// Appends a bio.
    pub fn push_back(&mut self, bio: HeldBio<D>) {
        let bio = bio.into_raw();
        // SAFETY: We own the bio, and `bi_next` belongs to its owner. By the type invariants `tail`
        // is a bio that we own when the list is not empty.
        unsafe {
            (*bio).bi_next = ptr::null_mut();
            if self.head.is_null() {
                self.head = bio;
            } else {
                (*self.tail).bi_next = bio;
            }
        }
        // INVARIANT: The last bio of the list, with a null `bi_next`.
        self.tail = bio;
    }

    /// Appends all of another list.
    pub fn append(&mut self, other: Self) {
        let other = ManuallyDrop::new(other);
        if other.head.is_null() {
            return;
        }
        if self.head.is_null() {
            self.head = other.head;
        } else {
            // SAFETY: By the type invariants `tail` is a bio that we own, as the list is not empty.
            unsafe { (*self.tail).bi_next = other.head };
        }
        // INVARIANT: The bios of the other list follow; it does not own them any more.
        self.tail = other.tail;
    }

    /// Takes the first bio out.
    pub fn pop_front(&mut self) -> Option<HeldBio<D>> {
        let bio = NonNull::new(self.head)?;
        // SAFETY: By the type invariants we own it. A bio that is submitted must not be linked.
        unsafe {
            self.head = (*bio.as_ptr()).bi_next;
            (*bio.as_ptr()).bi_next = ptr::null_mut();
        }
        // INVARIANT: By the invariants of the list, which no longer owns it.
        Some(HeldBio {
            bio: ManuallyDrop::new(MappedBio {
                bio: Bio {
                    bio,
                    _data: PhantomData,
                },
            }),
        })
    }

    /// The first bio.
    pub fn front(&self) -> Option<&HeldBio<D>> {
        if self.head.is_null() {
            return None;
        }
        // SAFETY: A `HeldBio` is transparent over a non-null pointer to the bio, which `head` was
        // just found to be. By the type invariants `head` meets the invariants of a `HeldBio`
        // as long as it is in the list, which the reference borrows.
        Some(unsafe { &*ptr::from_ref(&self.head).cast::<HeldBio<D>>() })
    }
}

impl<D> Default for BioList<D> {
    fn default() -> Self {
        Self::new()
    }
}

impl<D> Drop for BioList<D> {
    fn drop(&mut self) {
        while self.pop_front().is_some() {}
    }
}

#[kernel::macros::kunit_tests(ferrule_bio)]
mod tests {
    use super::*;
    use kernel::{
        alloc::KBox,
        ffi::c_void,
        prelude::*,
        sync::{
            atomic::{
                Atomic,
                Relaxed, //
            },
            Arc, //
        }, //
    };

    /// What ended so far: a digit for each bio, its number, and its status.
    struct Ended {
        numbers: Atomic<u64>,
        status: Atomic<u32>,
    }

    /// A bio as device mapper makes them: with room before it.
    #[repr(C)]
    struct Clone {
        room: [u64; 32],
        bio: bindings::bio,
    }

    /// What is kept in a bio. Counts how often it was dropped.
    struct Kept {
        number: u64,
        drops: Arc<Atomic<u64>>,
    }

    impl Drop for Kept {
        fn drop(&mut self) {
            self.drops.add(1, Relaxed);
        }
    }

    impl Ended {
        const fn new() -> Self {
            Self {
                numbers: Atomic::new(0),
                status: Atomic::new(0),
            }
        }

        /// A bio that ends here, as if it had been mapped.
        fn bio<D>(&self, number: u64) -> Result<MappedBio<D>> {
            // Where device mapper's flags are: not the first clone of its I/O.
            let room = [0; 32];
            let bio = bindings::bio::default();
            let mut clone = KBox::new(Clone { room, bio }, GFP_KERNEL)?;
            let bio = &mut clone.bio;
            // SAFETY: The bio is ours, and without a table of pages.
            unsafe { bindings::bio_init(bio, ptr::null_mut(), ptr::null_mut(), 0, 0) };
            bio.bi_iter.bi_sector = number;
            // Whose it is has to be found without `bi_private`, which is the target's.
            bio.bi_end_io = Some(Self::end_io);
            let clone = KBox::into_raw(clone);
            // SAFETY: Nobody else has it. It is long enough.
            unsafe { (*clone).room[0] = ptr::from_ref(self) as u64 };
            // SAFETY: It is like a clone of device mapper's; nothing is asked of it here that only a
            // real one has.
            let bio = unsafe { Bio::from_raw(&raw mut (*clone).bio, ptr::null_mut()) };
            Ok(MappedBio { bio })
        }

        /// # Safety
        ///
        /// Called when a bio that [`Self::bio`] made ends.
        unsafe extern "C" fn end_io(bio: *mut bindings::bio) {
            // SAFETY: `bio` made it, and nobody uses it any more.
            let clone = unsafe { KBox::from_raw(kernel::container_of!(bio, Clone, bio)) };
            // SAFETY: Set by `bio`, which borrowed it for as long as the test runs.
            let ended = unsafe { &*(clone.room[0] as *const c_void).cast::<Ended>() };
            let numbers = ended.numbers.load(Relaxed);
            let number = clone.bio.bi_iter.bi_sector;
            ended.numbers.store(10 * numbers + number, Relaxed);
            ended.status.store(u32::from(clone.bio.bi_status), Relaxed);
        }
    }

    #[test]
    fn a_list_is_first_in_first_out() -> Result {
        let ended = Ended::new();
        let mut list = BioList::new();
        assert!(list.is_empty());
        for number in 1..=3 {
            list.push_back(ended.bio(number)?.hold(number));
        }
        assert_eq!(list.front().map(|bio| bio.sector()), Some(1));
        for number in 1..=3 {
            let bio = list.pop_front().ok_or(EINVAL)?;
            assert_eq!(bio.sector(), number);
            assert_eq!(*bio.data(), number);
            // What was taken out may be put in again.
            if number == 1 {
                list.push_back(bio);
            } else {
                bio.release().0.end(Status::OK);
            }
        }
        assert_eq!(list.pop_front().map(|bio| bio.sector()), Some(1));
        assert!(list.is_empty());
        assert_eq!(ended.numbers.load(Relaxed), 231);
        Ok(())
    }

    #[test]
    fn lists_are_appended_in_order() -> Result {
        let ended = Ended::new();
        let mut list = BioList::new();
        list.append(BioList::new());
        assert!(list.is_empty());
        for pair in [[1, 2], [3, 4]] {
            let mut other = BioList::new();
            for number in pair {
                other.push_back(ended.bio(number)?.hold(()));
            }
            list.append(other);
        }
        list.append(BioList::new());
        list.push_back(ended.bio(5)?.hold(()));
        drop(list);
        assert_eq!(ended.numbers.load(Relaxed), 12345);
        Ok(())
    }

    #[test]
    fn a_bio_that_is_dropped_ends_with_an_error() -> Result {
        let ended = Ended::new();
        drop(ended.bio::<()>(7)?);
        assert_eq!(ended.numbers.load(Relaxed), 7);
        assert_eq!(
            ended.status.load(Relaxed),
            u32::from(Status::IOERR.as_raw())
        );
        Ok(())
    }

    #[test]
    fn a_list_that_is_dropped_ends_all() -> Result {
        let ended = Ended::new();
        let mut list = BioList::new();
        for number in 1..=3 {
            list.push_back(ended.bio(number)?.hold(()));
        }
        drop(list);
        assert_eq!(ended.numbers.load(Relaxed), 123);
        Ok(())
    }

    #[test]
    fn a_bio_ends_as_it_is_told() -> Result {
        let ended = Ended::new();
        ended.bio::<()>(1)?.end(Status::AGAIN);
        assert_eq!(
            ended.status.load(Relaxed),
            u32::from(Status::AGAIN.as_raw())
        );
        Ok(())
    }

    #[test]
    fn what_is_kept_in_a_bio_is_dropped_once() -> Result {
        let ended = Ended::new();
        let drops = Arc::new(Atomic::new(0), GFP_KERNEL)?;
        let keep = |number| Kept {
            number,
            drops: drops.clone(),
        };
        let mut held = ended.bio(1)?.hold(keep(4));
        assert_eq!(held.data().number, 4);
        held.data_mut().number = 5;
        let (bio, kept) = held.release();
        assert_eq!((kept.number, drops.load(Relaxed)), (5, 0));
        drop(kept);
        assert_eq!(drops.load(Relaxed), 1);
        // It may be kept once more.
        drop(bio.hold(keep(6)));
        assert_eq!(drops.load(Relaxed), 2);
        assert_eq!(ended.numbers.load(Relaxed), 1);
        Ok(())
    }

    /// How often somebody was told.
    static TOLD: Atomic<u64> = Atomic::new(0);

    /// # Safety
    ///
    /// As for [`end_observed`].
    unsafe extern "C" fn tell(bio: *mut bindings::bio) {
        // SAFETY: By the safety requirements.
        unsafe {
            end_observed::<()>(bio, |ti| {
                assert!(ti.is_null());
                TOLD.add(1, Relaxed);
            })
        };
    }

    #[test]
    fn who_observes_a_bio_is_told_once() -> Result {
        let ended = Ended::new();
        TOLD.store(0, Relaxed);
        let (mut bio, ()) = ended.bio(3)?.hold(()).release();
        // SAFETY: `tell` does nothing else. The bio ends right after.
        unsafe { bio.observe(tell) };
        assert_eq!(TOLD.load(Relaxed), 0);
        bio.end(Status::NOSPC);
        assert_eq!((TOLD.load(Relaxed), ended.numbers.load(Relaxed)), (1, 3));
        assert_eq!(
            ended.status.load(Relaxed),
            u32::from(Status::NOSPC.as_raw())
        );
        // What is dropped ends as well.
        let mut bio = ended.bio::<()>(4)?;
        // SAFETY: As above.
        unsafe { bio.observe(tell) };
        drop(bio);
        assert_eq!((TOLD.load(Relaxed), ended.numbers.load(Relaxed)), (2, 34));
        Ok(())
    }
}
