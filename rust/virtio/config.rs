// SPDX-License-Identifier: GPL-2.0

//! The configuration space of a device, and what is negotiated with it.
//!
//! C header: `include/linux/virtio_config.h`

use super::Link;
use crate::bindings;
use core::{
    marker::PhantomData,
    mem::{
        self,
        offset_of, //
    }, //
};
use kernel::{
    ffi,
    prelude::*,
    sync::Arc, //
};

mod private {
    pub trait Sealed {}
    impl Sealed for u8 {}
    impl Sealed for u16 {}
    impl Sealed for u32 {}
    impl Sealed for u64 {}
}

/// An integer of the configuration space, little-endian there.
pub trait LittleEndian: Copy + Default + private::Sealed {
    /// From the device's byte order to the processor's.
    fn from_le(value: Self) -> Self;
    /// From the processor's byte order to the device's.
    fn to_le(self) -> Self;
}

macro_rules! impl_little_endian {
    ($($t:ty)*) => {
        $(impl LittleEndian for $t {
            fn from_le(value: Self) -> Self {
                <$t>::from_le(value)
            }
            fn to_le(self) -> Self {
                <$t>::to_le(self)
            }
        })*
    };
}
impl_little_endian!(u8 u16 u32 u64);

/// What is in the configuration space of a type of device. There is one for each type that Ferrule has
/// a driver for, made from the kernel's own structure of it.
///
/// # Safety
///
/// The configuration space of each device with the ID [`DEVICE`](Self::DEVICE) has every
/// [`Field`] of this type that there is: those without a feature always, the others when that was
/// negotiated.
pub unsafe trait Layout: 'static {
    /// The virtio device ID.
    const DEVICE: u32;
}

/// A field of the configuration space of a type of device: where it is, what type it has, and with which
/// feature it is there.
///
/// The constants of a [`Layout`], such as [`BalloonConfig`], are all that there are. In C any offset can
/// be read, whether or not there is anything behind it.
///
/// # Invariants
///
/// `L` has a field of type `T` at `offset`, in bytes, if `feature` is [`None`] or was negotiated.
pub struct Field<L, T> {
    offset: u32,
    feature: Option<u32>,
    _type: PhantomData<fn(L) -> T>,
}

impl<L, T> Clone for Field<L, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<L, T> Copy for Field<L, T> {}

/// How large a field of a structure is.
const fn width<S, F>(_field: fn(&S) -> &F) -> usize {
    mem::size_of::<F>()
}

