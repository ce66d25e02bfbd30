// SPDX-License-Identifier: GPL-2.0

//! The configuration space of a device, and what is negotiated with it.
//!
//! C header: `include/linux/virtio_config.h`

use super::Link;
use crate::bindings;
use core::{
    marker::PhantomData,
    mem, //
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

/// A field of the configuration space: where it is, in bytes, and its type.
#[derive(Clone, Copy, Debug)]
pub struct Field<T> {
    offset: u32,
    _type: PhantomData<T>,
}

impl<T: LittleEndian> Field<T> {
    /// The field at an offset in bytes.
    pub const fn new(offset: u32) -> Self {
        Self {
            offset,
            _type: PhantomData,
        }
    }
}

/// Access to the configuration space of a device. Process context only: it may sleep.
///
/// It may be kept for as long as one likes: once the device is unbound, everything returns
/// [`ENODEV`].
#[derive(Clone)]
pub struct Config {
    link: Arc<Link>,
}

impl Config {
    pub(super) fn new(link: Arc<Link>) -> Self {
        Self { link }
    }

    /// Reads a field. What comes is what the device says: do not trust it.
    ///
    /// One of eight bytes, which takes two reads, is read again while the device's configuration
    /// generation changes.
    ///
    /// # Errors
    ///
    /// [`ENODEV`] when the device is unbound, [`EINVAL`] when it has no configuration space.
    pub fn read<T: LittleEndian>(&self, field: Field<T>) -> Result<T> {
        let mut value = T::default();
        self.link.with_device(|vdev| {
            // SAFETY: `vdev` is valid and bound, and `value` has room for the field.
            kernel::error::to_result(unsafe {
                bindings::ferrule_virtio_cread(
                    vdev,
                    field.offset,
                    (&raw mut value).cast(),
                    mem::size_of::<T>() as ffi::c_uint,
                )
            })
        })?;
        Ok(T::from_le(value))
    }

    /// Writes a field.
    ///
    /// # Errors
    ///
    /// Those of [`read`](Self::read).
    pub fn write<T: LittleEndian>(&self, field: Field<T>, value: T) -> Result {
        let value = value.to_le();
        self.link.with_device(|vdev| {
            // SAFETY: `vdev` is valid and bound, and `value` is as large as the field.
            kernel::error::to_result(unsafe {
                bindings::ferrule_virtio_cwrite(
                    vdev,
                    field.offset,
                    (&raw const value).cast(),
                    mem::size_of::<T>() as ffi::c_uint,
                )
            })
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
