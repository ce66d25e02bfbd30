// SPDX-License-Identifier: GPL-2.0

//! Path selectors: which path of a `dm-multipath` priority group takes the next I/O.
//!
//! C headers: `drivers/md/dm-path-selector.h`, `drivers/md/dm-mpath.h`.
//!
//! # How to write one
//!
//! 1. Define the selector, what it keeps for a priority group, and what it keeps for each path.
//! 2. Implement [`PathSelector`] for it. [`PathSelector::add_path`] reads a path's table arguments
//!    and returns the path's data; [`PathSelector::select_path`] returns one of the paths that it
//!    is given.
//! 3. Declare the module with [`module_path_selector!`](crate::module_path_selector), which
//!    registers [`PathSelector::NAME`], and [`PathSelector::ALIAS`] when that name is free.
//!
//! | here | C |
//! | --- | --- |
//! | [`PathSelector`] | `struct path_selector_type` |
//! | an implementing type's value | `ps->context` |
//! | [`Path`] | `struct dm_path`, and what `path->pscontext` points to |
//! | [`Paths`] | no counterpart: a C selector keeps lists of its own |
//! | [`PathDevice`] | `path->dev->bdev` |
//! | [`Registration`] | `dm_register_path_selector()`, `dm_unregister_path_selector()` |
//! | [`Args`], [`StatusWriter`] | `argc`, `argv`; `DMEMIT()` on `result`, `maxlen` |
//!
//! # Ownership
//!
//! A C selector allocates its own structure for each path, hangs it on `path->pscontext` and frees
//! it in `destroy`. Here the adapter owns the paths: `add_path` returns the data by value, the
//! adapter keeps it beside the C path until after the selector is dropped, and every callback that
//! concerns a path receives it as [`&Path`](Path). A [`Path`] exists only behind such a reference,
//! whose lifetime is the callback's own, so that the reference that `select_path` returns can only
//! be to a path that was added to this very selector and is still there.
//!
//! # Contexts and concurrency
//!
//! What `dm-multipath` promises (7.3), and what the trait's types rest on:
//!
//! | callback | called in | alongside |
//! | --- | --- | --- |
//! | `create`, `add_path` | process context, may sleep | nothing: the table is being built |
//! | `select_path`, `start_io` | the task that submits the I/O, or `kblockd`; under RCU for request-based multipath, so must not sleep | everything but `create`, `add_path` and drop, and itself on all CPUs |
//! | `end_io` | where the path's I/O ends: any context, hard interrupts too | the same |
//! | `fail_path` | any context, hard interrupts too, under the multipath's spinlock with interrupts off | `select_path`, `start_io`, `end_io` |
//! | `reinstate_path`, `*_status` | under the same spinlock with interrupts off | the same |
//! | drop | process context, may sleep | nothing: the last I/O has ended |
//!
//! So `fail_path`, `reinstate_path` and the status callbacks of one selector never overlap, a lock
//! that `select_path` shares with `fail_path` has to disable interrupts, and nothing but
//! `create`, `add_path` and drop may allocate with `GFP_KERNEL`.
//!
//! # Start times
//!
//! Bio-based multipath takes the time when it submits a bio, if [`PathSelector::USE_HR_TIMER`] asks
//! for it; without it, what it passes counts from another beginning than `ktime_get_ns()`, in ticks, and is
//! of no use. Request-based multipath passes when the path's driver started the request. But that is
//! known only while somebody wants it of the path's queue (writeback throttling, kyber, bfq); else it passes
//! 0, and so it does for a request that never was started. So when [`PathSelector::end_io`]
//! cannot be told, the adapter asks the path's queue for it (`blk_stat_enable_accounting()`), until the
//! selector is dropped.
//!
//! # Example
//!
//! The first path that works takes all I/O. (This file's tests run the same, with an argument.)
//!
//! ```ignore
//! use ferrule::device_mapper::path_selector::*;
//! use kernel::prelude::*;
//! use kernel::sync::atomic::{Atomic, Relaxed};
//!
//! struct FirstPath;
//!
//! #[vtable]
//! impl PathSelector for FirstPath {
//!     type Path = Atomic<bool>;
//!
//!     const NAME: &'static CStr = c"first-path";
//!
//!     fn create(_args: Args<'_>) -> impl PinInit<Self, Error> {
//!         Ok(FirstPath)
//!     }
//!
//!     fn add_path(
//!         self: Pin<&mut Self>,
//!         _device: PathDevice<'_>,
//!         mut args: Args<'_>,
//!     ) -> Result<Atomic<bool>, Refusal> {
//!         args.finish()
//!             .map_err(|error| Refusal::new(error, c"first-path ps: incorrect arguments"))?;
//!         Ok(Atomic::new(true))
//!     }
//!
//!     fn select_path<'a>(&'a self, paths: Paths<'a, Self>, _: usize) -> Option<&'a Path<Self>> {
//!         paths.iter().find(|path| path.load(Relaxed))
//!     }
//!
//!     fn fail_path(&self, path: &Path<Self>) {
//!         path.store(false, Relaxed);
//!     }
//!
//!     fn reinstate_path(&self, path: &Path<Self>) -> Result {
//!         path.store(true, Relaxed);
//!         Ok(())
//!     }
//! }
//!
//! module_path_selector! {
//!     type: FirstPath,
//!     name: "dm-first-path",
//!     authors: ["A. Author"],
//!     description: "Multipath path selector that stays on the first path",
//!     license: "GPL",
//! }
//! ```

