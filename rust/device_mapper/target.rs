// SPDX-License-Identifier: GPL-2.0

//! Device-mapper targets.
//!
//! See [`Target`] for the steps that an implementer takes.

use super::{
    args::{
        log_error,
        Args,
        Context,
        Quoted, //
    },
    status::StatusWriter, //
};
use crate::{
    bindings,
    bio::{
        end_observed,
        Bio,
        EndedBio,
        IncomingBio,
        MappedBio,
        Status, //
    },
    compat::owner,
    memalloc::noio,
    module::Loading, //
};
use core::{
    fmt,
    marker::PhantomData,
    mem,
    ptr::NonNull, //
};
use kernel::{
    container_of,
    error::{
        from_result,
        to_result,
        VTABLE_DEFAULT_ERROR, //
    },
    prelude::*,
    types::Opaque, //
};

/// What a target can do (`DM_TARGET_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Features {
    dm: u64,
    dax: bool,
}

impl Features {
    /// Nothing in particular.
    pub const NONE: Features = Features::new(0);
    /// It handles `REQ_NOWAIT`: such a bio is not held, but ended with [`Status::AGAIN`].
    pub const NOWAIT: Features = Features::new(bindings::DM_TARGET_NOWAIT as u64);
    /// Encryption contexts pass through it to the device below.
    pub const PASSES_CRYPTO: Features = Features::new(bindings::DM_TARGET_PASSES_CRYPTO as u64);
    /// Integrity data pass through it to the device below.
    pub const PASSES_INTEGRITY: Features =
        Features::new(bindings::DM_TARGET_PASSES_INTEGRITY as u64);
    /// It maps zoned devices zone by zone, keeping the order of writes. The adapter reports zones;
    /// the target must have one [`Mapping`].
    pub const ZONED_HM: Features = Features::new(bindings::DM_TARGET_ZONED_HM as u64);
    /// It does not tear bios with `REQ_ATOMIC`.
    pub const ATOMIC_WRITES: Features = Features::new(bindings::DM_TARGET_ATOMIC_WRITES as u64);
    /// It lets memory behind the device be mapped directly. The adapter does it; the target must
    /// have one [`Mapping`]. Such accesses are no bios.
    pub const DAX: Features = Features { dm: 0, dax: true };

    const fn new(dm: u64) -> Self {
        Self { dm, dax: false }
    }

    /// The features of both.
    pub const fn and(self, other: Features) -> Features {
        Features {
            dm: self.dm | other.dm,
            dax: self.dax || other.dax,
        }
    }

    const fn has(self, other: Features) -> bool {
        self.dm & other.dm == other.dm && (self.dax || !other.dax)
    }
}

/// What [`Target::map`] did with a bio.
pub enum Map<'a, D> {
    /// It is directed to a device: device mapper is to submit it (`DM_MAPIO_REMAPPED`).
    Remapped(MappedBio<D>),
    /// The same, and the target is to be told when it ends ([`Target::bio_ended`]).
    Observed(MappedBio<D>),
    /// It is kept, or was submitted or ended already (`DM_MAPIO_SUBMITTED`).
    Submitted,
    /// Device mapper is to try again, after the suspend that is under way. Without one, it fails
    /// (`DM_MAPIO_REQUEUE`).
    Requeue(IncomingBio<'a, D>),
    /// It fails (`DM_MAPIO_KILL`).
    Kill(IncomingBio<'a, D>),
}

/// What becomes of a bio that ended below.
pub enum EndIo {
    /// It ends, with this status.
    Done(Status),
    /// Device mapper is to try again, as with [`Map::Requeue`].
    Requeue,
}

/// What is asked for by `dmsetup status` and its like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StatusType {
    /// The state, `dmsetup status`.
    Info,
    /// The words of the table line that would make this target, `dmsetup table`.
    Table,
    /// What the integrity measurement architecture records: `,key=value...;`.
    Ima,
}