/// Declares a [`Layout`] after a structure of C: each field by its name there, the feature that it
/// depends on in brackets.
macro_rules! layout {
    (
        $(#[$meta:meta])*
        $name:ident = $device:ident, $raw:ident {
            $(
                $(#[$field_meta:meta])*
                $field:ident: $type:ty = $raw_field:ident $([$feature:ident])?,
            )*
        }
    ) => {
        $(#[$meta])*
        pub enum $name {}

        $(
            kernel::static_assert!(
                width(|config: &bindings::$raw| &config.$raw_field) == mem::size_of::<$type>()
            );
        )*

        impl $name {
            $(
                $(#[$field_meta])*
                // INVARIANT: It is a field of the C structure.
                pub const $field: Field<Self, $type> = Field {
                    offset: offset_of!(bindings::$raw, $raw_field) as u32,
                    feature: layout!(@feature $($feature)?),
                    _type: PhantomData,
                };
            )*
        }

        // SAFETY: Every device with this ID has the configuration space that the C structure
        // describes, up to the last field whose feature it has.
        unsafe impl Layout for $name {
            const DEVICE: u32 = bindings::$device;
        }
    };
    (@feature) => { None };
    (@feature $feature:ident) => { Some(bindings::$feature) };
}

layout! {
    /// That of a memory balloon (`struct virtio_balloon_config`).
    BalloonConfig = VIRTIO_ID_BALLOON, virtio_balloon_config {
        /// How many units of 4 KiB the host wants in the balloon.
        NUM_PAGES: u32 = num_pages,
        /// How many units are in the balloon.
        ACTUAL: u32 = actual,
        /// Whether the host wants to hear of free memory, and in answer to what.
        FREE_PAGE_HINT_CMD_ID: u32 = __bindgen_anon_1 [VIRTIO_BALLOON_F_FREE_PAGE_HINT],
        /// What free memory is filled with, and has to be when it comes back from the host.
        POISON_VAL: u32 = poison_val [VIRTIO_BALLOON_F_PAGE_POISON],
    }
}

/// Access to the configuration space of a device. Process context only: it may sleep.
///
/// It may be kept for as long as one likes: once the device is unbound, everything returns
/// [`ENODEV`].
///
/// # Invariants
///
/// `link` is that of a device with the ID [`Layout::DEVICE`].
pub struct Config<L> {
    link: Arc<Link>,
    _layout: PhantomData<fn(L)>,
}

impl<L> Clone for Config<L> {
    fn clone(&self) -> Self {
        Self {
            link: self.link.clone(),
            _layout: PhantomData,
        }
    }
}

impl<L: Layout> Config<L> {
    /// The configuration space of the device with this ID and link. [`None`] if it is laid out otherwise.
    pub(super) fn new(id: u32, link: Arc<Link>) -> Option<Self> {
        // INVARIANT: It has this ID.
        (id == L::DEVICE).then_some(Self {
            link,
            _layout: PhantomData,
        })
    }

    /// Calls a function with the device, and the offset of a field that it has.
    fn with_field<T>(
        &self,
        field: Field<L, T>,
        f: impl FnOnce(*mut bindings::virtio_device, u32) -> ffi::c_int,
    ) -> Result {
        self.link.with_device(|vdev| {
            if let Some(feature) = field.feature {
                // SAFETY: `vdev` is valid and bound, so its features are settled.
                if !unsafe { bindings::ferrule_virtio_test_bit(vdev, feature) } {
                    return Err(ENOENT);
                }
            }
            kernel::error::to_result(f(vdev, field.offset))
        })
    }

    /// Reads a field. What comes is what the device says: do not trust it.
    ///
    /// One of eight bytes, which takes two reads, is read again while the device's configuration
    /// generation changes.
    ///
    /// # Errors
    ///
    /// [`ENODEV`] when the device is unbound, [`ENOENT`] when the field's feature was not negotiated,
    /// [`EINVAL`] when the device has no configuration space.
    pub fn read<T: LittleEndian>(&self, field: Field<L, T>) -> Result<T> {
        let mut value = T::default();
        self.with_field(field, |vdev, offset| {
            // SAFETY: `vdev` is valid and bound, and `value` has room for the field. By the invariants of
            // `Config` and `Field` the device has it.
            unsafe {
                bindings::ferrule_virtio_cread(
                    vdev,
                    offset,
                    (&raw mut value).cast(),
                    mem::size_of::<T>() as ffi::c_uint,
                )
            }
        })?;
        Ok(T::from_le(value))
    }

    /// Writes a field.
    ///
    /// # Errors
    ///
    /// Those of [`read`](Self::read).
    pub fn write<T: LittleEndian>(&self, field: Field<L, T>, value: T) -> Result {
        let value = value.to_le();
        self.with_field(field, |vdev, offset| {
            // SAFETY: `vdev` is valid and bound, and `value` is as large as the field. By the invariants
            // of `Config` and `Field` the device has it.
            unsafe {
                bindings::ferrule_virtio_cwrite(
                    vdev,
                    offset,
                    (&raw const value).cast(),
                    mem::size_of::<T>() as ffi::c_uint,
                )
            }
        })
    }
}

/// The byte order of what goes through the queues: little-endian, but for legacy devices, which use
/// the guest's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ByteOrder {
    /// Little-endian.
    Little,
    /// The processor's.
    Native,
}

impl ByteOrder {
    /// As the device has it (`cpu_to_virtio16`).
    pub fn u16(self, value: u16) -> [u8; 2] {
        match self {
            Self::Little => value.to_le_bytes(),
            Self::Native => value.to_ne_bytes(),
        }
    }

    /// As the device has it (`cpu_to_virtio32`).
    pub fn u32(self, value: u32) -> [u8; 4] {
        match self {
            Self::Little => value.to_le_bytes(),
            Self::Native => value.to_ne_bytes(),
        }
    }

    /// As the device has it (`cpu_to_virtio64`).
    pub fn u64(self, value: u64) -> [u8; 8] {
        match self {
            Self::Little => value.to_le_bytes(),
            Self::Native => value.to_ne_bytes(),
        }
    }
}

/// The features that a driver knows: an enumeration of them, made by
/// [`virtio_features!`](crate::virtio_features).
pub trait Feature: Copy + 'static {
    /// The bits that the driver asks for.
    const TABLE: &'static [u32];

    /// The bit.
    fn bit(self) -> u32;
}

/// Declares the features that a driver asks a device for.
///
/// ```ignore
/// virtio_features! {
///     /// What we can do.
///     pub enum Feature {
///         /// The host has to be told before a page is used again.
///         MustTellHost = 0,
///         /// There is a queue for statistics.
///         Stats = 1,
///     }
/// }
/// ```
#[macro_export]
macro_rules! virtio_features {
    (
        $(#[$meta:meta])*
        $vis:vis enum $name:ident {
            $($(#[$variant_meta:meta])* $variant:ident = $bit:expr,)*
        }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        #[repr(u32)]
        $vis enum $name {
            $($(#[$variant_meta])* $variant = $bit,)*
        }

        $crate::__impl_virtio_feature!($name, [$($variant),*]);
    };
}
pub use virtio_features;

#[doc(hidden)]
#[macro_export]
macro_rules! __impl_virtio_feature {
    ($name:ident, [$($variant:ident),*]) => {
        impl $crate::virtio::Feature for $name {
            const TABLE: &'static [u32] = &[$($name::$variant as u32),*];

            fn bit(self) -> u32 {
                self as u32
            }
        }
    };
}

/// The features that a driver and its device agreed upon.
#[derive(Clone, Copy)]
pub struct Features<F> {
    bits: u128,
    _feature: PhantomData<fn(F)>,
}

impl<F: Feature> Features<F> {
    pub(super) fn new(bits: u128) -> Self {
        Self {
            bits,
            _feature: PhantomData,
        }
    }

    /// Whether a feature was negotiated.
    pub fn has(&self, feature: F) -> bool {
        self.bits.checked_shr(feature.bit()).unwrap_or(0) & 1 != 0
    }
}

/// A feature of the transport, which the virtio core negotiates by itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum TransportFeature {
    /// Buffers of more than one part take one entry of the queue, for which memory is allocated
    /// (`VIRTIO_RING_F_INDIRECT_DESC`).
    IndirectDescriptors = 28,
    /// The device uses DMA addresses and not the guest's physical ones
    /// (`VIRTIO_F_ACCESS_PLATFORM`).
    AccessPlatform = bindings::VIRTIO_F_ACCESS_PLATFORM,
}

#[kernel::macros::kunit_tests(ferrule_virtio_config)]
mod tests {
    use super::*;

    virtio_features! {
        enum Some {
            First = 0,
            Fifth = 5,
            Last = 127,
        }
    }

    #[test]
    fn the_table_has_the_features() {
        assert_eq!(Some::TABLE, [0, 5, 127]);
    }

    #[test]
    fn only_negotiated_features_are_there() {
        let features = Features::new(1 << 5 | 1 << 127);
        assert!(!features.has(Some::First));
        assert!(features.has(Some::Fifth));
        assert!(features.has(Some::Last));
    }

    #[test]
    fn fields_are_where_the_specification_has_them() {
        let fields = [
            BalloonConfig::NUM_PAGES,
            BalloonConfig::ACTUAL,
            BalloonConfig::FREE_PAGE_HINT_CMD_ID,
            BalloonConfig::POISON_VAL,
        ];
        assert_eq!(fields.map(|field| field.offset), [0, 4, 8, 12]);
        assert_eq!(
            fields.map(|field| field.feature),
            [None, None, Some(3), Some(4)]
        );
    }

    #[test]
    fn fields_are_little_endian() {
        assert_eq!(0x1234u16.to_le().to_ne_bytes(), [0x34, 0x12]);
        assert_eq!(
            <u32 as LittleEndian>::from_le(u32::from_ne_bytes([1, 2, 3, 4])),
            0x0403_0201
        );
        assert_eq!(ByteOrder::Little.u64(1), [1, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(ByteOrder::Native.u32(7), 7u32.to_ne_bytes());
    }
}