pub use super::{
    args::Args,
    status::StatusWriter, //
};

use super::args::Context;
use crate::{
    bindings,
    compat::owner,
    module::Loading,
    numa::Node, //
};
use core::{
    marker::PhantomData,
    ops::Deref,
    ptr::NonNull, //
};
use kernel::{
    error::{
        from_result,
        to_result,
        VTABLE_DEFAULT_ERROR, //
    },
    prelude::*,
    sync::atomic::{
        Atomic,
        Relaxed, //
    },
    types::Opaque, //
};

/// A path selector: one value decides for one priority group.
///
/// The contexts in which each function is called, and what may run at the same time, are in the
/// [module documentation](self#contexts-and-concurrency). Maps to `struct path_selector_type`.
#[vtable]
pub trait PathSelector: Sized + Send + Sync + 'static {
    /// What the selector keeps for each path.
    type Path: Send + Sync + 'static;

    /// The name in a multipath table. multipath-tools passes one argument for a path to selectors
    /// whose name begins with `round-robin`, and none or others by fixed names to the rest.
    const NAME: &'static CStr;

    /// A second name, registered only while no other selector has it.
    const ALIAS: Option<&'static CStr> = None;

    /// How many arguments each path has in the table.
    const TABLE_ARGS: u32 = 0;

    /// How many words [`Self::path_status`] writes for a path in [`Report::Info`].
    const INFO_ARGS: u32 = 0;

    /// Whether [`Self::end_io`] is to be given start times of high resolution with bio-based
    /// multipath too (request-based multipath has them always). Maps to `DM_PS_USE_HR_TIMER`.
    const USE_HR_TIMER: bool = false;

    /// What this group needs, where that is not the same for all: asked for after each
    /// [`Self::add_path`]. By default, all that is implemented.
    fn needs(&self) -> Needs {
        Needs {
            info_args: Self::INFO_ARGS,
            io: true,
        }
    }

    /// Makes the selector of a priority group that has no path yet.
    ///
    /// `args` are the selector's own arguments (`round-robin 0` has none). An error refuses the
    /// table with "path selector constructor failed".
    fn create(args: Args<'_>) -> impl PinInit<Self, Error>;

    /// A path is added: reads its arguments, returns what is kept for it.
    ///
    /// The n-th call that succeeds adds the path with [`Path::index`] n, counted from 0; the path
    /// is in service. A refusal refuses the table, its text reaches the kernel log.
    fn add_path(
        self: Pin<&mut Self>,
        device: PathDevice<'_>,
        args: Args<'_>,
    ) -> Result<Self::Path, Refusal>;

    /// Chooses the path for an I/O of `nr_bytes` bytes (0 for an ioctl), or none when no path is
    /// in service. In the I/O path: neither sleeps nor allocates.
    fn select_path<'a>(&'a self, paths: Paths<'a, Self>, nr_bytes: usize)
        -> Option<&'a Path<Self>>;

    /// The path has failed: no later [`Self::select_path`] is to choose it. Atomic context.
    fn fail_path(&self, path: &Path<Self>);

    /// The failed path works again. Atomic context. On an error the path stays failed.
    fn reinstate_path(&self, path: &Path<Self>) -> Result;

    /// Writes the number of the selector's own arguments and then these, each with a space after
    /// it. Atomic context.
    fn selector_status(&self, _report: Report, out: &mut StatusWriter<'_>) {
        write!(out, "0 ");
    }

    /// Writes the path's arguments, each with a space after it: as many as [`Self::TABLE_ARGS`] in
    /// [`Report::Table`] and as [`Self::INFO_ARGS`] in [`Report::Info`]. Atomic context.
    fn path_status(&self, _path: &Path<Self>, _report: Report, _out: &mut StatusWriter<'_>) {}

    /// An I/O of `nr_bytes` bytes goes down the path (optional).
    fn start_io(&self, _path: &Path<Self>, _nr_bytes: usize) {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// An I/O of `nr_bytes` bytes has ended (optional), well or not. `start_time_ns` is when it
    /// started, on the clock of `ktime_get_ns()`, if that is [known](self#start-times).
    fn end_io(&self, _path: &Path<Self>, _nr_bytes: usize, _start_time_ns: Option<u64>) {
        build_error!(VTABLE_DEFAULT_ERROR)
    }
}

/// What one priority group needs of what its selector implements.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Needs {
    /// As [`PathSelector::INFO_ARGS`], for this group.
    pub info_args: u32,
    /// Whether [`PathSelector::start_io`] and [`PathSelector::end_io`] are called. If not, an I/O costs
    /// what it would if there were none, and start times are not taken for their sake.
    pub io: bool,
}

/// Why a path was refused: an error, and its text for the kernel log.
///
/// The text is a constant, as on the C side, and the log line names the mapped device before it.
/// Which word was refused is in the line that [`Args`] logs.
#[derive(Clone, Copy)]
pub struct Refusal {
    error: Error,
    text: &'static CStr,
}

impl Refusal {
    /// `text` goes to the kernel log; it should begin with the selector's name.
    pub const fn new(error: Error, text: &'static CStr) -> Self {
        Self { error, text }
    }
}

/// What is asked for in a status callback. Maps to `status_type_t`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Report {
    /// `dmsetup status`.
    Info,
    /// `dmsetup table`: what creates the same device again.
    Table,
    /// The integrity measurement of a table.
    Ima,
}