/// A device-mapper target.
///
/// # Implementing one
///
/// 1. Implement this trait, with `#[vtable]`. Required are [`ctr`](Target::ctr),
///    [`map`](Target::map) and [`status`](Target::status); a callback that is not implemented is a
///    null pointer in the C structure.
/// 2. In `ctr`, take the words from the [`Args`]; open devices with
///    [`Constructor::map_device`], which also tells device mapper which part of them the target
///    uses (there is no `iterate_devices` to write).
/// 3. In `map`, direct the bio to a device ([`IncomingBio::remap`], or [`TargetRef::remap`] for
///    a linear mapping) and return it in [`Map::Remapped`]; or keep it and return
///    [`Map::Submitted`].
/// 4. Declare the module with [`module_target!`](crate::module_target), which registers the target.
///
/// # C counterparts
///
/// | here | C |
/// | --- | --- |
/// | the constants and `HAS_*` | `struct target_type` |
/// | [`Target::ctr`], [`Drop`] of the implementer | `ctr`, `dtr` |
/// | [`Target::Shared`], [`Target::shared`] | global variables |
/// | [`module_target!`](crate::module_target) | `module_dm()` |
/// | [`Target::PerBio`] | `ti->per_io_data_size`, `dm_per_bio_data()` |
/// | [`Constructor::map_device`] | `dm_get_device()`, `iterate_devices` |
/// | [`Target::prepare_ioctl`] | `prepare_ioctl` |
/// | [`Features::ZONED_HM`], [`Features::DAX`] | `report_zones`, `direct_access` and so on |
/// | [`Constructor`] | `struct dm_target` while `ctr` runs |
/// | [`TargetRef`] | `struct dm_target` |
/// | [`Args`], [`StatusWriter`] | `argc` and `argv`, `result` and `maxlen` |
///
/// # Ownership
///
/// What differs from C is who owns what: a bio belongs to whoever holds it (see
/// [`bio`](crate::bio)), the devices belong to the table line, which closes them after the target
/// was dropped, and the target lends them, for the time of one callback, through [`TargetRef`].
///
/// # Who runs when
///
/// | callback | context | concurrent with |
/// | --- | --- | --- |
/// | `ctr` | process, may sleep | nothing of this target |
/// | `map` | process, may sleep, but must not wait for other bios | itself, and all below |
/// | `end_io`, `bio_ended` | any, also hard interrupt | itself, and all others |
/// | timers, work | what they bring | all, until the target is dropped |
/// | `status`, `message`, `prepare_ioctl` | process, may sleep | all, themselves included |
/// | `presuspend` | process, may sleep | `map`, `end_io`, `status`, `message` |
/// | `presuspend_undo` | as `presuspend`, when the suspend failed | the same |
/// | `postsuspend` | process, may sleep; no bio is in flight | `status`, `message` |
/// | `preresume`, `resume` | process, may sleep; no bio is in flight, `map` follows | `status`, `message` |
/// | drop | process, may sleep; no bio is in flight | timers and work of its own, which it stops |
///
/// A target that was never resumed (a table that was loaded and cleared) is dropped without any of
/// the others having been called. A device that is removed gets `presuspend` and `postsuspend`
/// first. Process context here includes the memory reclaim path: `map`, and everything that a bio in
/// flight waits for, allocates with `GFP_NOIO` if at all, on a queue of its own if it needs one
/// ([`OwnedQueue`](crate::workqueue::OwnedQueue)).
///
/// # Example
///
/// The linear target of `selftests/modules/main.rs`, which is compiled and tested:
///
/// ```ignore
/// struct Linear {
///     mapping: Mapping,
/// }
///
/// #[vtable]
/// impl Target for Linear {
///     const NAME: &'static CStr = c"linear-rs";
///     const VERSION: [u32; 3] = [1, 0, 0];
///     type PerBio = ();
///     type Shared = ();
///
///     fn shared() -> Result {
///         Ok(())
///     }
///
///     fn ctr(
///         ti: &mut Constructor<'_, Self>,
///         args: &mut Args<'_>,
///     ) -> Result<impl PinInit<Self>> {
///         let mapping = ti.map_device(args)?;
///         args.finish()?;
///         Ok(Linear { mapping })
///     }
///
///     fn map<'a>(self: Pin<&Self>, ti: TargetRef<'a>, bio: IncomingBio<'a>) -> Map<'a, ()> {
///         Map::Remapped(ti.remap(bio, self.mapping))
///     }
///
///     fn status(self: Pin<&Self>, ti: TargetRef<'_>, kind: StatusType, out: &mut StatusWriter<'_>) {
///         if kind == StatusType::Table {
///             write!(out, "{}", ti.display(self.mapping));
///         }
///     }
/// }
///
/// module_target! {
///     type: Linear,
///     name: "dm_linear_rs",
///     authors: ["A. Author"],
///     description: "Linear device-mapper target",
///     license: "GPL",
/// }
/// ```
#[vtable]
pub trait Target: Sized + Send + Sync + 'static {
    /// What table lines call it.
    const NAME: &'static CStr;
    /// Major, minor, patch level.
    const VERSION: [u32; 3];
    /// What it can do.
    const FEATURES: Features = Features::NONE;

    /// Data of the target's own in each bio that it holds
    /// ([`MappedBio::hold`](crate::bio::MappedBio::hold)).
    type PerBio: Send + Sync;

    /// What all targets of this kind share, for as long as they are registered: made by
    /// [`shared`](Target::shared), lent by [`Constructor::shared`]. `()` when they share nothing.
    type Shared: Send + Sync + 'static;

    /// Makes what all targets of this kind share, when the module is loaded. Process context.
    ///
    /// # Errors
    ///
    /// One keeps the target from being registered.
    fn shared() -> Result<Self::Shared>;

    /// Makes a target from the words of its table line.
    ///
    /// Whoever refuses a word says so in the kernel log ([`Args::refuse`], which what takes words
    /// from [`Args`] calls by itself). Returns what makes the target in place; a plain value will do.
    fn ctr(ti: &mut Constructor<'_, Self>, args: &mut Args<'_>) -> Result<impl PinInit<Self>>;

    /// Maps a bio.
    fn map<'a>(
        self: Pin<&Self>,
        ti: TargetRef<'a>,
        bio: IncomingBio<'a, Self::PerBio>,
    ) -> Map<'a, Self::PerBio>;

    /// A bio ended, with `status`: one that the target submitted, returned in [`Map::Remapped`] or
    /// ended itself, but not one that it returned in [`Map::Requeue`] or [`Map::Kill`].
    ///
    /// It costs every bio something. Who has to know of some only has them observed: see
    /// [`bio_ended`](Self::bio_ended).
    fn end_io(self: Pin<&Self>, _ti: TargetRef<'_>, _bio: &EndedBio<'_>, _status: Status) -> EndIo {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// A bio ended that was returned in [`Map::Observed`] or submitted by
    /// [`submit_observed`](crate::bio::MappedBio::submit_observed).
    ///
    /// Any context, hard interrupts too; others may run at the same time. The table exists until this
    /// returns and longer.
    fn bio_ended(self: Pin<&Self>) {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// Reports the state, or the words of the table line.
    fn status(self: Pin<&Self>, ti: TargetRef<'_>, kind: StatusType, out: &mut StatusWriter<'_>);

    /// `dmsetup message`. What is written to `reply` is what the command prints.
    fn message(
        self: Pin<&Self>,
        _ti: TargetRef<'_>,
        _args: &mut Args<'_>,
        _reply: &mut StatusWriter<'_>,
    ) -> Result {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// The device is about to be suspended: bios that are held must be let go, and none be held from
    /// now on. Bios may still come.
    fn presuspend(self: Pin<&Self>, _ti: TargetRef<'_>) {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// The suspend that [`presuspend`](Self::presuspend) announced failed.
    fn presuspend_undo(self: Pin<&Self>, _ti: TargetRef<'_>) {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// The device is suspended.
    fn postsuspend(self: Pin<&Self>, _ti: TargetRef<'_>) {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// The device is about to be resumed, which an error prevents.
    fn preresume(self: Pin<&Self>, _ti: TargetRef<'_>) -> Result {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// The device is being resumed: bios will come.
    fn resume(self: Pin<&Self>, _ti: TargetRef<'_>) {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// To which part of which device an ioctl on the mapped device goes.
    ///
    /// When not implemented, a target with one [`Mapping`] forwards to that.
    fn prepare_ioctl(self: Pin<&Self>, _ti: TargetRef<'_>, _cmd: u32) -> Result<Mapping> {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// Adjusts the queue limits that device mapper stacked from those of the target's devices.
    fn io_hints(self: Pin<&Self>, _ti: TargetRef<'_>, _limits: &mut QueueLimits) {
        build_error!(VTABLE_DEFAULT_ERROR)
    }
}

/// A part of a device, as long as the target, that the target uses: the result of
/// [`Constructor::map_device`].
///
/// It is an index into the devices of its target. With another target it means another device, or
/// none, in which case [`TargetRef::device`] panics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapping {
    index: usize,
    start: u64,
}

impl Mapping {
    /// The first sector of the device that is used.
    pub fn start(self) -> u64 {
        self.start
    }
}

/// A device that a target opened.
///
/// # Invariants
///
/// `dev` is what `dm_get_device()` returned for this target.
struct OpenDevice {
    dev: NonNull<bindings::dm_dev>,
    start: u64,
}

// SAFETY: A `dm_dev` is not tied to a thread.
unsafe impl Send for OpenDevice {}
// SAFETY: It is only read.
unsafe impl Sync for OpenDevice {}

/// Which table of which mapped device. Two lines of one table have the same, and while a device is
/// reloaded its two tables differ in the second part. Ordered by device first. Meaningless once the
/// table is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TableId {
    device: usize,
    table: usize,
}

impl TableId {
    /// The same number for all tables of a device, and no other.
    pub fn device(self) -> u64 {
        self.device as u64
    }
}

/// The disk of a mapped device (`dm_disk()`), which stays in memory as long as this does. It does not keep
/// the mapped device from being removed.
///
/// # Invariants
///
/// We have a reference to `disk`.
pub struct MappedDisk {
    disk: NonNull<bindings::gendisk>,
}

// SAFETY: A disk is not tied to a thread, and its last reference may be dropped on any.
unsafe impl Send for MappedDisk {}
// SAFETY: All there is to be done with a shared reference is to look at a lock.
unsafe impl Sync for MappedDisk {}

impl MappedDisk {
    /// Is the file system on it being frozen at the moment (`bdev_freeze()`), for a suspend for example:
    /// does it write what it has to? Any context.
    pub fn is_freezing(&self) -> bool {
        // SAFETY: By the type invariants.
        unsafe { bindings::ferrule_disk_is_freezing(self.disk.as_ptr()) }
    }
}

impl Drop for MappedDisk {
    /// Process context.
    fn drop(&mut self) {
        // SAFETY: By the type invariants; it is not used after this.
        unsafe { bindings::ferrule_put_disk(self.disk.as_ptr()) }
    }
}

/// A target that is being made.
///
/// Unless told otherwise it gets one bio for each flush, discard, secure erase and write zeroes
/// that the devices below support.
///
/// # Invariants
///
/// `ti` is valid, and its constructor runs.
pub struct Constructor<'a, T: Target> {
    ti: NonNull<bindings::dm_target>,
    devices: KVec<OpenDevice>,
    shared: &'a T::Shared,
    _ti: PhantomData<&'a mut bindings::dm_target>,
}

impl<'a, T: Target> Constructor<'a, T> {
    fn raw(&mut self) -> &mut bindings::dm_target {
        // SAFETY: By the type invariants; nobody else accesses it while the constructor runs.
        unsafe { self.ti.as_mut() }
    }

    /// What all targets of this kind share.
    pub fn shared(&self) -> &'a T::Shared {
        self.shared
    }

    /// The table that the target is a line of.
    pub fn table(&mut self) -> TableId {
        let table = self.raw().table;
        // SAFETY: `table` is the target's table.
        let device = unsafe { bindings::dm_table_get_md(table) };
        TableId {
            device: device as usize,
            table: table as usize,
        }
    }

    /// The disk of the mapped device.
    pub fn disk(&mut self) -> MappedDisk {
        // SAFETY: The target's table is that of a mapped device, which has a disk.
        let disk = unsafe { bindings::ferrule_dm_get_disk(self.raw().table) };
        // INVARIANT: We have a reference of our own.
        MappedDisk {
            // SAFETY: A mapped device has a disk from its creation on.
            disk: unsafe { NonNull::new_unchecked(disk) },
        }
    }

    /// The mapped devices that a mapping lies on, by [`TableId::device`], through their live tables
    /// (16 of them, one above the other, at most). What is below other things, such as a loop
    /// device, cannot be seen.
    pub fn mapped_devices_below(&self, mapping: Mapping) -> Result<KVec<u64>> {
        /// Says whether to go on below a mapped device.
        ///
        /// # Safety
        ///
        /// `data` must be that of `found` below, which nobody else uses.
        unsafe extern "C" fn visit(data: *mut c_void, md: *mut bindings::mapped_device) -> bool {
            // SAFETY: By the safety requirements.
            let found = unsafe { &mut *data.cast::<Result<KVec<u64>>>() };
            let Ok(list) = found else {
                return false;
            };
            if list.contains(&(md as u64)) {
                return false;
            }
            // Those below may be suspended, so reclaim must not wait for them.
            match noio(|| list.push(md as u64, GFP_KERNEL)) {
                Ok(()) => true,
                Err(error) => {
                    *found = Err(error.into());
                    false
                }
            }
        }

        let mut found: Result<KVec<u64>> = Ok(KVec::new());
        // SAFETY: The device is open. `visit` is called before this returns, with `found`.
        unsafe {
            bindings::ferrule_dm_devices_below(
                (*self.devices[mapping.index].dev.as_ptr()).bdev,
                Some(visit),
                (&raw mut found).cast(),
            )
        };
        found
    }

    /// The first sector of the mapped device that is the target's.
    pub fn begin(&mut self) -> u64 {
        self.raw().begin
    }

    /// How many sectors are the target's.
    pub fn sectors(&mut self) -> u64 {
        self.raw().len
    }

    /// Takes the words `<device> <offset>`, opens the device in the mode of the table and registers
    /// the sectors from `offset` on, as many as the target has, as used by the target.
    pub fn map_device(&mut self, args: &mut Args<'_>) -> Result<Mapping> {
        let path = args.word("device")?;
        let start = args.number("offset", 0..=(i64::MAX as u64 >> bindings::SECTOR_SHIFT))?;
        self.map_device_at(args, path, start)
    }

    /// Opens the device `path` (a path, or `major:minor`) and registers the sectors from `start` on.
    /// `args` is where an error is reported.
    pub fn map_device_at(&mut self, args: &Args<'_>, path: &CStr, start: u64) -> Result<Mapping> {
        let index = self.devices.len();
        self.devices.reserve(1, GFP_KERNEL)?;
        let mut dev = core::ptr::null_mut();
        let ti = self.ti.as_ptr();
        // SAFETY: By the type invariants; called from the constructor.
        to_result(unsafe {
            bindings::dm_get_device(
                ti,
                path.as_char_ptr(),
                bindings::dm_table_get_mode((*ti).table),
                &mut dev,
            )
        })
        .inspect_err(|error| {
            args.refuse(format_args!(
                "device: {} cannot be opened (error {})",
                Quoted(path.to_bytes()),
                error.to_errno()
            ));
        })?;
        // INVARIANT: `dm_get_device()` succeeded.
        let device = OpenDevice {
            dev: NonNull::new(dev).ok_or(ENODEV)?,
            start,
        };
        // SAFETY: It is open.
        let size = unsafe { bindings::ferrule_bdev_nr_sectors((*dev).bdev) };
        self.devices
            .push_within_capacity(device)
            .map_err(|_| ENOMEM)?;

        let len = self.sectors();
        if start > size || len > size - start {
            return Err(args.refuse(format_args!(
                "offset: {} has {size} sectors, too few for {len} from \"{start}\" on",
                Quoted(path.to_bytes())
            )));
        }
        Ok(Mapping { index, start })
    }

    /// Is the device that a mapping uses zoned?
    pub fn is_zoned(&self, mapping: Mapping) -> bool {
        // SAFETY: By the invariants of `OpenDevice`.
        unsafe { bindings::ferrule_bdev_is_zoned((*self.devices[mapping.index].dev.as_ptr()).bdev) }
    }

    /// How many bios the target gets for a flush of the device (`num_flush_bios`).
    pub fn set_flush_bios(&mut self, count: u32) {
        self.raw().num_flush_bios = count;
    }

    /// How many bios the target gets for a discard (`num_discard_bios`).
    pub fn set_discard_bios(&mut self, count: u32) {
        self.raw().num_discard_bios = count;
    }

    /// How many bios the target gets for a secure erase (`num_secure_erase_bios`).
    pub fn set_secure_erase_bios(&mut self, count: u32) {
        self.raw().num_secure_erase_bios = count;
    }

    /// How many bios the target gets for a write of zeroes (`num_write_zeroes_bios`).
    pub fn set_write_zeroes_bios(&mut self, count: u32) {
        self.raw().num_write_zeroes_bios = count;
    }

    /// Flushes need not pass through the target (`flush_bypasses_map`).
    pub fn set_flush_bypasses_map(&mut self) {
        self.raw().set_flush_bypasses_map(true);
    }

    /// No bio of more than this many sectors, nor across a multiple of it (`ti->max_io_len`).
    pub fn set_max_io_sectors(&mut self, sectors: u32) {
        self.raw().max_io_len = sectors;
    }
}

/// A target, for the time of one callback.
///
/// # Invariants
///
/// `ti` is valid for `'a`, and its `private` points to `devices`' owner.
#[derive(Clone, Copy)]
pub struct TargetRef<'a> {
    ti: NonNull<bindings::dm_target>,
    devices: &'a [OpenDevice],
    // Invariant in 'a: a bio and a device belong to the same call.
    _call: PhantomData<fn(&'a ()) -> &'a ()>,
}

impl<'a> TargetRef<'a> {
    fn raw(&self) -> &bindings::dm_target {
        // SAFETY: By the type invariants; these fields are not changed once the target is made.
        unsafe { self.ti.as_ref() }
    }

    /// The first sector of the mapped device that is the target's.
    #[inline]
    pub fn begin(&self) -> u64 {
        self.raw().begin
    }

    /// How many sectors are the target's.
    #[inline]
    pub fn sectors(&self) -> u64 {
        self.raw().len
    }

    /// The mapped device's number, `major:minor`.
    pub fn device_name(&self) -> &CStr {
        // SAFETY: By the type invariants; the name lives as long as the mapped device.
        unsafe { CStr::from_char_ptr(bindings::dm_table_device_name(self.raw().table)) }
    }

    /// The device that a mapping uses.
    ///
    /// # Panics
    ///
    /// When it is not this target's.
    #[inline]
    pub fn device(&self, mapping: Mapping) -> Device<'a> {
        // INVARIANT: It is open for as long as the target exists.
        Device {
            dev: self.devices[mapping.index].dev,
            _call: PhantomData,
        }
    }

    /// Directs a bio to its place in a mapping: as far from the start as it was from the start of
    /// the target.
    #[inline]
    pub fn remap<D>(&self, bio: IncomingBio<'a, D>, mapping: Mapping) -> MappedBio<D> {
        // A flush has no sector, and may wrap around.
        let sector = bio
            .sector()
            .wrapping_sub(self.begin())
            .wrapping_add(mapping.start);
        bio.remap(self.device(mapping), sector)
    }

    /// A mapping as the words `<device> <offset>` of a table line.
    pub fn display(&self, mapping: Mapping) -> impl fmt::Display + 'a {
        DisplayMapping {
            device: self.device(mapping),
            start: mapping.start,
        }
    }

    /// Is the suspend that is under way one that does not wait for bios (`--noflush`)?
    pub fn is_noflush_suspending(&self) -> bool {
        // SAFETY: By the type invariants.
        unsafe { bindings::dm_noflush_suspending(self.ti.as_ptr()) != 0 }
    }
}

/// A device that a target opened, for the time of one callback.
///
/// # Invariants
///
/// `dev` is a valid `dm_dev` of the table whose target the callback is for, for as long as there is
/// a table.
#[derive(Clone, Copy)]
pub struct Device<'a> {
    dev: NonNull<bindings::dm_dev>,
    _call: PhantomData<fn(&'a ()) -> &'a ()>,
}

impl<'a> Device<'a> {
    #[inline]
    pub(crate) fn as_bdev(&self) -> *mut bindings::block_device {
        // SAFETY: By the type invariants.
        unsafe { (*self.dev.as_ptr()).bdev }
    }

    /// Its number, `major:minor`.
    pub fn name(&self) -> &'a CStr {
        // SAFETY: By the type invariants; it is NUL-terminated.
        unsafe { CStr::from_char_ptr((*self.dev.as_ptr()).name.as_ptr()) }
    }

    /// Its size.
    pub fn sectors(&self) -> u64 {
        // SAFETY: By the type invariants.
        unsafe { bindings::ferrule_bdev_nr_sectors(self.as_bdev()) }
    }

    /// Has the disk been taken away?
    pub fn is_dead(&self) -> bool {
        // SAFETY: By the type invariants.
        unsafe { bindings::ferrule_bdev_is_dead(self.as_bdev()) }
    }
}

struct DisplayMapping<'a> {
    device: Device<'a>,
    start: u64,
}

