// SPDX-License-Identifier: GPL-2.0-only
//! A box whose allocation may fail; keeps large values out of stack frames.

use super::NoMemory;
use alloc::alloc::{alloc, dealloc};
use core::alloc::Layout;
use core::ops::{Deref, DerefMut};
use core::ptr::NonNull;

/// A value on the heap, owned.
pub struct Box<T> {
    ptr: NonNull<T>,
}

// SAFETY: a `Box` owns its value alone, so it may move where the value may.
unsafe impl<T: Send> Send for Box<T> {}
// SAFETY: shared access to the box is shared access to the value.
unsafe impl<T: Sync> Sync for Box<T> {}

impl<T> Box<T> {
    /// Moves `value` to the heap.
    #[inline]
    pub fn try_new(value: T) -> Result<Box<T>, NoMemory> {
        let layout = Layout::new::<T>();
        if layout.size() == 0 {
            return Err(NoMemory);
        }
        // SAFETY: the layout has a size above zero.
        let ptr = NonNull::new(unsafe { alloc(layout) }.cast::<T>()).ok_or(NoMemory)?;
        // SAFETY: freshly allocated for a `T`, aligned, not shared.
        unsafe { ptr.as_ptr().write(value) };
        Ok(Box { ptr })
    }

    /// Gives the value up to whoever has the pointer; [`Box::from_raw`] takes it back. For drivers that hand
    /// it to the system they run in.
    pub fn into_raw(this: Box<T>) -> NonNull<T> {
        let ptr = this.ptr;
        core::mem::forget(this);
        ptr
    }

    /// Owns the value again.
    ///
    /// # Safety
    /// `ptr` came from [`Box::into_raw`] and is owned by nobody.
    pub unsafe fn from_raw(ptr: NonNull<T>) -> Box<T> {
        Box { ptr }
    }
}

impl<T> Drop for Box<T> {
    fn drop(&mut self) {
        // SAFETY: the value was written in `try_new`; it is dropped and freed once, with its own layout.
        unsafe {
            self.ptr.as_ptr().drop_in_place();
            dealloc(self.ptr.as_ptr().cast::<u8>(), Layout::new::<T>());
        }
    }
}

impl<T> Deref for Box<T> {
    type Target = T;
    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: points to an initialised value that this box owns.
        unsafe { self.ptr.as_ref() }
    }
}

impl<T> DerefMut for Box<T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as in `deref`, and the borrow is exclusive.
        unsafe { self.ptr.as_mut() }
    }
}

impl<T: core::fmt::Debug> core::fmt::Debug for Box<T> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        (**self).fmt(f)
    }
}