/// A path of a priority group, with what the selector keeps for it.
///
/// # Invariants
///
/// - `raw` is the C path with which this one was added, and is valid as long as this one exists.
/// - `index` is its place among the paths of its selector.
/// - The C path's device is open as long as this one exists.
pub struct Path<T: PathSelector> {
    raw: NonNull<bindings::dm_path>,
    index: usize,
    /// Its queue was asked to take start times.
    is_timed: Atomic<bool>,
    data: T::Path,
}

// SAFETY: `raw` is only ever handed back to `dm-multipath`, from any CPU; the rest is `Send`.
unsafe impl<T: PathSelector> Send for Path<T> {}
// SAFETY: The functions on `&Path` read fields that do not change, and `data` is `Sync`.
unsafe impl<T: PathSelector> Sync for Path<T> {}

impl<T: PathSelector> Path<T> {
    /// Its place among the paths of its priority group: 0 for the first one of the table.
    pub fn index(&self) -> usize {
        self.index
    }
}

impl<T: PathSelector> Path<T> {
    /// Asks the path's queue to take the time when a request starts. Any context.
    #[cold]
    fn time_requests(&self) {
        if !self.is_timed.xchg(true, Relaxed) {
            // SAFETY: By the type invariants the path is valid and its device open.
            unsafe { bindings::ferrule_path_time_requests(self.raw.as_ptr(), true) };
        }
    }
}

impl<T: PathSelector> Drop for Path<T> {
    fn drop(&mut self) {
        if self.is_timed.load(Relaxed) {
            // SAFETY: By the type invariants the path is valid and its device open. It was asked to.
            unsafe { bindings::ferrule_path_time_requests(self.raw.as_ptr(), false) };
        }
    }
}

impl<T: PathSelector> Deref for Path<T> {
    type Target = T::Path;

    fn deref(&self) -> &T::Path {
        &self.data
    }
}

/// The device below a path that is being added.
///
/// # Invariants
///
/// It is the device of a valid path, and open for `'a`.
pub struct PathDevice<'a> {
    path: NonNull<bindings::dm_path>,
    _call: PhantomData<&'a ()>,
}

impl PathDevice<'_> {
    /// The NUMA node of what the disk is behind, such as its HBA; [`None`] where that is not known, as
    /// for a disk that comes over a network.
    pub fn node(&self) -> Option<Node> {
        // SAFETY: By the type invariants the path is valid and its device open.
        Node::from_raw(unsafe { bindings::ferrule_path_node(self.path.as_ptr()) })
    }
}

/// The paths of a priority group, in the table's order.
pub struct Paths<'a, T: PathSelector>(&'a [KBox<Path<T>>]);

impl<T: PathSelector> Clone for Paths<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T: PathSelector> Copy for Paths<'_, T> {}

impl<'a, T: PathSelector> Paths<'a, T> {
    /// How many there are, failed ones included.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The path with this [`Path::index`].
    pub fn get(&self, index: usize) -> Option<&'a Path<T>> {
        self.0.get(index).map(|path| &**path)
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &'a Path<T>> {
        self.0.iter().map(|path| &**path)
    }
}

/// What `ps->context` points to. Fields are dropped in this order: the selector before its paths.
///
/// # Invariants
///
/// `registered` is null, or the type as which the selector was registered, in whose place `ps->type`
/// points to `own`.
#[pin_data]
struct Instance<T: PathSelector> {
    #[pin]
    selector: T,
    /// The registered type without what this group does not need. Read by `dm-multipath`.
    #[pin]
    own: Opaque<bindings::path_selector_type>,
    registered: *mut bindings::path_selector_type,
    /// Each in an allocation of its own, as `path->pscontext` points to it.
    paths: KVec<KBox<Path<T>>>,
}

/// The C callbacks of a [`PathSelector`].
struct Adapter<T: PathSelector>(PhantomData<T>);