impl fmt::Display for DisplayMapping<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} {}",
            self.device.name().to_bytes().escape_ascii(),
            self.start
        )
    }
}

/// The queue limits of the mapped device (`struct queue_limits`).
#[repr(transparent)]
pub struct QueueLimits(bindings::queue_limits);

impl QueueLimits {
    /// The smallest I/O that the device can do, in bytes.
    pub fn logical_block_size(&self) -> u32 {
        self.0.logical_block_size
    }

    /// The size of an I/O that the device likes least to be undercut, in bytes.
    pub fn set_io_min(&mut self, bytes: u32) {
        self.0.io_min = bytes;
    }

    /// The size of an I/O that the device does best, in bytes.
    pub fn set_io_opt(&mut self, bytes: u32) {
        self.0.io_opt = bytes;
    }
}

/// What `ti->private` points to.
#[pin_data]
struct Private<T> {
    devices: KVec<OpenDevice>,
    #[pin]
    target: T,
}

/// What device mapper knows of a kind of targets, and what only this crate does.
#[repr(C)]
struct Kind {
    inner: bindings::target_type,
    /// The end function of bios that are observed.
    bio_ended: unsafe extern "C" fn(*mut bindings::bio),
}

/// The end function of bios that came to this target and are observed.
///
/// # Safety
///
/// `ti` must be a target that an [`Adapter`] made.
#[inline]
pub(crate) unsafe fn bio_ended_of(
    ti: *mut bindings::dm_target,
) -> unsafe extern "C" fn(*mut bindings::bio) {
    // SAFETY: By the safety requirements `type` is the `inner` of a `Kind`, which outlives its targets.
    unsafe { (*(*ti).type_.cast::<Kind>()).bio_ended }
}

