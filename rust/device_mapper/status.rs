// SPDX-License-Identifier: GPL-2.0

//! Writing status into the buffer that device mapper provides.
//!
//! | here | C |
//! | --- | --- |
//! | `write!(status, ...)`, [`StatusWriter::write_fmt`] | `DMEMIT(...)` |
//!
//! As with `DMEMIT`, what does not fit is cut off, and a full buffer is how device mapper finds out
//! that it has to offer a larger one; other than with `DMEMIT` there is no `sz` and `maxlen` to
//! get wrong.

use core::{
    fmt,
    marker::PhantomData, //
};

/// A writer into a buffer of device mapper's. What is written is NUL-terminated at all times.
///
/// Writing never fails: what does not fit is cut off.
///
/// # Invariants
///
/// - `buffer` is valid for writes of `size` bytes for `'a`, and nobody else accesses it.
/// - `length < size` unless `size` is 0; the bytes before `length` are not NUL, the one at `length`
///   is.
pub struct StatusWriter<'a> {
    buffer: *mut u8,
    size: usize,
    length: usize,
    _buffer: PhantomData<&'a mut [u8]>,
}

impl<'a> StatusWriter<'a> {
    /// A writer into `size` bytes at `buffer`.
    ///
    /// # Safety
    ///
    /// `buffer` must be valid for writes of `size` bytes for `'a`, and nobody else may access it.
    pub(crate) unsafe fn from_raw(buffer: *mut u8, size: usize) -> Self {
        if size != 0 {
            // SAFETY: By the safety requirements.
            unsafe { buffer.write(0) };
        }
        // INVARIANT: By the safety requirements; it is empty and terminated.
        Self {
            buffer,
            size,
            length: 0,
            _buffer: PhantomData,
        }
    }

    /// A writer into `buffer`.
    pub fn new(buffer: &'a mut [u8]) -> Self {
        // SAFETY: The slice is borrowed for `'a`.
        unsafe { Self::from_raw(buffer.as_mut_ptr(), buffer.len()) }
    }

    /// Was nothing written yet?
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Formats into the buffer. What `write!` calls; it returns nothing that would have to be looked
    /// at.
    pub fn write_fmt(&mut self, args: fmt::Arguments<'_>) {
        // The only error is that of a formatted value, which has none here.
        let _ = fmt::Write::write_fmt(self, args);
    }

    /// What was written.
    pub fn as_bytes(&self) -> &[u8] {
        if self.length == 0 {
            return &[];
        }
        // SAFETY: By the type invariants; these bytes were written.
        unsafe { core::slice::from_raw_parts(self.buffer, self.length) }
    }
}

impl fmt::Write for StatusWriter<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            if self.length + 1 >= self.size {
                break;
            }
            // A NUL would end the status early.
            let byte = if byte == 0 { b'?' } else { byte };
            // SAFETY: By the type invariants and the check above `length + 1 < size`.
            unsafe {
                self.buffer.add(self.length).write(byte);
                self.buffer.add(self.length + 1).write(0);
            }
            // INVARIANT: Still below `size`, and the byte there is NUL.
            self.length += 1;
        }
        Ok(())
    }
}

#[kernel::macros::kunit_tests(ferrule_dm_status)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_is_cut_off() {
        let mut buffer = [0xff; 8];
        let mut out = StatusWriter::new(&mut buffer[..6]);
        assert!(out.is_empty());
        write!(out, "{}", 12);
        write!(out, "{}", 345_678);
        assert_eq!(out.as_bytes(), b"12345");
        // Terminated, and nothing behind.
        assert_eq!(buffer, *b"12345\0\xff\xff");
    }

    #[test]
    fn an_empty_buffer_takes_nothing() {
        let mut out = StatusWriter::new(&mut []);
        write!(out, "a");
        assert!(out.is_empty());
    }

    #[test]
    fn a_nul_does_not_end_it() {
        let mut buffer = [0; 8];
        let mut out = StatusWriter::new(&mut buffer);
        write!(out, "a\0b");
        assert_eq!(out.as_bytes(), b"a?b");
    }
}