impl<T: PathSelector> Adapter<T> {
    /// What refused arguments belong to, for the kernel log.
    fn context(part: &'static str) -> Context<'static> {
        Context {
            what: "",
            device: c"multipath",
            name: T::NAME,
            part,
        }
    }

    /// # Safety
    ///
    /// - [`Self::create`] must have succeeded on `ps` and [`Self::destroy`] must not have been
    ///   called since, nor be called before the end of `'a`.
    /// - No [`Self::add_path`] may run on `ps` during `'a`.
    unsafe fn instance<'a>(ps: *mut bindings::path_selector) -> &'a Instance<T> {
        // SAFETY: `create` stored an `Instance<T>` there, `destroy` did not take it back yet, and
        // there is no exclusive reference to it as only `add_path` takes one.
        unsafe { &*(*ps).context.cast::<Instance<T>>() }
    }

    /// # Safety
    ///
    /// [`Self::add_path`] must have succeeded on `path`, and the [`Self::destroy`] of its selector
    /// not be called before the end of `'a`.
    unsafe fn path<'a>(path: *mut bindings::dm_path) -> &'a Path<T> {
        // SAFETY: `add_path` stored a `Path<T>` there, which lives until `destroy` and to which
        // only shared references are made.
        unsafe { &*(*path).pscontext.cast::<Path<T>>() }
    }

    /// # Safety
    ///
    /// Only called by `dm-multipath`, in process context: `ps` is a valid `struct path_selector`
    /// without a selector that nobody else uses yet, `argv` has `argc` NUL-terminated strings.
    unsafe extern "C" fn create(
        ps: *mut bindings::path_selector,
        argc: c_uint,
        argv: *mut *mut c_char,
    ) -> c_int {
        from_result(|| {
            // SAFETY: By this function's requirements; the strings outlive this call.
            let args = unsafe { Args::from_raw(argc, argv, Self::context("")) };
            let instance = KBox::try_pin_init(
                try_pin_init!(Instance::<T> {
                    selector <- T::create(args),
                    own: Opaque::uninit(),
                    registered: core::ptr::null_mut(),
                    paths: KVec::new(),
                }? Error),
                GFP_KERNEL,
            )?;

            // SAFETY: Nothing moves out of the box between here and `destroy`.
            let instance = KBox::into_raw(unsafe { Pin::into_inner_unchecked(instance) });
            // SAFETY: `ps` is valid and ours to set up.
            unsafe { (*ps).context = instance.cast() };
            Ok(0)
        })
    }

    /// # Safety
    ///
    /// Only called by `dm-multipath`, in process context, once for a `ps` on which
    /// [`Self::create`] succeeded, when no other callback runs on it or ever will.
    unsafe extern "C" fn destroy(ps: *mut bindings::path_selector) {
        // SAFETY: `create` made this pointer with `KBox::into_raw`, and this is the only place that
        // takes it back. Nobody else uses the instance any more, and it is dropped in place.
        let instance =
            unsafe { Pin::new_unchecked(KBox::from_raw((*ps).context.cast::<Instance<T>>())) };
        if !instance.registered.is_null() {
            // SAFETY: `ps` is valid. `dm-multipath` still puts the type, which ours is not.
            unsafe { (*ps).type_ = instance.registered };
        }
        drop(instance);
        // SAFETY: `ps` is valid.
        unsafe { (*ps).context = core::ptr::null_mut() };
    }

    /// # Safety
    ///
    /// Only called by `dm-multipath`, in process context, between [`Self::create`] and
    /// [`Self::destroy`], while no other callback runs on `ps`. `path` is a valid `struct dm_path`
    /// whose device is open, and that on success stays so until after `destroy`; `argv` has `argc`
    /// NUL-terminated strings, `error` is valid for writes.
    unsafe extern "C" fn add_path(
        ps: *mut bindings::path_selector,
        path: *mut bindings::dm_path,
        argc: c_int,
        argv: *mut *mut c_char,
        error: *mut *mut c_char,
    ) -> c_int {
        let no_memory = |_| Refusal::new(ENOMEM, c"path selector: no memory for a path");

        // SAFETY: `create` succeeded and no other callback runs, so there is no other reference.
        // The instance is not moved through this one: it is pinned again at once.
        let instance = unsafe { Pin::new_unchecked(&mut *(*ps).context.cast::<Instance<T>>()) };
        let instance = instance.project();
        // SAFETY: By this function's requirements; the strings outlive this call.
        let args = unsafe { Args::from_raw(argc.max(0) as c_uint, argv, Self::context("path: ")) };
        // SAFETY: `path` is valid, so not null.
        let raw = unsafe { NonNull::new_unchecked(path) };
        // INVARIANT: `dm-multipath` has opened the device before.
        let device = PathDevice {
            path: raw,
            _call: PhantomData,
        };
        let (mut selector, paths) = (instance.selector, instance.paths);

        // All room first: what the selector has accepted must be added.
        let added = paths
            .reserve(1, GFP_KERNEL)
            .and_then(|()| KBox::<Path<T>>::new_uninit(GFP_KERNEL))
            .map_err(no_memory)
            .and_then(|room| Ok((room, selector.as_mut().add_path(device, args)?)));

        match added {
            Ok((room, data)) => {
                // INVARIANT: `path` outlives the instance, which is what keeps this `Path`.
                let added = room.write(Path {
                    raw,
                    index: paths.len(),
                    is_timed: Atomic::new(false),
                    data,
                });

                // SAFETY: `path` is valid, and `pscontext` is for the selector to use.
                unsafe { (*path).pscontext = core::ptr::from_ref(&*added).cast_mut().cast() };
                // There is room: see above.
                let _ = paths.push_within_capacity(added);

                let needs = selector.needs();
                // SAFETY: `ps` is valid, and nothing else runs on it.
                unsafe { Self::fit_type(ps, instance.own, instance.registered, needs) };
                0
            }
            Err(refusal) => {
                // SAFETY: `error` is valid for writes. The C side only reads the text.
                unsafe { *error = refusal.text.as_char_ptr().cast_mut() };
                refusal.error.to_errno()
            }
        }
    }

    /// Has `ps->type` say what the group needs. C looks there at each I/O for what to call, and
    /// at each status for the number of words.
    ///
    /// # Safety
    ///
    /// `ps` must be valid and nothing else run on it; `own` and `registered` are its instance's.
    unsafe fn fit_type(
        ps: *mut bindings::path_selector,
        own: Pin<&mut Opaque<bindings::path_selector_type>>,
        registered: &mut *mut bindings::path_selector_type,
        needs: Needs,
    ) {
        let all = Needs {
            info_args: T::INFO_ARGS,
            io: true,
        };
        // SAFETY: `ps` is valid.
        let current = unsafe { (*ps).type_ };
        if registered.is_null() {
            if needs == all || current.is_null() {
                return;
            }
            // INVARIANT: Below, `own` takes its place.
            *registered = current;
        }
        // SAFETY: It is a registered type, which stays as long as this module, which the group holds.
        let mut fitting = unsafe { **registered };
        fitting.info_args = needs.info_args;
        if !needs.io {
            fitting.features &= !bindings::DM_PS_USE_HR_TIMER;
            fitting.start_io = None;
            fitting.end_io = None;
        }
        // SAFETY: `own` is valid for writes, and by the safety requirements nobody reads it now.
        unsafe { own.get().write(fitting) };
        // SAFETY: `ps` is valid. `own` is pinned in the instance, and `destroy` puts back what was there.
        unsafe { (*ps).type_ = own.get() };
    }

    /// # Safety
    ///
    /// Only called by `dm-multipath` after the table is built and before [`Self::destroy`].
    unsafe extern "C" fn select_path(
        ps: *mut bindings::path_selector,
        nr_bytes: usize,
    ) -> *mut bindings::dm_path {
        // SAFETY: By this function's requirements; the reference does not outlive this call.
        let instance = unsafe { Self::instance(ps) };
        match instance
            .selector
            .select_path(Paths(&instance.paths), nr_bytes)
        {
            Some(path) => path.raw.as_ptr(),
            None => core::ptr::null_mut(),
        }
    }

    /// # Safety
    ///
    /// Only called by `dm-multipath` after the table is built and before [`Self::destroy`]. `path`
    /// was added to `ps`.
    unsafe extern "C" fn fail_path(ps: *mut bindings::path_selector, path: *mut bindings::dm_path) {
        // SAFETY: By this function's requirements; the references do not outlive this call.
        unsafe { Self::instance(ps).selector.fail_path(Self::path(path)) };
    }

    /// # Safety
    ///
    /// As [`Self::fail_path`].
    unsafe extern "C" fn reinstate_path(
        ps: *mut bindings::path_selector,
        path: *mut bindings::dm_path,
    ) -> c_int {
        // SAFETY: By this function's requirements; the references do not outlive this call.
        match unsafe { Self::instance(ps).selector.reinstate_path(Self::path(path)) } {
            Ok(()) => 0,
            Err(error) => error.to_errno(),
        }
    }

    /// # Safety
    ///
    /// As [`Self::fail_path`], but `path` may be null. `result` is valid for writes of `maxlen`
    /// bytes.
    unsafe extern "C" fn status(
        ps: *mut bindings::path_selector,
        path: *mut bindings::dm_path,
        kind: bindings::status_type_t,
        result: *mut c_char,
        maxlen: c_uint,
    ) -> c_int {
        let report = match kind {
            bindings::status_type_t_STATUSTYPE_TABLE => Report::Table,
            bindings::status_type_t_STATUSTYPE_IMA => Report::Ima,
            _ => Report::Info,
        };
        // SAFETY: By this function's requirements; the reference does not outlive this call.
        let instance = unsafe { Self::instance(ps) };
        // SAFETY: By this function's requirements.
        let mut out = unsafe { StatusWriter::from_raw(result.cast(), maxlen as usize) };

        if path.is_null() {
            instance.selector.selector_status(report, &mut out);
        } else {
            // SAFETY: By this function's requirements; the reference does not outlive this call.
            let path = unsafe { Self::path(path) };
            instance.selector.path_status(path, report, &mut out);
        }
        out.as_bytes().len() as c_int
    }

    /// # Safety
    ///
    /// As [`Self::fail_path`].
    unsafe extern "C" fn start_io(
        ps: *mut bindings::path_selector,
        path: *mut bindings::dm_path,
        nr_bytes: usize,
    ) -> c_int {
        // SAFETY: By this function's requirements; the references do not outlive this call.
        unsafe {
            Self::instance(ps)
                .selector
                .start_io(Self::path(path), nr_bytes)
        };
        0
    }

    /// # Safety
    ///
    /// As [`Self::fail_path`].
    unsafe extern "C" fn end_io(
        ps: *mut bindings::path_selector,
        path: *mut bindings::dm_path,
        nr_bytes: usize,
        start_time: u64,
    ) -> c_int {
        // SAFETY: By this function's requirements; the references do not outlive this call.
        let (selector, path) = unsafe { (&Self::instance(ps).selector, Self::path(path)) };
        let start_time = (start_time != 0).then_some(start_time);
        if start_time.is_none() {
            path.time_requests();
        }
        selector.end_io(path, nr_bytes, start_time);
        0
    }

    /// The C type with this name. The C side copies it, but for the name.
    const fn type_named(name: &'static CStr) -> bindings::path_selector_type {
        bindings::path_selector_type {
            name: kernel::str::as_char_ptr_in_const_context(name).cast_mut(),
            module: owner!(T),
            features: if T::USE_HR_TIMER {
                bindings::DM_PS_USE_HR_TIMER
            } else {
                0
            },
            table_args: T::TABLE_ARGS,
            info_args: T::INFO_ARGS,
            create: Some(Self::create),
            destroy: Some(Self::destroy),
            add_path: Some(Self::add_path),
            select_path: Some(Self::select_path),
            fail_path: Some(Self::fail_path),
            reinstate_path: Some(Self::reinstate_path),
            status: Some(Self::status),
            start_io: if T::HAS_START_IO {
                Some(Self::start_io)
            } else {
                None
            },
            end_io: if T::HAS_END_IO {
                Some(Self::end_io)
            } else {
                None
            },
        }
    }
}

/// The registration of a [`PathSelector`] under its names, until the module is unloaded.
///
/// # Invariants
///
/// [`PathSelector::NAME`] is registered, and [`PathSelector::ALIAS`] too if `has_alias`; both by
/// `T`'s [`Adapter`]. It is dropped when the module is unloaded.
pub struct Registration<T: PathSelector> {
    has_alias: bool,
    _selector: PhantomData<fn() -> T>,
}

impl<T: PathSelector> Registration<T> {
    /// Registers the selector. [`EBUSY`] when its name is taken; that the alias is taken (or that
    /// there is no memory for it) is not an error, see [`Self::alias`].
    ///
    /// [`module_path_selector!`](crate::module_path_selector) calls this for a module, which nobody
    /// else can: priority groups refer to what `dm_unregister_path_selector()` frees, and all that
    /// keeps it is the reference that each of them has to the module.
    #[doc(hidden)]
    pub fn register(_loading: Loading) -> Result<Self> {
        let mut named = Adapter::<T>::type_named(T::NAME);
        // SAFETY: `named` is a valid path selector type. It is copied; the name is static.
        to_result(unsafe { bindings::dm_register_path_selector(&mut named) })?;

        // From here on nothing may fail: tables may already use the selector.
        let has_alias = T::ALIAS.is_some_and(|alias| {
            let mut named = Adapter::<T>::type_named(alias);
            // SAFETY: As above.
            unsafe { bindings::dm_register_path_selector(&mut named) == 0 }
        });

        // INVARIANT: Both were just registered. The rest is by the invariants of `Loading`.
        Ok(Self {
            has_alias,
            _selector: PhantomData,
        })
    }