/// Keeps a target registered until the module is unloaded. Made by
/// [`module_target!`](crate::module_target) only: device mapper refers to it as long as there is a table
/// line of this target, each of which holds a reference on the module, and on nothing else.
///
/// # Invariants
///
/// `kind.inner` is registered by `dm_register_target()`, pinned, and unregistered by `drop` only, which
/// is called when the module is unloaded.
#[pin_data(PinnedDrop)]
pub struct Registration<T: Target> {
    #[pin]
    kind: Opaque<Kind>,
    shared: T::Shared,
}

// SAFETY: May be unregistered from any thread.
unsafe impl<T: Target> Send for Registration<T> {}
// SAFETY: All there is to be done with a shared reference is to read `shared`, which is `Sync`.
unsafe impl<T: Target> Sync for Registration<T> {}

impl<T: Target> Registration<T> {
    /// Registers the target. `shared` is what all targets of this kind share.
    ///
    /// Fails with `EEXIST` when there is one of that name.
    ///
    /// # Safety
    ///
    /// The result must only be dropped when the module is unloaded, or when there is no table.
    unsafe fn new(shared: T::Shared) -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            // In place before anybody can make a target.
            shared,
            kind <- Opaque::try_ffi_init(|slot: *mut Kind| {
                let kind = Kind {
                    inner: Adapter::<T>::target_type(),
                    bio_ended: Adapter::<T>::bio_ended,
                };
                // SAFETY: `slot` is valid for writes.
                unsafe { slot.write(kind) };
                // SAFETY: It was just initialised, and remains in place until it is unregistered.
                // INVARIANT: Registered.
                to_result(unsafe { bindings::dm_register_target(&raw mut (*slot).inner) })
            }),
        })
    }
}

