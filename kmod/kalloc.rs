// SPDX-License-Identifier: GPL-2.0-only
//! The allocator of all crates in the module: kvmalloc and kvfree. Owns the count of bytes that are out, which
//! must be zero when the module is unloaded. A failed allocation is a null pointer and no message.
#![no_std]
#![feature(rustc_attrs)]
#![allow(internal_features)]

use core::alloc::{GlobalAlloc, Layout};
use core::sync::atomic::{AtomicUsize, Ordering};

extern "C" {
    fn vexfs_alloc(size: usize, zero: bool) -> *mut u8;
    fn vexfs_free(p: *const u8);
}

struct Kernel;

static OUT: AtomicUsize = AtomicUsize::new(0);

/// What every kmalloc gives.
const SMALL_ALIGN: usize = 8;
/// Larger blocks come as whole pages.
const PAGES_FROM: usize = 8192;
const PAGE: usize = 4096;

/// The size to ask for, so that the block is aligned: kmalloc aligns sizes that are powers of two to themselves.
fn size_for(l: Layout) -> Option<usize> {
    let size = l.size();
    if l.align() <= SMALL_ALIGN || (size > PAGES_FROM && l.align() <= PAGE) {
        return Some(size);
    }
    if l.align() > PAGE {
        return None;
    }
    size.max(l.align()).checked_next_power_of_two()
}

fn get(l: Layout, zero: bool) -> *mut u8 {
    let Some(size) = size_for(l) else { return core::ptr::null_mut() };
    // SAFETY: kvmalloc may be called in any context that may sleep; the module allocates in no other.
    let p = unsafe { vexfs_alloc(size, zero) };
    if !p.is_null() {
        OUT.fetch_add(l.size(), Ordering::Relaxed);
    }
    p
}

// SAFETY: kvmalloc returns null or a block of at least the size that was asked for, aligned as `size_for` says;
// kvfree frees it once.
unsafe impl GlobalAlloc for Kernel {
    unsafe fn alloc(&self, l: Layout) -> *mut u8 {
        get(l, false)
    }
    unsafe fn alloc_zeroed(&self, l: Layout) -> *mut u8 {
        get(l, true)
    }
    unsafe fn dealloc(&self, p: *mut u8, l: Layout) {
        OUT.fetch_sub(l.size(), Ordering::Relaxed);
        // SAFETY: `p` came from `get`.
        unsafe { vexfs_free(p) }
    }
}

#[global_allocator]
static KERNEL: Kernel = Kernel;

/// Bytes that are allocated now.
#[no_mangle]
pub extern "C" fn vexfs_allocated() -> usize {
    OUT.load(Ordering::Relaxed)
}

#[rustc_std_internal_symbol]
fn __rust_no_alloc_shim_is_unstable_v2() {}