    /// The second name, if it could be registered.
    pub fn alias(&self) -> Option<&'static CStr> {
        if self.has_alias {
            T::ALIAS
        } else {
            None
        }
    }
}

impl<T: PathSelector> Drop for Registration<T> {
    fn drop(&mut self) {
        for name in [self.alias(), Some(T::NAME)].into_iter().flatten() {
            let mut named = Adapter::<T>::type_named(name);
            // SAFETY: By the type invariants this name is registered, and by ours; only the name
            // is looked at. No priority group uses it: the module would not be unloaded.
            unsafe { bindings::dm_unregister_path_selector(&mut named) };
        }
    }
}

/// Declares a module that is one path selector.
///
/// Takes what `module!` takes, with the [`PathSelector`] as its `type`. Logs which names were
/// registered.
///
/// [`PathSelector`]: crate::device_mapper::path_selector::PathSelector
#[macro_export]
macro_rules! module_path_selector {
    (type: $selector:ty, $($f:tt)*) => {
        struct PathSelectorModule {
            _registration: $crate::device_mapper::path_selector::Registration<$selector>,
            // Last, to be dropped last.
            _unloading: $crate::module::Unloading,
        }

        impl ::kernel::Module for PathSelectorModule {
            fn init(_module: &'static ::kernel::ThisModule) -> ::kernel::error::Result<Self> {
                use $crate::device_mapper::path_selector::{PathSelector, Registration};

                // SAFETY: This is the `init` of the module, and its first statement. The
                // registration goes into the module's data, and nothing fails after it. `unloading` is
                // the first variable, and so dropped last.
                let (loading, unloading) = unsafe { $crate::module::begin() }?;
                let name = <$selector as PathSelector>::NAME;
                let registration = Registration::<$selector>::register(loading)
                    .inspect_err(|error| {
                        ::kernel::pr_err!("cannot register {}: {:?}\n", name, error)
                    })?;

                match (registration.alias(), <$selector as PathSelector>::ALIAS) {
                    (Some(alias), _) => {
                        ::kernel::pr_info!("registered as {} and {}\n", name, alias)
                    }
                    (None, Some(alias)) => {
                        ::kernel::pr_info!("registered as {} ({} is taken)\n", name, alias)
                    }
                    (None, None) => ::kernel::pr_info!("registered as {}\n", name),
                }
                Ok(Self {
                    _registration: registration,
                    _unloading: unloading,
                })
            }
        }

        ::kernel::prelude::module! {
            type: PathSelectorModule,
            $($f)*
        }
    };
}