#[pinned_drop]
impl<T: Target> PinnedDrop for Registration<T> {
    fn drop(self: Pin<&mut Self>) {
        // SAFETY: By the type invariants. There is no table that refers to it: the module would not be
        // unloaded.
        unsafe { bindings::dm_unregister_target(&raw mut (*self.kind.get()).inner) }
    }
}

/// Registers the targets of a module: what [`module_target!`](crate::module_target) is made of.
#[doc(hidden)]
pub struct Registrar {
    _loading: Loading,
    /// What becomes of the module: the first error, until a target was registered.
    result: Option<Result>,
}

impl Registrar {
    /// The registrar of the module that is being loaded.
    pub fn new(loading: Loading) -> Self {
        Self {
            _loading: loading,
            result: None,
        }
    }

    /// Registers a target, if that can be done. The log says why not.
    pub fn register<T: Target>(&mut self) -> Option<Pin<KBox<Registration<T>>>> {
        let registration = T::shared().and_then(|shared| {
            // SAFETY: By the invariants of `Loading` it goes into the module's data, which are dropped
            // when the module is unloaded.
            KBox::pin_init(unsafe { Registration::new(shared) }, GFP_KERNEL)
        });
        match registration {
            Ok(registration) => {
                self.result = Some(Ok(()));
                Some(registration)
            }
            Err(error) => {
                log_error(format_args!(
                    "{}: register failed {}\n",
                    T::NAME.to_bytes().escape_ascii(),
                    error.to_errno()
                ));
                self.result.get_or_insert(Err(error));
                None
            }
        }
    }

    /// Whether the module is of use. An error means that nothing is registered: from the first target on
    /// that is, there may be tables, and nothing may fail.
    pub fn finish(self) -> Result {
        self.result.unwrap_or(Ok(()))
    }
}

/// Declares a module that is one device-mapper target, or several.
///
/// Takes what `module!` takes, with the [`Target`] as its `type`, or several as its `types`:
///
/// ```ignore
/// module_target! {
///     types: [One, Other],
///     name: "dm_some",
///     authors: ["A. Author"],
///     description: "Device-mapper targets",
///     license: "GPL",
/// }
/// ```
///
/// A target that cannot be registered, because there is one of its name, has a line in the log. The
/// module is not loaded when none could be.
///
/// [`Target`]: crate::device_mapper::Target
#[macro_export]
macro_rules! module_target {
    (type: $target:ty, $($f:tt)*) => {
        $crate::module_target! { types: [$target], $($f)* }
    };
    (types: [$($target:ty),+ $(,)?], $($f:tt)*) => {
        struct TargetModule {
            _registrations: (
                $(
                    ::core::option::Option<
                        ::core::pin::Pin<
                            ::kernel::alloc::KBox<$crate::device_mapper::Registration<$target>>,
                        >,
                    >,
                )+
            ),
            // Last, to be dropped last.
            _unloading: $crate::module::Unloading,
        }

        impl ::kernel::Module for TargetModule {
            fn init(_module: &'static ::kernel::ThisModule) -> ::kernel::error::Result<Self> {
                // SAFETY: This is the `init` of the module, and its first statement. The
                // registrations go into the module's data. `finish` fails only if there are none.
                // `unloading` is the first variable, and so dropped last.
                let (loading, unloading) = unsafe { $crate::module::begin() }?;
                let mut registrar = $crate::device_mapper::Registrar::new(loading);
                let registrations = ($(registrar.register::<$target>(),)+);
                registrar.finish()?;
                ::core::result::Result::Ok(Self {
                    _registrations: registrations,
                    _unloading: unloading,
                })
            }
        }

        ::kernel::prelude::module! {
            type: TargetModule,
            $($f)*
        }
    };
}
pub use module_target;

/// The C callbacks of a target.
struct Adapter<T>(PhantomData<T>);

impl<T: Target> Adapter<T> {
    const fn target_type() -> bindings::target_type {
        let mut result: bindings::target_type = pin_init::zeroed();
        result.features = T::FEATURES.dm;
        result.name = kernel::str::as_char_ptr_in_const_context(T::NAME);
        result.module = owner!(T);
        result.version = T::VERSION;
        result.ctr = Some(Self::ctr);
        result.dtr = Some(Self::dtr);
        result.map = Some(Self::map);
        result.status = Some(Self::status);
        result.iterate_devices = Some(Self::iterate_devices);
        result.prepare_ioctl = Some(Self::prepare_ioctl);
        if T::HAS_END_IO {
            result.end_io = Some(Self::end_io);
        }
        if T::HAS_MESSAGE {
            result.message = Some(Self::message);
        }
        if T::HAS_PRESUSPEND {
            result.presuspend = Some(Self::presuspend);
        }
        if T::HAS_PRESUSPEND_UNDO {
            result.presuspend_undo = Some(Self::presuspend_undo);
        }
        if T::HAS_POSTSUSPEND {
            result.postsuspend = Some(Self::postsuspend);
        }
        if T::HAS_PRERESUME {
            result.preresume = Some(Self::preresume);
        }
        if T::HAS_RESUME {
            result.resume = Some(Self::resume);
        }
        if T::HAS_IO_HINTS {
            result.io_hints = Some(Self::io_hints);
        }
        #[cfg(CONFIG_BLK_DEV_ZONED)]
        if T::FEATURES.has(Features::ZONED_HM) {
            result.report_zones = Some(Self::report_zones);
        }
        #[cfg(CONFIG_FS_DAX)]
        if T::FEATURES.has(Features::DAX) {
            result.direct_access = Some(Self::direct_access);
            result.dax_zero_page_range = Some(Self::dax_zero_page_range);
            result.dax_recovery_write = Some(Self::dax_recovery_write);
        }
        result
    }

