// SPDX-License-Identifier: GPL-2.0-only
//! Zeroed, aligned byte buffers: [`Buf`] is what travels to and from a device.

use super::NoMemory;
use alloc::alloc::{alloc_zeroed, dealloc};
use core::alloc::Layout;
use core::ops::{Deref, DerefMut};
use core::ptr::NonNull;

/// Bytes aligned to `ALIGN`. Dereferences to `[u8]`.
pub struct Aligned<const ALIGN: usize> {
    ptr: NonNull<u8>,
    len: usize,
}

/// Bytes aligned to a block, so that drivers can use direct I/O.
pub type Buf = Aligned<4096>;

// SAFETY: it owns its memory alone, like a `Box<[u8]>`.
unsafe impl<const ALIGN: usize> Send for Aligned<ALIGN> {}
// SAFETY: shared access only reads.
unsafe impl<const ALIGN: usize> Sync for Aligned<ALIGN> {}

impl<const ALIGN: usize> Aligned<ALIGN> {
    /// A buffer without memory.
    pub const fn empty() -> Self {
        Aligned { ptr: NonNull::dangling(), len: 0 }
    }

    /// `len` zero bytes.
    pub fn zeroed(len: usize) -> Result<Self, NoMemory> {
        if len == 0 {
            return Ok(Aligned::empty());
        }
        let layout = Layout::from_size_align(len, ALIGN).map_err(|_| NoMemory)?;
        // SAFETY: the layout has a size above zero.
        let ptr = NonNull::new(unsafe { alloc_zeroed(layout) }).ok_or(NoMemory)?;
        Ok(Aligned { ptr, len })
    }
}

impl Buf {
    /// A copy of `bytes`, zero-padded to a multiple of 4096.
    pub fn padded(bytes: &[u8]) -> Result<Buf, NoMemory> {
        let len = bytes.len().checked_next_multiple_of(4096).ok_or(NoMemory)?;
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

impl<const ALIGN: usize> Drop for Aligned<ALIGN> {
    fn drop(&mut self) {
        if self.len != 0 {
            if let Ok(layout) = Layout::from_size_align(self.len, ALIGN) {
                // SAFETY: allocated in `zeroed` with this layout, freed once.
                unsafe { dealloc(self.ptr.as_ptr(), layout) };
            }
        }
    }
}

impl<const ALIGN: usize> Deref for Aligned<ALIGN> {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: `len` initialised bytes that this value owns (dangling but aligned if 0).
        unsafe { core::slice::from_raw_parts(self.ptr.as_ptr(), self.len) }
    }
}

impl<const ALIGN: usize> DerefMut for Aligned<ALIGN> {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and the borrow is exclusive.
        unsafe { core::slice::from_raw_parts_mut(self.ptr.as_ptr(), self.len) }
    }
}

impl<const ALIGN: usize> core::fmt::Debug for Aligned<ALIGN> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "Buf({} bytes)", self.len)
    }
}

impl<const ALIGN: usize> Default for Aligned<ALIGN> {
    fn default() -> Self {
        Aligned::empty()
    }
}