#[kunit_tests(ferrule_path_selector)]
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

    static DROPPED: Atomic<i32> = Atomic::new(0);

    /// The example of the module documentation, and something to count when it is dropped.
    struct FirstPath;

    struct State(Atomic<bool>);

    impl Drop for State {
        fn drop(&mut self) {
            DROPPED.store(DROPPED.load(Relaxed) + 1, Relaxed);
        }
    }

    /// The tests are in no module's main crate.
    struct NoModule;

    impl ModuleMetadata for NoModule {
        const NAME: &'static CStr = c"ferrule";
        // SAFETY: As for code that is built in.
        const THIS_MODULE: ThisModule = unsafe { ThisModule::from_ptr(core::ptr::null_mut()) };
    }

    #[vtable]
    impl PathSelector for FirstPath {
        type OwnerModule = NoModule;
        type Path = State;

        const NAME: &'static CStr = c"first-path";
        const TABLE_ARGS: u32 = 1;

        fn create(args: Args<'_>) -> impl PinInit<Self, Error> {
            if args.remaining() == 0 {
                Ok(FirstPath)
            } else {
                Err(EINVAL)
            }
        }

        fn add_path(
            self: Pin<&mut Self>,
            _: PathDevice<'_>,
            mut args: Args<'_>,
        ) -> Result<State, Refusal> {
            match (args.next(), args.remaining()) {
                (Some(word), 0) => Ok(State(Atomic::new(word != c"down"))),
                _ => Err(Refusal::new(ERANGE, c"first-path ps: one argument")),
            }
        }

        fn select_path<'a>(&'a self, paths: Paths<'a, Self>, _: usize) -> Option<&'a Path<Self>> {
            paths.iter().find(|path| path.0.load(Relaxed))
        }

        fn fail_path(&self, path: &Path<Self>) {
            path.0.store(false, Relaxed);
        }

        fn reinstate_path(&self, path: &Path<Self>) -> Result {
            path.0.store(true, Relaxed);
            Ok(())
        }

        fn path_status(&self, path: &Path<Self>, report: Report, out: &mut StatusWriter<'_>) {
            if report == Report::Table {
                write!(out, "{} ", path.index());
            }
        }
    }

    type Callbacks = Adapter<FirstPath>;

    /// What `dm-multipath` does with a priority group.
    struct Group {
        ps: bindings::path_selector,
        paths: KVec<KBox<bindings::dm_path>>,
    }

    impl Group {
        fn new() -> Result<Self> {
            let mut group = Group {
                ps: pin_init::zeroed(),
                paths: KVec::new(),
            };
            // SAFETY: A new `struct path_selector`, no arguments.
            to_result(unsafe { Callbacks::create(&mut group.ps, 0, core::ptr::null_mut()) })?;
            Ok(group)
        }

        /// Adds a path; what `add_path` returned and the text that it left.
        fn add(&mut self, words: &[&'static CStr]) -> Result<(c_int, Option<&'static CStr>)> {
            let mut argv = KVec::new();
            for word in words {
                argv.push(
                    kernel::str::as_char_ptr_in_const_context(word).cast_mut(),
                    GFP_KERNEL,
                )?;
            }
            let mut error = core::ptr::null_mut();
            let mut path = KBox::new(pin_init::zeroed::<bindings::dm_path>(), GFP_KERNEL)?;
            // SAFETY: The group's selector exists and nothing else runs on it. The path is kept in
            // its box until after `destroy`. It has no device, and neither selector asks for that.
            let result = unsafe {
                Callbacks::add_path(
                    &mut self.ps,
                    &mut *path,
                    argv.len() as c_int,
                    argv.as_mut_ptr(),
                    &mut error,
                )
            };
            if result == 0 {
                self.paths.push(path, GFP_KERNEL)?;
            }
            // SAFETY: If not null, the text is static.
            let text = (!error.is_null()).then(|| unsafe { CStr::from_char_ptr(error) });
            Ok((result, text))
        }

        fn selected(&mut self) -> Option<usize> {
            // SAFETY: The group's selector exists.
            let selected = unsafe { Callbacks::select_path(&mut self.ps, 4096) };
            self.paths
                .iter()
                .position(|path| core::ptr::eq(&**path, selected))
        }

        fn fail(&mut self, index: usize) {
            // SAFETY: The group's selector exists, and the path was added to it.
            unsafe { Callbacks::fail_path(&mut self.ps, &mut *self.paths[index]) };
        }

        fn reinstate(&mut self, index: usize) -> c_int {
            // SAFETY: The group's selector exists, and the path was added to it.
            unsafe { Callbacks::reinstate_path(&mut self.ps, &mut *self.paths[index]) }
        }

        /// What `status` returns for a path, or for the selector, and writes into `buffer`.
        fn status(
            &mut self,
            path: Option<usize>,
            kind: bindings::status_type_t,
            buffer: &mut [u8],
        ) -> c_int {
            let path = match path {
                Some(index) => &raw mut *self.paths[index],
                None => core::ptr::null_mut(),
            };
            // SAFETY: The group's selector exists, the path was added to it, and the buffer has
            // this length.
            unsafe {
                Callbacks::status(
                    &mut self.ps,
                    path,
                    kind,
                    buffer.as_mut_ptr().cast(),
                    buffer.len() as c_uint,
                )
            }
        }
    }

    impl Drop for Group {
        fn drop(&mut self) {
            // SAFETY: The selector exists, and nothing runs on it any more.
            unsafe { Callbacks::destroy(&mut self.ps) };
        }
    }

    #[test]
    fn selects_paths_in_service_only() -> Result {
        let mut group = Group::new()?;
        assert_eq!(group.selected(), None);

        for word in [c"down", c"up", c"up"] {
            assert_eq!(group.add(&[word])?.0, 0);
        }
        assert_eq!(group.selected(), Some(1));
        group.fail(1);
        assert_eq!(group.selected(), Some(2));
        group.fail(2);
        assert_eq!(group.selected(), None);
        assert_eq!(group.reinstate(0), 0);
        assert_eq!(group.selected(), Some(0));
        Ok(())
    }

    #[test]
    fn refusal_leaves_its_text_and_adds_nothing() -> Result {
        let mut group = Group::new()?;
        for words in [&[][..], &[c"up", c"up"]] {
            let (result, text) = group.add(words)?;
            assert_eq!(result, ERANGE.to_errno());
            assert!(text == Some(c"first-path ps: one argument"));
        }
        assert_eq!(group.selected(), None);

        assert_eq!(group.add(&[c"up"])?.0, 0);
        assert_eq!(group.selected(), Some(0));
        Ok(())
    }

    #[test]
    fn refused_selector_arguments_leave_nothing() {
        let mut ps: bindings::path_selector = pin_init::zeroed();
        let mut argv = [kernel::str::as_char_ptr_in_const_context(c"1").cast_mut()];
        // SAFETY: A new `struct path_selector`, one argument.
        let result = unsafe { Callbacks::create(&mut ps, 1, argv.as_mut_ptr()) };
        assert_eq!(result, EINVAL.to_errno());
        assert!(ps.context.is_null());
    }

    #[test]
    fn drop_takes_the_paths_with_it() -> Result {
        let before = DROPPED.load(Relaxed);
        let mut group = Group::new()?;
        for _ in 0..3 {
            assert_eq!(group.add(&[c"up"])?.0, 0);
        }
        assert_eq!(DROPPED.load(Relaxed), before);
        drop(group);
        assert_eq!(DROPPED.load(Relaxed), before + 3);
        Ok(())
    }

    #[test]
    fn status_is_words_and_spaces() -> Result {
        let mut group = Group::new()?;
        let mut buffer = [b'x'; 8];
        assert_eq!(group.add(&[c"up"])?.0, 0);
        assert_eq!(group.add(&[c"up"])?.0, 0);

        let table = bindings::status_type_t_STATUSTYPE_TABLE;
        assert_eq!(group.status(None, table, &mut buffer), 2);
        assert!(buffer.starts_with(b"0 \0x"));
        assert_eq!(group.status(Some(1), table, &mut buffer), 2);
        assert!(buffer.starts_with(b"1 \0x"));

        let info = bindings::status_type_t_STATUSTYPE_INFO;
        assert_eq!(group.status(Some(1), info, &mut buffer), 0);
        assert!(buffer.starts_with(b"\0"));
        Ok(())
    }

    #[test]
    fn status_fills_a_buffer_that_is_too_small() -> Result {
        let mut group = Group::new()?;
        for _ in 0..11 {
            assert_eq!(group.add(&[c"up"])?.0, 0);
        }

        // "10 ": full to the last byte but one, which is how device mapper notices.
        let table = bindings::status_type_t_STATUSTYPE_TABLE;
        for size in 0..6 {
            let mut buffer = [b'x'; 6];
            let written = group.status(Some(10), table, &mut buffer[..size]) as usize;
            assert_eq!(written, size.saturating_sub(1).min(3));
            assert!(buffer.starts_with(&b"10 "[..written]));
            assert!(size == 0 || buffer[written] == 0);
            assert!(buffer[size..].iter().all(|&byte| byte == b'x'));
        }
        Ok(())
    }

    /// Told of its I/Os if its first path has an argument.
    struct Choosy(bool);

    #[vtable]
    impl PathSelector for Choosy {
        type OwnerModule = NoModule;
        type Path = ();

        const NAME: &'static CStr = c"choosy";
        const INFO_ARGS: u32 = 2;
        const USE_HR_TIMER: bool = true;

        fn create(_args: Args<'_>) -> impl PinInit<Self, Error> {
            Ok(Choosy(false))
        }

        fn needs(&self) -> Needs {
            Needs {
                info_args: if self.0 { 2 } else { 1 },
                io: self.0,
            }
        }

        fn add_path(
            self: Pin<&mut Self>,
            _: PathDevice<'_>,
            args: Args<'_>,
        ) -> Result<(), Refusal> {
            self.get_mut().0 = args.remaining() > 0;
            Ok(())
        }

        fn select_path<'a>(&'a self, paths: Paths<'a, Self>, _: usize) -> Option<&'a Path<Self>> {
            paths.get(0)
        }

        fn fail_path(&self, _path: &Path<Self>) {}

        fn reinstate_path(&self, _path: &Path<Self>) -> Result {
            Ok(())
        }

        fn end_io(&self, _path: &Path<Self>, _nr_bytes: usize, _start_time_ns: Option<u64>) {}
    }

    #[test]
    fn a_group_has_the_type_that_it_needs() -> Result {
        type Callbacks = Adapter<Choosy>;
        let mut registered = Callbacks::type_named(c"another name");
        let registered = &raw mut registered;
        let mut ps: bindings::path_selector = pin_init::zeroed();
        let mut path = KBox::new(pin_init::zeroed::<bindings::dm_path>(), GFP_KERNEL)?;
        let mut argv = [kernel::str::as_char_ptr_in_const_context(c"1").cast_mut()];
        let mut error = core::ptr::null_mut();
        let mut types = [pin_init::zeroed::<bindings::path_selector_type>(); 3];

        // SAFETY: As `dm-multipath` does, with a path that is kept until after `destroy`. The types are
        // valid until then.
        unsafe {
            to_result(Callbacks::create(&mut ps, 0, core::ptr::null_mut()))?;
            ps.type_ = registered;
            for (argc, seen) in [1, 0, 1].into_iter().zip(&mut types) {
                let added =
                    Callbacks::add_path(&mut ps, &mut *path, argc, argv.as_mut_ptr(), &mut error);
                assert_eq!(added, 0);
                *seen = *ps.type_;
            }
            Callbacks::destroy(&mut ps);
        }
        assert!(core::ptr::eq(ps.type_, registered));
        for (seen, is_told) in types.iter().zip([true, false, true]) {
            assert_eq!(seen.end_io.is_some(), is_told);
            assert_eq!(
                seen.features,
                if is_told {
                    bindings::DM_PS_USE_HR_TIMER
                } else {
                    0
                }
            );
            assert_eq!(seen.info_args, if is_told { 2 } else { 1 });
            // SAFETY: The registered type is still there.
            assert!(core::ptr::eq(seen.name, unsafe { (*registered).name }));
        }
        Ok(())
    }

    #[test]
    fn callbacks_that_are_not_overridden_are_null() {
        let named = Callbacks::type_named(c"name");
        assert!(named.start_io.is_none() && named.end_io.is_none());
        assert_eq!(named.table_args, 1);
        assert_eq!(named.info_args, 0);
    }
}