    /// # Safety
    ///
    /// `ti` must be a target that [`Self::ctr`] made, and remain one for `'a`.
    #[inline]
    unsafe fn target<'a>(ti: *mut bindings::dm_target) -> (Pin<&'a T>, TargetRef<'a>) {
        // SAFETY: By the safety requirements `private` is what `ctr` put there.
        let private = unsafe { &*(*ti).private.cast::<Private<T>>() };
        // INVARIANT: By the safety requirements.
        let target_ref = TargetRef {
            // SAFETY: Device mapper passes no null pointers.
            ti: unsafe { NonNull::new_unchecked(ti) },
            devices: &private.devices,
            _call: PhantomData,
        };
        // SAFETY: `ctr` pinned it.
        (unsafe { Pin::new_unchecked(&private.target) }, target_ref)
    }

    /// The only device of a target, and where its part begins.
    fn only_device(ti: &TargetRef<'_>) -> Option<(*mut bindings::dm_dev, u64)> {
        match ti.devices {
            [device] => Some((device.dev.as_ptr(), device.start)),
            _ => None,
        }
    }

    /// # Safety
    ///
    /// Called by device mapper only: `ti` is being made, `argv` has `argc` words.
    unsafe extern "C" fn ctr(
        ti: *mut bindings::dm_target,
        argc: c_uint,
        argv: *mut *mut c_char,
    ) -> c_int {
        // SAFETY: By the safety requirements.
        unsafe {
            (*ti).num_flush_bios = 1;
            (*ti).num_discard_bios = 1;
            (*ti).num_secure_erase_bios = 1;
            (*ti).num_write_zeroes_bios = 1;
            (*ti).per_io_data_size = Bio::<T::PerBio>::DATA_SIZE as c_uint;
            (*ti).set_accounts_remapped_io(true);
        }

        // SAFETY: `type` is the first field of the `kind` of a registration, which was made before that
        // was registered and outlives its targets: each of them holds a reference on the module.
        let shared = unsafe {
            let kind = Opaque::cast_from((*ti).type_.cast_const().cast::<Kind>());
            &(*container_of!(kind, Registration<T>, kind)).shared
        };
        // INVARIANT: By the safety requirements.
        let mut constructor = Constructor {
            // SAFETY: Device mapper passes no null pointers.
            ti: unsafe { NonNull::new_unchecked(ti) },
            devices: KVec::new(),
            shared,
            _ti: PhantomData,
        };
        // SAFETY: By the safety requirements; the words are not changed while `ctr` runs.
        let mut args = unsafe {
            Args::from_raw(
                argc,
                argv,
                Context {
                    what: "table: ",
                    device: CStr::from_char_ptr(bindings::dm_table_device_name((*ti).table)),
                    name: T::NAME,
                    part: "",
                },
            )
        };
        let private = T::ctr(&mut constructor, &mut args).and_then(|target| {
            KBox::pin_init(
                pin_init!(Private {
                    target <- target,
                    devices: KVec::new(),
                }),
                GFP_KERNEL,
            )
        });
        match private {
            Ok(private) => {
                // SAFETY: Nothing is moved out of the box but into it.
                let private = unsafe { Pin::into_inner_unchecked(private) };
                let private = KBox::into_raw(private);
                // SAFETY: We own it, and `devices` is not pinned.
                unsafe {
                    (*private).devices = constructor.devices;
                    (*ti).private = private.cast();
                }
                0
            }
            Err(error) => {
                // SAFETY: These are the target's devices.
                unsafe { Self::put_devices(ti, &constructor.devices) };
                // SAFETY: By the safety requirements. The text is not changed by anybody.
                unsafe { (*ti).error = c"refused".as_char_ptr().cast_mut() };
                error.to_errno()
            }
        }
    }

    /// # Safety
    ///
    /// `devices` must be those that `ti` opened, none of which is used after this.
    unsafe fn put_devices(ti: *mut bindings::dm_target, devices: &[OpenDevice]) {
        for device in devices {
            // SAFETY: By the safety requirements and the invariants of `OpenDevice`.
            unsafe { bindings::dm_put_device(ti, device.dev.as_ptr()) }
        }
    }

    /// # Safety
    ///
    /// Called by device mapper only, last of all callbacks for `ti`, with no bio in flight.
    unsafe extern "C" fn dtr(ti: *mut bindings::dm_target) {
        // SAFETY: By the safety requirements, `private` is what `ctr` made, and not used any more.
        let mut private = unsafe { KBox::from_raw((*ti).private.cast::<Private<T>>()) };
        let devices = mem::take(&mut private.devices);
        // The target may use its devices to the last.
        drop(private);
        // SAFETY: These are the target's devices.
        unsafe { Self::put_devices(ti, &devices) };
    }

    /// # Safety
    ///
    /// Called by device mapper only; `ti` was made by [`Self::ctr`], and `bio` is passed on to it.
    unsafe extern "C" fn map(ti: *mut bindings::dm_target, bio: *mut bindings::bio) -> c_int {
        // SAFETY: By the safety requirements; `ctr` set `per_io_data_size`.
        let incoming = IncomingBio::new(unsafe { Bio::from_raw(bio, ti) });
        // SAFETY: By the safety requirements.
        let (target, ti) = unsafe { Self::target(ti) };

        let mapped = match T::map(target, ti, incoming) {
            Map::Submitted => return bindings::DM_MAPIO_SUBMITTED as c_int,
            Map::Remapped(mapped) => mapped,
            Map::Observed(mut mapped) if mapped.as_raw() == bio => {
                // SAFETY: It is what tells this target, and the bio is about to be submitted.
                unsafe { mapped.observe(Self::bio_ended) };
                mapped
            }
            Map::Observed(mapped) => {
                mapped.submit_observed();
                return bindings::DM_MAPIO_SUBMITTED as c_int;
            }
            // The lifetime leaves no other than this bio.
            Map::Requeue(incoming) => {
                incoming.into_bio().into_raw();
                return bindings::DM_MAPIO_REQUEUE as c_int;
            }
            Map::Kill(incoming) => {
                incoming.into_bio().into_raw();
                return bindings::DM_MAPIO_KILL as c_int;
            }
        };
        // Only the bio at hand can be answered by a return value. Another one that a target chose to
        // give back is dealt with here.
        if mapped.as_raw() == bio {
            mapped.into_bio().into_raw();
            return bindings::DM_MAPIO_REMAPPED as c_int;
        }
        mapped.submit();
        bindings::DM_MAPIO_SUBMITTED as c_int
    }

    /// # Safety
    ///
    /// Called when a bio ends that is observed, and came to a target of this kind.
    unsafe extern "C" fn bio_ended(bio: *mut bindings::bio) {
        let tell = |ti| {
            if T::HAS_BIO_ENDED {
                // SAFETY: By the safety requirements. The bio keeps its table.
                let (target, _) = unsafe { Self::target(ti) };
                T::bio_ended(target);
            }
        };
        // SAFETY: By the safety requirements.
        unsafe { end_observed::<T::PerBio>(bio, tell) };
    }

    /// # Safety
    ///
    /// Called by device mapper only; `bio` was passed to [`Self::map`] of `ti` before, and ended.
    unsafe extern "C" fn end_io(
        ti: *mut bindings::dm_target,
        bio: *mut bindings::bio,
        error: *mut bindings::blk_status_t,
    ) -> c_int {
        // SAFETY: By the safety requirements.
        let (target, ti) = unsafe { Self::target(ti) };
        // SAFETY: By the safety requirements.
        let bio = unsafe { EndedBio::from_raw(bio) };
        // SAFETY: Device mapper passes a valid pointer.
        let status = Status::from_raw(unsafe { *error });
        match T::end_io(target, ti, &bio, status) {
            EndIo::Done(status) => {
                // SAFETY: As above.
                unsafe { *error = status.as_raw() };
                bindings::DM_ENDIO_DONE as c_int
            }
            EndIo::Requeue => bindings::DM_ENDIO_REQUEUE as c_int,
        }
    }

    /// # Safety
    ///
    /// Called by device mapper only, with a buffer of `maxlen` bytes.
    unsafe extern "C" fn status(
        ti: *mut bindings::dm_target,
        kind: bindings::status_type_t,
        _flags: c_uint,
        result: *mut c_char,
        maxlen: c_uint,
    ) {
        // SAFETY: By the safety requirements.
        let (target, ti) = unsafe { Self::target(ti) };
        // SAFETY: By the safety requirements.
        let mut out = unsafe { StatusWriter::from_raw(result, maxlen as usize) };
        let kind = match kind {
            bindings::status_type_t_STATUSTYPE_INFO => StatusType::Info,
            bindings::status_type_t_STATUSTYPE_TABLE => StatusType::Table,
            _ => {
                let [major, minor, patch] = T::VERSION;
                write!(
                    out,
                    "target_name={},target_version={major}.{minor}.{patch}",
                    T::NAME.to_bytes().escape_ascii()
                );
                StatusType::Ima
            }
        };
        T::status(target, ti, kind, &mut out);
    }

    /// # Safety
    ///
    /// Called by device mapper only, with `argc` words and a buffer of `maxlen` bytes.
    unsafe extern "C" fn message(
        ti: *mut bindings::dm_target,
        argc: c_uint,
        argv: *mut *mut c_char,
        result: *mut c_char,
        maxlen: c_uint,
    ) -> c_int {
        // SAFETY: By the safety requirements.
        let (target, ti) = unsafe { Self::target(ti) };
        // SAFETY: By the safety requirements; the words are not changed meanwhile.
        let mut args = unsafe {
            Args::from_raw(
                argc,
                argv,
                Context {
                    what: "",
                    device: ti.device_name(),
                    name: T::NAME,
                    part: "message: ",
                },
            )
        };
        // SAFETY: By the safety requirements.
        let mut reply = unsafe { StatusWriter::from_raw(result, maxlen as usize) };
        from_result(|| {
            T::message(target, ti, &mut args, &mut reply)?;
            // 1 says that there is a reply.
            Ok(c_int::from(!reply.is_empty()))
        })
    }

    /// # Safety
    ///
    /// Called by device mapper only.
    unsafe extern "C" fn presuspend(ti: *mut bindings::dm_target) {
        // SAFETY: By the safety requirements.
        let (target, ti) = unsafe { Self::target(ti) };
        T::presuspend(target, ti);
    }

    /// # Safety
    ///
    /// Called by device mapper only.
    unsafe extern "C" fn presuspend_undo(ti: *mut bindings::dm_target) {
        // SAFETY: By the safety requirements.
        let (target, ti) = unsafe { Self::target(ti) };
        T::presuspend_undo(target, ti);
    }

    /// # Safety
    ///
    /// Called by device mapper only.
    unsafe extern "C" fn postsuspend(ti: *mut bindings::dm_target) {
        // SAFETY: By the safety requirements.
        let (target, ti) = unsafe { Self::target(ti) };
        T::postsuspend(target, ti);
    }

    /// # Safety
    ///
    /// Called by device mapper only.
    unsafe extern "C" fn preresume(ti: *mut bindings::dm_target) -> c_int {
        // SAFETY: By the safety requirements.
        let (target, ti) = unsafe { Self::target(ti) };
        from_result(|| T::preresume(target, ti).map(|()| 0))
    }

    /// # Safety
    ///
    /// Called by device mapper only.
    unsafe extern "C" fn resume(ti: *mut bindings::dm_target) {
        // SAFETY: By the safety requirements.
        let (target, ti) = unsafe { Self::target(ti) };
        T::resume(target, ti);
    }

    /// # Safety
    ///
    /// Called by device mapper only.
    unsafe extern "C" fn prepare_ioctl(
        ti: *mut bindings::dm_target,
        bdev: *mut *mut bindings::block_device,
        cmd: c_uint,
        _arg: c_ulong,
        _forward: *mut bool,
    ) -> c_int {
        // SAFETY: By the safety requirements.
        let (target, ti) = unsafe { Self::target(ti) };
        let (dev, start) = if T::HAS_PREPARE_IOCTL {
            match T::prepare_ioctl(target, ti, cmd) {
                Ok(mapping) => (ti.device(mapping).dev.as_ptr(), mapping.start),
                Err(error) => return error.to_errno(),
            }
        } else {
            match Self::only_device(&ti) {
                Some(device) => device,
                None => return ENOTTY.to_errno(),
            }
        };
        // SAFETY: `dev` is a device of the target; `bdev` is valid.
        let size = unsafe {
            *bdev = (*dev).bdev;
            bindings::ferrule_bdev_nr_sectors((*dev).bdev)
        };
        // 1 says that the ioctl concerns more than the target has, and needs privileges.
        c_int::from(start != 0 || ti.sectors() != size)
    }

    /// # Safety
    ///
    /// Called by device mapper only.
    unsafe extern "C" fn iterate_devices(
        ti: *mut bindings::dm_target,
        callout: bindings::iterate_devices_callout_fn,
        data: *mut c_void,
    ) -> c_int {
        // SAFETY: By the safety requirements.
        let (_, target_ref) = unsafe { Self::target(ti) };
        let Some(callout) = callout else {
            return 0;
        };
        for device in target_ref.devices {
            // SAFETY: By the safety requirements; it is a device of the target.
            let result = unsafe {
                callout(
                    ti,
                    device.dev.as_ptr(),
                    device.start,
                    target_ref.sectors(),
                    data,
                )
            };
            if result != 0 {
                return result;
            }
        }
        0
    }

    /// # Safety
    ///
    /// Called by device mapper only.
    unsafe extern "C" fn io_hints(
        ti: *mut bindings::dm_target,
        limits: *mut bindings::queue_limits,
    ) {
        // SAFETY: By the safety requirements.
        let (target, ti) = unsafe { Self::target(ti) };
        // SAFETY: `QueueLimits` is transparent, and device mapper lends the limits to us.
        T::io_hints(target, ti, unsafe { &mut *limits.cast::<QueueLimits>() });
    }

    /// # Safety
    ///
    /// Called by device mapper only.
    #[cfg(CONFIG_BLK_DEV_ZONED)]
    unsafe extern "C" fn report_zones(
        ti: *mut bindings::dm_target,
        args: *mut bindings::dm_report_zones_args,
        nr_zones: c_uint,
    ) -> c_int {
        // SAFETY: By the safety requirements.
        let (_, ti) = unsafe { Self::target(ti) };
        let Some((dev, start)) = Self::only_device(&ti) else {
            return EIO.to_errno();
        };
        // SAFETY: `dev` is a device of the target; `args` is valid.
        unsafe {
            let sector = start + ((*args).next_sector - ti.begin());
            bindings::dm_report_zones((*dev).bdev, start, sector, args, nr_zones)
        }
    }

    /// # Safety
    ///
    /// Called by device mapper only.
    #[cfg(CONFIG_FS_DAX)]
    unsafe extern "C" fn direct_access(
        ti: *mut bindings::dm_target,
        mut pgoff: c_ulong,
        nr_pages: c_long,
        mode: bindings::dax_access_mode,
        kaddr: *mut *mut c_void,
        pfn: *mut c_ulong,
    ) -> c_long {
        // SAFETY: By the safety requirements.
        let (_, target_ref) = unsafe { Self::target(ti) };
        let Some((dev, start)) = Self::only_device(&target_ref) else {
            return EIO.to_errno() as c_long;
        };
        // SAFETY: `dev` is a device of the target; the rest is device mapper's.
        unsafe {
            let dax = bindings::ferrule_dm_dax_pgoff(ti, dev, start, &mut pgoff);
            bindings::ferrule_dax_direct_access(dax, pgoff, nr_pages, mode, kaddr, pfn)
        }
    }

    /// # Safety
    ///
    /// Called by device mapper only.
    #[cfg(CONFIG_FS_DAX)]
    unsafe extern "C" fn dax_zero_page_range(
        ti: *mut bindings::dm_target,
        mut pgoff: c_ulong,
        nr_pages: usize,
    ) -> c_int {
        // SAFETY: By the safety requirements.
        let (_, target_ref) = unsafe { Self::target(ti) };
        let Some((dev, start)) = Self::only_device(&target_ref) else {
            return EIO.to_errno();
        };
        // SAFETY: `dev` is a device of the target; the rest is device mapper's.
        unsafe {
            let dax = bindings::ferrule_dm_dax_pgoff(ti, dev, start, &mut pgoff);
            bindings::ferrule_dax_zero_page_range(dax, pgoff, nr_pages)
        }
    }

    /// # Safety
    ///
    /// Called by device mapper only.
    #[cfg(CONFIG_FS_DAX)]
    unsafe extern "C" fn dax_recovery_write(
        ti: *mut bindings::dm_target,
        mut pgoff: c_ulong,
        addr: *mut c_void,
        bytes: usize,
        iter: *mut bindings::iov_iter,
    ) -> usize {
        // SAFETY: By the safety requirements.
        let (_, target_ref) = unsafe { Self::target(ti) };
        let Some((dev, start)) = Self::only_device(&target_ref) else {
            return 0;
        };
        // SAFETY: `dev` is a device of the target; the rest is device mapper's.
        unsafe {
            let dax = bindings::ferrule_dm_dax_pgoff(ti, dev, start, &mut pgoff);
            bindings::ferrule_dax_recovery_write(dax, pgoff, addr, bytes, iter)
        }
    }
}

