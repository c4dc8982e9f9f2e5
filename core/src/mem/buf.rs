// SPDX-License-Identifier: GPL-2.0-only
//! A zeroed, block-aligned byte buffer: what travels to and from a device.

use super::NoMemory;
use alloc::alloc::{alloc_zeroed, dealloc};
use core::alloc::Layout;
use core::ops::{Deref, DerefMut};
use core::ptr::NonNull;

/// Bytes aligned to 4096, so that drivers can use direct I/O. Dereferences to `[u8]`.
pub struct Buf {
    ptr: NonNull<u8>,
    len: usize,
}

// SAFETY: a `Buf` owns its memory alone, like a `Box<[u8]>`.
unsafe impl Send for Buf {}
// SAFETY: shared access only reads.
unsafe impl Sync for Buf {}

const ALIGN: usize = 4096;

impl Buf {
    /// A buffer without memory.
    pub const fn empty() -> Buf {
        Buf { ptr: NonNull::dangling(), len: 0 }
    }

    /// `len` zero bytes.
    pub fn zeroed(len: usize) -> Result<Buf, NoMemory> {
        if len == 0 {
            return Ok(Buf::empty());
        }
        let layout = Layout::from_size_align(len, ALIGN).map_err(|_| NoMemory)?;
        // SAFETY: the layout has a size above zero.
        let ptr = NonNull::new(unsafe { alloc_zeroed(layout) }).ok_or(NoMemory)?;
        Ok(Buf { ptr, len })
    }

    /// A copy of `bytes`, zero-padded to a multiple of 4096.
    pub fn padded(bytes: &[u8]) -> Result<Buf, NoMemory> {
        let len = bytes.len().checked_next_multiple_of(ALIGN).ok_or(NoMemory)?;
        let mut b = Buf::zeroed(len)?;
        if let Some(head) = b.get_mut(..bytes.len()) {
            head.copy_from_slice(bytes);
        }
        Ok(b)
    }

    /// A copy of this buffer.
    pub fn copy(&self) -> Result<Buf, NoMemory> {
        Buf::padded(self)
    }
}

impl Drop for Buf {
    fn drop(&mut self) {
        if self.len != 0 {
            if let Ok(layout) = Layout::from_size_align(self.len, ALIGN) {
                // SAFETY: allocated in `zeroed` with this layout, freed once.
                unsafe { dealloc(self.ptr.as_ptr(), layout) };
            }
        }
    }
}

impl Deref for Buf {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: `len` initialised bytes that this value owns (dangling but aligned if 0).
        unsafe { core::slice::from_raw_parts(self.ptr.as_ptr(), self.len) }
    }
}

impl DerefMut for Buf {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and the borrow is exclusive.
        unsafe { core::slice::from_raw_parts_mut(self.ptr.as_ptr(), self.len) }
    }
}

impl core::fmt::Debug for Buf {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "Buf({} bytes)", self.len)
    }
}

impl Default for Buf {
    fn default() -> Buf {
        Buf::empty()
    }
}