#[kernel::macros::kunit_tests(ferrule_dm_target)]
mod tests {
    use super::*;
    use kernel::{
        sync::atomic::{
            Atomic,
            Relaxed, //
        },
        ModuleMetadata,
        ThisModule, //
    };

    static SHARED: Atomic<i32> = Atomic::new(0);

    /// Counts those of its kind.
    struct Shared;

    impl Shared {
        fn new() -> Self {
            SHARED.fetch_add(1, Relaxed);
            Self
        }
    }

    impl Drop for Shared {
        fn drop(&mut self) {
            SHARED.fetch_sub(1, Relaxed);
        }
    }

    /// The tests are in no module's main crate.
    struct NoModule;

    impl ModuleMetadata for NoModule {
        const NAME: &'static CStr = c"ferrule";
        // SAFETY: As for code that is built in.
        const THIS_MODULE: ThisModule = unsafe { ThisModule::from_ptr(core::ptr::null_mut()) };
    }

    /// A target that nobody makes.
    struct Never<const NUMBER: usize>;

    #[vtable]
    impl<const NUMBER: usize> Target for Never<NUMBER> {
        type OwnerModule = NoModule;
        type PerBio = ();
        type Shared = Shared;

        const NAME: &'static CStr = [c"ferrule-test-0", c"ferrule-test-1"][NUMBER];
        const VERSION: [u32; 3] = [1, 0, 0];

        fn shared() -> Result<Shared> {
            Ok(Shared::new())
        }

        fn ctr(_: &mut Constructor<'_, Self>, args: &mut Args<'_>) -> Result<impl PinInit<Self>> {
            Err::<Self, _>(args.refuse(format_args!("not to be made")))
        }

        fn map<'a>(self: Pin<&Self>, _: TargetRef<'a>, bio: IncomingBio<'a>) -> Map<'a, ()> {
            Map::Kill(bio)
        }

        fn status(self: Pin<&Self>, _: TargetRef<'_>, _: StatusType, _: &mut StatusWriter<'_>) {}
    }

    fn registrar() -> Registrar {
        // SAFETY: Nobody makes a table of targets of the test.
        Registrar::new(unsafe { Loading::of_a_test() })
    }

    #[test]
    fn a_module_without_any_target_is_not_loaded() {
        let mut first = registrar();
        let registered = first.register::<Never<0>>();
        assert!(registered.is_some());
        assert!(first.finish().is_ok());

        let mut second = registrar();
        assert!(second.register::<Never<0>>().is_none());
        assert!(second.finish().is_err());
        assert_eq!(SHARED.load(Relaxed), 1);
        drop(registered);
        assert_eq!(SHARED.load(Relaxed), 0);
    }

    #[test]
    fn a_target_whose_name_is_taken_does_not_fail_the_others() {
        let mut first = registrar();
        let registered = first.register::<Never<0>>();
        assert!(registered.is_some());

        for is_last in [false, true] {
            let mut second = registrar();
            let mut count = 0;
            for attempt in [is_last, !is_last] {
                if attempt {
                    // Dropped at once.
                    count += usize::from(second.register::<Never<1>>().is_some());
                } else {
                    count += usize::from(second.register::<Never<0>>().is_some());
                }
            }
            assert_eq!(count, 1);
            assert!(second.finish().is_ok());
        }
    }
}
